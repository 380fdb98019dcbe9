"""Operations as operators see them. Requests and results of steps may hold secrets and are never shown."""

from __future__ import annotations

from kilonova.control.documents import Fault, OperationView, StepView
from kilonova.control.journals import OneJournal, Row
from kilonova.domain.clock import iso_seconds
from kilonova.domain.operation import TERMINAL, Entry, EntryState, Failure, OperationRecord, OperationState
from kilonova.engine import debt
from kilonova.engine.journaling import Moves
from kilonova.engine.operation import Await


def view(journal: OneJournal, row: Row, *, whole: bool = False) -> OperationView:
    """Describe an operation.

    Args:
        whole: with the steps to come and the details of failures.
    """
    record = row.record
    steps = tuple(_step(entry, whole=whole) for entry in record.entries)
    if whole:
        steps += _to_come(journal, record)
    current = _current(record)
    return OperationView(
        id=record.id, kind=record.kind, version=record.version, about=_about(journal, record),
        subject=record.subject, state=record.state, journal=journal.name, step=current.step if current else "",
        waits_for=_waits_for(journal, row, current), cancel=row.cancel, parent=record.parent, round=record.round,
        user_id=record.asker.user_id, project_id=record.asker.project_id, request_id=record.asker.request_id,
        created_at=record.created_at, updated_at=record.updated_at, finished_at=record.finished_at,
        worked_on_by=row.lease_owner, fault=_fault(record.failure, whole=whole), steps=steps,
    )


def _about(journal: OneJournal, record: OperationRecord) -> str:
    """What its subject is."""
    definition = journal.definitions.find(record.kind, record.version)
    return journal.about if definition is None or definition.about == "instance" else definition.about


def _step(entry: Entry, *, whole: bool) -> StepView:
    return StepView(
        step=entry.step, state=entry.state.value, undo=entry.undo, round=entry.round, attempt=entry.attempt,
        crashes=entry.crashes, host=entry.host, started_at=entry.started_at, finished_at=entry.finished_at,
        fault=_fault(entry.failure, whole=whole),
    )


def _fault(failure: Failure | None, *, whole: bool) -> Fault | None:
    if failure is None:
        return None
    details = failure.details if whole else ""
    return Fault(kind=failure.kind, message=failure.message, step=failure.step, details=details)


def _to_come(journal: OneJournal, record: OperationRecord) -> tuple[StepView, ...]:
    """The declared steps that a running operation has not reached."""
    definition = journal.definitions.find(record.kind, record.version)
    if definition is None or record.state not in (OperationState.RUNNING, OperationState.QUEUED, OperationState.HELD):
        return ()
    reached = {entry.step for entry in record.entries if entry.round == record.round}
    ahead = definition.steps[max(record.cursor, 0):]
    return tuple(StepView(step=step.name, state="to do") for step in ahead if step.name not in reached)


def _current(record: OperationRecord) -> Entry | None:
    """The step it is at."""
    if record.state in TERMINAL:
        return None
    started = [entry for entry in record.entries if entry.state is EntryState.STARTED]
    return started[-1] if started else None


def _waits_for(journal: OneJournal, row: Row, current: Entry | None) -> str:
    record = row.record
    if record.state is OperationState.HELD:
        return "its server to be handed over to the cell"
    if record.state is OperationState.QUEUED:
        return "the operation that it pre-empts to unwind"
    if record.state is OperationState.STRANDED:
        why = current.failure.message if current and current.failure else "it failed"
        return f"an operator, because the undo of {current.step if current else 'a step'!r} cannot be done: {why}"
    if record.state in TERMINAL or row.lease_owner is not None or current is None:
        return ""
    due = iso_seconds(row.wake_at) if row.wake_at is not None else "soon"
    if record.kind == debt.KIND:
        return f"{f'host {current.host}' if current.host else 'a service'} to answer (next try {due})"
    events = _awaited(journal, record, current)
    if events:
        return f"{', '.join(events)}, at most until {due}"
    if current.failure is not None:
        return f"its next try at {due}, after: {current.failure.message}"
    return "somebody to take it up"


def _awaited(journal: OneJournal, record: OperationRecord, current: Entry) -> tuple[str, ...]:
    """The events that the current step waits for."""
    definition = journal.definitions.find(record.kind, record.version)
    if definition is None:
        return ()
    step = definition.steps[definition.position(current.step)]
    if not isinstance(step, Await):
        return ()
    return step.events(Moves(definition, journal.journal, record).run(record))
