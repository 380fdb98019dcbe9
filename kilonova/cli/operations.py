"""`kilonova ops`: what is being done and was done to servers and volumes, step by step, and acting on it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import typer

from kilonova.cli.installation import DataDir, Json, require_running, sign_in

if TYPE_CHECKING:
    from kilonova.cli.session import Session
    from kilonova.control.documents import OperationView, StepView

app = typer.Typer(help="Operations: running and past, with their steps.", invoke_without_command=True)

OperationId = Annotated[str, typer.Argument(metavar="ID", help="The operation, as `kilonova ops` lists it.")]


class Operations:
    """The operations of a running installation."""

    def __init__(self, data_dir: Path | None) -> None:
        self._state = require_running(data_dir)
        self._session: Session = sign_in(self._state)
        self._url = f"{self._state.control_url}/operations"

    def select(self, *, states: tuple[str, ...] = (), subject: str | None = None, limit: int) -> list[OperationView]:
        """Newest first."""
        from kilonova.control.documents import OperationList

        query = [("state", state) for state in states] + [("limit", str(limit))]
        query += [("subject", subject)] if subject else []
        return list(self._session.get(f"{self._url}?{urlencode(query)}", OperationList).operations)

    def show(self, operation: str) -> OperationView:
        from kilonova.control.documents import OperationView

        return self._session.get(f"{self._url}/{quote(operation, safe='')}", OperationView)

    def act(self, operation: str, action: str, body: Any = None) -> OperationView:
        from kilonova.control.documents import OperationView

        url = f"{self._url}/{quote(operation, safe='')}/{action}"
        found: OperationView = self._session.post(url, body, OperationView)
        return found

    def follow(self) -> Any:
        """(name, operation) of every event: `now`, with None, once the active operations have been told."""
        import msgspec

        from kilonova.control.documents import OperationView

        for name, data in self._session.events(f"{self._url}/follow"):
            yield name, msgspec.json.decode(data, type=OperationView) if name == "operation" else None


@app.callback()
def operations(
    context: typer.Context,
    data_dir: DataDir = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what happens: a table on a terminal, lines elsewhere.")
    ] = False,
    subject: Annotated[str | None, typer.Option(
        "--of", help="Only those of this server, volume, snapshot, attachment or backup (its UUID).",
    )] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="How many that have ended.")] = 20,
    json: Json = False,
) -> None:
    """List operations: all that have not ended, and the latest that have."""
    if context.invoked_subcommand is not None:
        context.obj = data_dir
        return
    source = Operations(data_dir)
    if follow:
        _follow(source, subject, json=json)
        return
    found = {one.id: one for one in source.select(subject=subject, limit=limit)}
    active = ("held", "queued", "running", "undoing", "stranded")
    found |= {one.id: one for one in source.select(states=active, subject=subject, limit=1000)}
    listed = sorted(found.values(), key=lambda one: one.created_at)
    if json:
        _print_json({"operations": listed})
    else:
        print(_table(listed) if listed else "There are no operations.")


@app.command()
def show(context: typer.Context, operation: OperationId, data_dir: DataDir = None, json: Json = False) -> None:
    """Show an operation with its steps, where it is, why it waits, and how it ended."""
    found = Operations(data_dir or context.obj).show(operation)
    if json:
        _print_json(found)
    else:
        print(describe(found))


@app.command()
def watch(context: typer.Context, operation: OperationId, data_dir: DataDir = None) -> None:
    """Show an operation's steps until it ends. Fails unless it succeeds."""
    source = Operations(data_dir or context.obj)
    told = Told()
    for name, changed in source.follow():
        if name == "now":
            changed = source.show(operation)
        if changed is None or changed.id != operation:
            continue
        told.tell(changed)
        if changed.finished_at is not None:
            raise typer.Exit(0 if changed.state == "succeeded" else 1)
    print("The installation has stopped; the operation goes on when it is started again.", file=sys.stderr)
    raise typer.Exit(1)


@app.command()
def cancel(
    context: typer.Context, operation: OperationId, data_dir: DataDir = None, json: Json = False,
    reason: Annotated[str, typer.Option("--reason", help="Recorded with it.")] = "",
) -> None:
    """Ask an operation to end and to undo what it has done."""
    _act(data_dir or context.obj, operation, "cancel", {"reason": reason}, json=json)


@app.command()
def resume(context: typer.Context, operation: OperationId, data_dir: DataDir = None, json: Json = False) -> None:
    """Try a stranded operation again."""
    _act(data_dir or context.obj, operation, "resume", json=json)


@app.command()
def skip(context: typer.Context, operation: OperationId, data_dir: DataDir = None, json: Json = False) -> None:
    """Let a stranded operation go on without the undo that it stopped at."""
    _act(data_dir or context.obj, operation, "skip", json=json)


@app.command()
def force(context: typer.Context, operation: OperationId, data_dir: DataDir = None, json: Json = False) -> None:
    """End a stranded operation where it stands; `kilonova audit` finds what it leaves behind."""
    _act(data_dir or context.obj, operation, "force", json=json)


def _act(data_dir: Path | None, operation: str, action: str, body: Any = None, *, json: bool) -> None:
    found = Operations(data_dir).act(operation, action, body)
    if json:
        _print_json(found)
    else:
        print(f"{found.kind} {found.id} is {found.state.value}; `kilonova ops watch {found.id}` follows it.")


def _follow(source: Operations, subject: str | None, *, json: bool) -> None:
    """Until Ctrl-C, or until the installation stops."""
    changes = (
        changed for _, changed in source.follow()
        if changed is not None and (subject is None or changed.subject == subject)
    )
    try:
        if sys.stdout.isatty() and not json:
            from rich.console import Console

            from kilonova.cli.live_operations import LiveOperations

            LiveOperations(Console(highlight=False)).show(changes)
        else:
            told = Told()
            for changed in changes:
                if json:
                    _print_json(changed)
                else:
                    told.tell(changed)
    except KeyboardInterrupt:
        return
    print("The installation has stopped; operations go on when it is started again.", file=sys.stderr)


class Told:
    """Prints what is new about operations, each step once for each state."""

    def __init__(self) -> None:
        self._told: set[tuple[str, ...]] = set()

    def tell(self, operation: OperationView) -> None:
        """Print the steps and states that have not been printed before."""
        who = f"{operation.kind} {operation.id} ({operation.about} {operation.subject})"
        for step in operation.steps:
            if step.state != "to do":
                fault = f": {step.fault.message}" if step.fault else ""
                self._once((operation.id, step.step, str(step.undo), str(step.round), step.state, str(step.attempt)),
                           step.finished_at or step.started_at or operation.updated_at,
                           f"{who}: {_step_name(step)} {step.state}{_on(step)}{fault}")
        if operation.finished_at is not None or operation.state in ("stranded", "queued"):
            self._once((operation.id, operation.state.value), operation.updated_at,
                       f"{who}: {operation.state.value} after {_took(operation)}{_why(operation)}")

    def _once(self, key: tuple[str, ...], at: float, line: str) -> None:
        from kilonova.cli.output import clock_time

        if key not in self._told:
            self._told.add(key)
            print(f"{clock_time(at)} {line}", flush=True)


def _table(listed: list[OperationView]) -> str:
    from kilonova.cli.output import clock_time, columns

    rows = [
        (clock_time(one.created_at), one.id, one.kind, f"{one.about} {one.subject}", one.state.value, _took(one),
         f"{one.step}{f', waits for {one.waits_for}' if one.waits_for else ''}" or _why(one).removeprefix(": "))
        for one in listed
    ]
    return columns(("BEGAN", "ID", "OPERATION", "OF", "STATE", "TOOK", "STEP"), rows)


def describe(one: OperationView) -> str:
    """An operation for people, with all its steps."""
    from kilonova.cli.output import clock_time, columns

    lines = [
        f"{one.kind} {one.id}",
        f"  {one.about:<8} {one.subject}",
        f"  state    {one.state.value}{_why(one)}",
        f"  began    {clock_time(one.created_at)}, {'took' if one.finished_at else 'for'} {_took(one)}",
        f"  asked by user {one.user_id or '-'} of project {one.project_id or '-'} in request {one.request_id or '-'}",
        f"  journal  {one.journal}" + (f", worked on by {one.worked_on_by}" if one.worked_on_by else ""),
    ]
    if one.parent:
        lines.append(f"  pays     a debt of operation {one.parent}")
    if one.cancel:
        lines.append(f"  cancel   asked for: {one.cancel}")
    if one.waits_for:
        lines.append(f"  waits    for {one.waits_for}")
    rows = [
        (f"  {_step_name(step)}", step.state, step.host or "", str(step.attempt or ""), clock_time(step.started_at),
         _step_took(step), step.fault.message if step.fault else "")
        for step in one.steps
    ]
    lines += ["", columns(("  STEP", "STATE", "HOST", "TRY", "BEGAN", "TOOK", "ERROR"), rows)]
    if one.fault and one.fault.details:
        lines += ["", one.fault.details.rstrip()]
    return "\n".join(lines)


def _step_name(step: StepView) -> str:
    again = f" (host {step.round + 1})" if step.round else ""
    return f"{'undo ' if step.undo else ''}{step.step}{again}"


def _on(step: StepView) -> str:
    return f" on {step.host}" if step.host else ""


def _step_took(step: StepView) -> str:
    from kilonova.cli.output import duration

    if step.started_at is None:
        return ""
    return duration((step.finished_at or time.time()) - step.started_at)


def _took(one: OperationView) -> str:
    from kilonova.cli.output import duration

    return duration(max(0.0, (one.finished_at or time.time()) - one.created_at))


def _why(one: OperationView) -> str:
    if one.fault is None or one.state == "succeeded":
        return ""
    where = f" in step {one.fault.step!r}" if one.fault.step else ""
    return f": {one.fault.message}{where}"


def _print_json(document: Any) -> None:
    import msgspec

    print(msgspec.json.encode(document).decode(), flush=True)
