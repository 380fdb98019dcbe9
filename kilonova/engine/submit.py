"""Accepting, cancelling and settling operations: units of work over a journal, called inside a transaction."""

from __future__ import annotations

import uuid

import msgspec

from kilonova.db.journal import Journal
from kilonova.domain.errors import Conflict, NotFound
from kilonova.domain.operation import TERMINAL, Asker, Entry, EntryState, OperationRecord, OperationState
from kilonova.engine.failure import cancelled
from kilonova.engine.journaling import END, Moves, RecordFailed, amend
from kilonova.engine.operation import Definitions, Operation, Tx


class Busy(Conflict):
    """Another operation has the subject to itself.

    Args:
        holder: that operation.
    """

    def __init__(self, holder: OperationRecord) -> None:
        super().__init__(f"Operation {holder.kind} {holder.id} is working on {holder.subject}.")
        self.holder = holder


class Submission(msgspec.Struct, frozen=True):
    """An accepted operation. preempted: the operation that was asked to end for it, if any."""

    record: OperationRecord
    preempted: str | None = None


def submit(
    tx: Tx, journal: Journal, definition: Operation, subject: str, request: msgspec.Struct, asker: Asker, *,
    held: bool = False, operation_id: str | None = None,
) -> Submission:
    """Accept an operation: its journal row and its first change of the subject, in the caller's transaction.

    A pre-empting operation asks the one that runs to end and queues behind it. If one of its kind is queued or
    running already, that one is returned and nothing is written; unless others of its kind wait for its end.

    Args:
        held: not to be driven until `release`.

    Raises:
        Busy: another exclusive operation has the subject and this one does not pre-empt.
        Whatever `definition.begins` raises.
    """
    holder = journal.holder(tx.conn, subject) if definition.exclusive else None
    state = OperationState.HELD if held else OperationState.RUNNING
    preempted: str | None = None
    if holder is not None:
        waiting = journal.queued(tx.conn, subject)
        if waiting is not None and waiting.kind in definition.supersedes:
            dropped = msgspec.structs.replace(
                waiting, state=OperationState.CANCELLED, failure=cancelled(f"superseded by {definition.name}"),
                finished_at=tx.now,
            )
            journal.replace(tx.conn, dropped, wake_at=None, now=tx.now)
            waiting = None
        for known in (holder[0], waiting):
            if known is not None and known.kind == definition.name and not definition.waited_for:
                return Submission(known)
        if waiting is not None or not {"*", holder[0].kind} & set(definition.preempts):
            raise Busy(waiting or holder[0])
        state, preempted = OperationState.QUEUED, holder[0].id
    record = OperationRecord(
        id=operation_id or str(uuid.uuid4()),
        kind=definition.name,
        version=definition.version,
        subject=subject,
        state=state,
        exclusive=definition.exclusive,
        asker=asker,
        request=msgspec.Raw(msgspec.json.encode(request)),
        created_at=tx.now,
        updated_at=tx.now,
    )
    definition.begins(tx, Moves(definition, journal, record).run(record))
    journal.insert(tx.conn, record, wake_at=tx.now if state is OperationState.RUNNING else None)
    if preempted is not None:
        journal.request_cancel(tx.conn, preempted, f"pre-empted by {definition.name} {record.id}", tx.now)
    return Submission(record, preempted)


def follow(
    tx: Tx, journal: Journal, definition: Operation, subject: str, request: msgspec.Struct, asker: Asker,
    *, operation_id: str,
) -> None:
    """Accept an operation that takes the subject over from the one that is ending in this transaction."""
    record = OperationRecord(
        id=operation_id, kind=definition.name, version=definition.version, subject=subject,
        state=OperationState.QUEUED, exclusive=definition.exclusive, asker=asker,
        request=msgspec.Raw(msgspec.json.encode(request)), created_at=tx.now, updated_at=tx.now,
    )
    definition.begins(tx, Moves(definition, journal, record).run(record))
    journal.insert(tx.conn, record, wake_at=None)


def release(tx: Tx, journal: Journal, operation_id: str) -> None:
    """Let a held operation run. Releasing it again changes nothing."""
    record = journal.get(tx.conn, operation_id)
    if record is not None and record.state is OperationState.HELD:
        running = msgspec.structs.replace(record, state=OperationState.RUNNING)
        journal.replace(tx.conn, running, wake_at=tx.now, now=tx.now)


def drop_held(tx: Tx, journal: Journal, definition: Operation, operation_id: str, reason: str) -> None:
    """End a held operation that will never run."""
    record = journal.get(tx.conn, operation_id)
    if record is not None and record.state is OperationState.HELD:
        dropped = Moves(definition, journal, record).drop(tx, record, cancelled(reason))
        journal.replace(tx.conn, dropped, wake_at=None, now=tx.now)


def cancel(tx: Tx, journal: Journal, definitions: Definitions, operation_id: str, reason: str) -> None:
    """Ask an operation to end and be undone.

    Raises:
        NotFound: there is no such operation. Conflict: it has ended or passed its point of no return.
    """
    record = _existing(tx, journal, operation_id)
    definition = definitions.find(record.kind, record.version)
    if record.state in TERMINAL:
        raise Conflict(f"Operation {operation_id} has ended ({record.state.value}).")
    if definition is None or definition.past_return(record.cursor):
        raise Conflict(f"Operation {operation_id} can no longer be cancelled.", hint="it will complete by itself")
    journal.request_cancel(tx.conn, operation_id, reason, tx.now)


def resume(tx: Tx, journal: Journal, operation_id: str) -> None:
    """Try a stranded operation again, from where it stopped. Raises NotFound, Conflict."""
    record, stopped_at = _stranded(tx, journal, operation_id)
    attempt = stopped_at.attempt + 1  # a host answers one that it knows from memory
    again = amend(record, stopped_at.step, undo=stopped_at.undo, attempt=attempt, crashes=0, resumed=attempt)
    _go_on(tx, journal, again, stopped_at)


def skip(tx: Tx, journal: Journal, operation_id: str) -> None:
    """Go on without what a stranded operation stopped at: an undo, a step that must not fail, or its closing
    transaction. Raises NotFound, Conflict."""
    record, stopped_at = _stranded(tx, journal, operation_id)
    skipped = amend(record, stopped_at.step, undo=stopped_at.undo, state=EntryState.SKIPPED, finished_at=tx.now)
    if stopped_at.step != END:
        skipped = msgspec.structs.replace(skipped, cursor=record.cursor + (-1 if stopped_at.undo else 1))
    _go_on(tx, journal, skipped, stopped_at)


def _go_on(tx: Tx, journal: Journal, record: OperationRecord, stopped_at: Entry) -> None:
    """Let a conductor drive it in the direction in which it stopped."""
    state = OperationState.UNDOING if stopped_at.undo else OperationState.RUNNING
    journal.replace(tx.conn, msgspec.structs.replace(record, state=state, resting=True), wake_at=tx.now, now=tx.now)


def force(tx: Tx, journal: Journal, definitions: Definitions, operation_id: str) -> None:
    """End a stranded operation where it stands, as failed, undoing nothing more.

    Raises:
        NotFound: there is no such operation. Conflict: it is not stranded, or cannot be closed either.
    """
    record, stopped_at = _stranded(tx, journal, operation_id)
    definition = definitions.find(record.kind, record.version)
    if definition is None:
        raise Conflict(f"This release does not know {record.kind} version {record.version}.")
    if stopped_at.step == END:
        record = amend(record, END, undo=stopped_at.undo, state=EntryState.SKIPPED, finished_at=tx.now)
    failed = msgspec.structs.replace(record, failure=record.failure or stopped_at.failure)
    try:
        ended = Moves(definition, journal, failed).give_up(tx, failed)
    except RecordFailed as error:
        raise Conflict(
            f"Operation {operation_id} cannot be closed: {error.failure.message}",
            hint="skip the undos that it stops at, then force its end",
        ) from error
    journal.replace(tx.conn, ended, wake_at=None, now=tx.now)
    waiting = journal.queued(tx.conn, record.subject) if record.exclusive else None
    if waiting is not None:
        running = msgspec.structs.replace(waiting, state=OperationState.RUNNING)
        journal.replace(tx.conn, running, wake_at=tx.now, now=tx.now)


def _existing(tx: Tx, journal: Journal, operation_id: str) -> OperationRecord:
    record = journal.get(tx.conn, operation_id)
    if record is None:
        raise NotFound(f"Operation {operation_id} could not be found.")
    return record


def _stranded(tx: Tx, journal: Journal, operation_id: str) -> tuple[OperationRecord, Entry]:
    """The operation and the line of its journal at which it stopped."""
    record = _existing(tx, journal, operation_id)
    if record.state is not OperationState.STRANDED:
        raise Conflict(f"Operation {operation_id} is not stranded but {record.state.value}.")
    return record, next(e for e in reversed(record.entries) if e.state is EntryState.STARTED)
