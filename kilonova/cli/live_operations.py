"""`kilonova ops --follow` on a terminal: what is being done now, and above it what has ended since."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kilonova.cli.output import BAD, BUSY, GOOD, clock_time, duration
from kilonova.domain.operation import TERMINAL, OperationState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kilonova.control.documents import OperationView, StepView

REFRESHES = 4
"""Times each second that the table is drawn, as ages grow."""
AROUND = 4
"""Lines of the terminal that are kept free of operations: the heading and what it counts, and the prompt."""

WIDE = 110
"""Columns of a terminal from which on UUIDs are shown as a whole."""

COLOURS = {
    OperationState.SUCCEEDED: GOOD, OperationState.FAILED: BAD, OperationState.STRANDED: f"bold {BAD}",
    OperationState.UNDOING: BUSY, OperationState.CANCELLED: BUSY,
}


class LiveOperations:
    """The view. Args: console: the terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._active: dict[str, OperationView] = {}
        self._ended: set[str] = set()
        self._began = time.time()

    def show(self, changes: Iterable[OperationView]) -> None:
        """Draw until there are no more changes."""
        with Live(get_renderable=self.table, console=self._console, refresh_per_second=REFRESHES) as live:
            for changed in changes:
                self.take(changed)
                live.refresh()

    def take(self, changed: OperationView) -> None:
        """An operation has changed. One that has ended leaves the table for the lines above it."""
        if changed.state not in TERMINAL:
            self._active[changed.id] = changed
            return
        self._active.pop(changed.id, None)
        if changed.id not in self._ended:
            self._ended.add(changed.id)
            self._console.print(_ending(changed), soft_wrap=True)

    def table(self) -> RenderableType:
        """What is being done, oldest first, as much of it as there is room for."""
        active = sorted(self._active.values(), key=lambda one: one.created_at)
        room = max(1, self._console.height - AROUND)
        counted = Text(f"{_counts(active)}; {len(self._ended)} ended since {clock_time(self._began)}", style="bold")
        if len(active) > room:
            counted.append(f"; {len(active) - room} of them not shown")
        if not active:
            return counted
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, ratio in (("OPERATION", None), ("OF", None), ("STATE", None), ("AGE", None), ("TRY", None),
                            ("HOST", None), ("STEP", 1)):
            table.add_column(name, ratio=ratio, no_wrap=True, justify="right" if name in ("AGE", "TRY") else "left")
        for one in active[:room]:
            step = _current(one)
            table.add_row(
                one.kind, f"{one.about} {one.subject if self._console.width >= WIDE else one.subject[:8]}",
                Text(one.state.value, style=COLOURS.get(one.state, "")),
                duration(max(0.0, time.time() - one.created_at)), str(step.attempt) if step is not None else "",
                _host(one), _doing(one, step),
            )
        return Group(counted, table)


def _counts(active: list[OperationView]) -> str:
    numbers = {state: sum(one.state is state for one in active) for state in OperationState}
    return ", ".join(f"{number} {state.value}" for state, number in numbers.items() if number) or "nothing to do"


def _current(one: OperationView) -> StepView | None:
    return next((step for step in reversed(one.steps) if step.state == "started"), None)


def _host(one: OperationView) -> str:
    """Where it works, or has worked last."""
    return next((step.host for step in reversed(one.steps) if step.host), "")


def _doing(one: OperationView, step: StepView | None) -> str:
    doing = one.step if step is None or not step.undo else f"undo {one.step}"
    if one.waits_for:
        return f"{doing}, waits for {one.waits_for}" if doing else f"waits for {one.waits_for}"
    if step is not None and step.fault is not None:
        return f"{doing}, after: {step.fault.message}"
    return doing


def _ending(one: OperationView) -> Text:
    line = Text(f"{clock_time(one.finished_at)} {one.kind} {one.id} ({one.about} {one.subject}) ")
    line.append(one.state.value, style=COLOURS.get(one.state, ""))
    line.append(f" after {duration(max(0.0, (one.finished_at or one.updated_at) - one.created_at))}")
    if host := _host(one):
        line.append(f" on {host}")
    if one.fault is not None and one.state is not OperationState.SUCCEEDED:
        line.append(f": {one.fault.message}")
    return line
