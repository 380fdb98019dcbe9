"""What `kilonova ops --follow` draws on a terminal."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from kilonova.cli.live_operations import LiveOperations
from kilonova.control.documents import Fault, OperationView, StepView
from kilonova.domain.operation import OperationState

SERVER = "0f5b7f0e-66a2-4243-8da2-4635b7f8e372"


def operation(id_: str = "one", state: OperationState = OperationState.RUNNING, **changes: object) -> OperationView:
    given: dict[str, object] = {
        "kind": "build", "step": "start guest", "waits_for": "", "fault": None, "created_at": time.time() - 75.0,
        "finished_at": None,
        "steps": (
            StepView(step="create disks", state="done", attempt=1, host="host-1", started_at=1.0, finished_at=2.0),
            StepView(step="start guest", state="started", attempt=3, host="host-1", started_at=2.0),
        ),
        **changes,
    }
    return OperationView(
        id=id_, version=1, about="server", subject=SERVER, state=state, journal="cell1", cancel=None, parent=None,
        round=0, user_id="u", project_id="p", request_id="req-1", updated_at=time.time(), worked_on_by=None,
        **given,  # type: ignore[arg-type]
    )


def ended(id_: str, state: OperationState, **changes: object) -> OperationView:
    now = time.time()
    return operation(id_, state, step="", created_at=now - 3.0, finished_at=now, **changes)


class Terminal:
    """A terminal with a view on it."""

    def __init__(self, width: int = 130, height: int = 24) -> None:
        self.console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, highlight=False)
        self.view = LiveOperations(self.console)

    def lines(self) -> list[str]:
        """Of the table as it is drawn now."""
        with self.console.capture() as drawn:
            self.console.print(self.view.table())
        return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in drawn.get().splitlines()]

    def above(self) -> list[str]:
        """What has been printed for good."""
        assert isinstance(self.console.file, io.StringIO)
        return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in self.console.file.getvalue().splitlines()]


def test_what_runs_is_a_row_with_age_attempt_host_and_step() -> None:
    terminal = Terminal()
    terminal.view.take(operation())
    counted, header, row = terminal.lines()
    assert counted.startswith("1 running; 0 ended since ")
    assert header.split() == ["OPERATION", "OF", "STATE", "AGE", "TRY", "HOST", "STEP"]
    assert row.split() == ["build", "server", SERVER, "running", "75", "s", "3", "host-1", "start", "guest"]
    assert terminal.above() == []


def test_what_has_ended_leaves_the_table_for_a_line_above_it_once() -> None:
    terminal = Terminal()
    terminal.view.take(operation())
    fault = Fault(kind="KilonovaError", message="It burns.")
    for _ in range(2):
        terminal.view.take(ended("one", OperationState.FAILED, fault=fault))
    terminal.view.take(ended("two", OperationState.SUCCEEDED))
    (counted,) = terminal.lines()
    assert counted.startswith("nothing to do; 2 ended since ")
    failed, succeeded = terminal.above()
    assert failed.endswith(f" build one (server {SERVER}) failed after 3.00 s on host-1: It burns.")
    assert succeeded.endswith(f" build two (server {SERVER}) succeeded after 3.00 s on host-1")


@pytest.mark.parametrize(("changes", "told"), [
    ({"waits_for": "network-vif-plugged:1, at most until 12:00:00"},
     "start guest, waits for network-vif-plugged:1, at most until 12:00:00"),
    ({"state": OperationState.QUEUED, "step": "", "steps": (), "waits_for": "the end of reboot"},
     "waits for the end of reboot"),
    ({"state": OperationState.UNDOING, "step": "create disks",
      "steps": (StepView(step="create disks", state="started", undo=True, attempt=2),)}, "undo create disks"),
    ({"steps": (StepView(step="start guest", state="started", attempt=2, fault=Fault(kind="E", message="No space.")),)},
     "start guest, after: No space."),
])
def test_a_row_says_why_it_does_not_go_on(changes: dict[str, object], told: str) -> None:
    terminal = Terminal(width=160)
    terminal.view.take(operation(**changes))  # type: ignore[arg-type]
    assert terminal.lines()[-1].endswith(told)


def test_there_are_as_many_rows_as_fit_the_oldest_first() -> None:
    terminal = Terminal(height=7)
    for number in range(5):
        terminal.view.take(operation(f"o{number}", kind=f"kind-{number}", created_at=1000.0 - number))
    counted, _header, *rows = terminal.lines()
    assert [row.split()[0] for row in rows] == ["kind-4", "kind-3", "kind-2"]
    assert counted.endswith("; 2 of them not shown")
    assert len(terminal.lines()) < 7


def test_a_narrow_terminal_shortens_the_server_and_nothing_else() -> None:
    terminal = Terminal(width=80)
    terminal.view.take(operation())
    told = ["build", "server", SERVER[:8], "running", "75", "s", "3", "host-1", "start", "guest"]
    assert terminal.lines()[-1].split() == told
