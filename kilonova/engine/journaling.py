"""Moving an operation through its journal: pure functions from one record to the next, inside a transaction.

`advance` and `retreat` carry the record from one step with an effect to the next one, doing the `Record` steps on
the way in the same transaction. They change nothing but the database of the journal, so that the driver may run
them again if the commit fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from kilonova.db.journal import Journal
from kilonova.domain.operation import Entry, EntryState, Failure, OperationRecord, OperationState
from kilonova.engine.failure import describe
from kilonova.engine.operation import Await, Here, NoUndo, OnHost, Operation, Record, Step, Tx
from kilonova.engine.run import Run
from kilonova.engine.telling import Telling

log = structlog.get_logger(__name__)

NONE = msgspec.Raw(b"null")
END = "(end)"
"""The name under which a failure of the closing transaction is reported."""
UNDONE = f"undo of {END}"
"""The same of an operation that failed."""


class RecordFailed(Exception):
    """A `Record` step refused; the transaction is rolled back and repeated with this knowledge."""

    def __init__(self, round_: int, failure: Failure) -> None:
        super().__init__(failure.message)
        self.place = (round_, failure.step)
        self.failure = failure


class Moves:
    """The moves of one operation over its journal.

    Args:
        journal: where events of the same database are found.
        record: any state of the operation; its request never changes.
    """

    def __init__(self, definition: Operation, journal: Journal, record: OperationRecord) -> None:
        self.definition = definition
        self._journal = journal
        self._request = msgspec.json.decode(record.request, type=definition.request)
        self._types = definition.output_types()
        self._telling = Telling(definition)
        self.deadline = definition.deadline(self.run(record))

    def run(self, record: OperationRecord) -> Run[Any]:
        """The record as its steps see it."""
        return Run(record, self._request, self._types)

    def current(self, record: OperationRecord) -> Step | None:
        """The step at the cursor, None past the last."""
        steps = self.definition.steps
        return steps[record.cursor] if 0 <= record.cursor < len(steps) else None

    # --- forward ---------------------------------------------------------------------------------

    def advance(self, tx: Tx, record: OperationRecord) -> OperationRecord:
        """Go on from the cursor to the next step with an effect, or to the end.

        Raises:
            RecordFailed: a `Record` step raised; nothing of this transaction may be kept.
        """
        if not record.entries:
            self._telling.begun(tx, self.run(record))
        while (step := self.current(record)) is not None:
            self._telling.reached(tx, self.run(record), step.name)
            if isinstance(step, Record):
                if (refusal := tx.refused.get((record.round, step.name))) is not None:
                    failed = _entry(record, step, tx.now, state=EntryState.FAILED, failure=refusal)
                    return self.turn_around(tx, _append(record, failed), refusal)
                record = _append(record, self._do_record(tx, record, step))
            elif isinstance(step, OnHost) and (host := step.host(self.run(record))) is None:
                pass
            elif isinstance(step, Here) and step.given(self.run(record)):
                record = _append(record, _entry(record, step, tx.now, state=EntryState.DONE))
            elif isinstance(step, Await):
                outcome = self._look_for_events(tx, record, step)
                if outcome is None:  # the time runs from the first look, whatever comes meanwhile
                    begun = self.run(record).entry(step.name)
                    return record if begun is not None else _append(record, _entry(record, step, tx.now))
                record = _append(record, outcome)
                if outcome.state is EntryState.FAILED:
                    assert outcome.failure is not None
                    return self.turn_around(tx, record, outcome.failure)
            else:
                return _append(record, _entry(record, step, tx.now, host=host if isinstance(step, OnHost) else None))
            self._telling.passed(tx, self.run(record), step.name)
            record = msgspec.structs.replace(record, cursor=record.cursor + 1)
        return self._succeed(tx, record)

    def _succeed(self, tx: Tx, record: OperationRecord) -> OperationRecord:
        """End an operation whose steps are done. If the closing transaction refuses, everything is undone, or, past
        the point of no return, the operation is stranded."""
        if (refusal := tx.refused.get((record.round, END))) is not None:
            if self.definition.past_return(record.cursor):
                return self._strand(tx, record, refusal, undo=False)
            return self.turn_around(tx, record, refusal)
        if not _is_skipped(record, undo=False):
            try:
                self.definition.ends(tx, self.run(record))
            except Exception as error:
                raise RecordFailed(record.round, describe(error, END)) from error
        self._telling.ended(tx, self.run(record))
        return self._finish(tx, record, OperationState.SUCCEEDED, None)

    def _do_record(self, tx: Tx, record: OperationRecord, step: Record) -> Entry:
        try:
            output = step.do(tx, self.run(record))
        except Exception as error:
            raise RecordFailed(record.round, describe(error, step.name)) from error
        return _entry(record, step, tx.now, state=EntryState.DONE, output=encode(output))

    def step_done(
        self, tx: Tx, record: OperationRecord, step: Step, output: msgspec.Raw, state: EntryState = EntryState.DONE,
    ) -> OperationRecord:
        """Journal the result of the step at the cursor, with what it writes, and go on."""
        if (refusal := tx.refused.get((record.round, step.name))) is not None:
            return self.step_failed(tx, record, step, refusal)
        record = _settle(record, step, tx.now, undo=False, state=state, output=output)
        if state is EntryState.DONE and isinstance(step, (Here, OnHost)) and step.recorded is not None:
            try:
                step.recorded(tx, self.run(record))
            except Exception as error:
                raise RecordFailed(record.round, describe(error, step.name)) from error
        self._telling.passed(tx, self.run(record), step.name)
        return self.advance(tx, msgspec.structs.replace(record, cursor=record.cursor + 1))

    def step_failed(self, tx: Tx, record: OperationRecord, step: Step, failure: Failure) -> OperationRecord:
        """Journal that the step at the cursor failed for good, and begin to undo."""
        failed = amend(record, step.name, undo=False, state=EntryState.FAILED, failure=failure, finished_at=tx.now)
        return self.turn_around(tx, failed, failure)

    def _look_for_events(self, tx: Tx, record: OperationRecord, step: Await) -> Entry | None:
        """The outcome of a wait: an entry if it is over, None if it goes on. Spec: EVT-14,
        EVT-20 to EVT-34, EVT-08."""
        run = self.run(record)
        wanted = set(step.events(run))
        came = {event.key: event for event in self._journal.events_of(tx.conn, record.subject)} if wanted else {}
        bad = [came[key] for key in sorted(wanted) if key in came and came[key].status != "completed"]
        missing = sorted(wanted - came.keys())
        known = run.entry(step.name)
        failure: Failure | None = None
        if bad:
            failure = Failure(kind="EventFailed", message=f"{bad[0].key} was reported as {bad[0].status}.",
                              step=step.name)
        elif missing and known is not None and tx.now >= known.started_at + step.timeout(run):
            failure = Failure(kind="WaitTimedOut", message=f"Timed out waiting for {', '.join(missing)}.",
                              step=step.name)
        elif missing:
            log.debug("still waiting for events", operation=record.id, awaited=missing, came=sorted(came))
            return None
        if wanted:  # what was waited for is used up, so that it cannot satisfy a later wait
            self._journal.drop_events(tx.conn, record.subject, wanted)
        fatal = failure is not None and step.fatal(run)
        state = EntryState.FAILED if fatal else EntryState.DONE
        started = known.started_at if known is not None else tx.now
        return Entry(step=step.name, round=record.round, state=state, started_at=started, finished_at=tx.now,
                     failure=failure)

    def waits_until(self, record: OperationRecord) -> float | None:
        """When the wait that the record is in ends at the latest, None if it is in none."""
        step = self.current(record)
        if record.state is not OperationState.RUNNING or not isinstance(step, Await):
            return None
        run = self.run(record)
        entry = run.entry(step.name)
        return None if entry is None else min(entry.started_at + step.timeout(run), self.deadline)

    # --- backward --------------------------------------------------------------------------------

    def turn_around(self, tx: Tx, record: OperationRecord, failure: Failure) -> OperationRecord:
        """Begin to undo because of a failure: down to where another round begins, or all the way."""
        self._telling.broken_off(tx, self.run(record), failure)
        back_to: int | None = None
        if self.definition.again_from is not None and failure.elsewhere:
            first = self.definition.position(self.definition.again_from)
            if record.cursor >= first and record.round + 1 < self.definition.rounds(self.run(record)):
                back_to = first
        cursor = record.cursor
        if back_to is None:  # what lasts may lie ahead: an earlier round made it
            cursor = max(cursor, *(i for i, step in enumerate(self.definition.steps) if _lasts(step)), 0)
        record = msgspec.structs.replace(
            record, state=OperationState.UNDOING, failure=failure, back_to=back_to, cursor=cursor
        )
        return self.retreat(tx, record)

    def retreat(self, tx: Tx, record: OperationRecord) -> OperationRecord:
        """Undo from the cursor downwards to the next undo with an effect, to a new round, or to the end."""
        while record.cursor >= (record.back_to or 0):
            step = self.current(record)
            if step is not None and self._to_undo(record, step):
                if isinstance(step, Record):
                    record = _append(record, self._undo_record(tx, record, step))
                    if record.entries[-1].state is EntryState.STARTED:
                        return msgspec.structs.replace(record, state=OperationState.STRANDED)
                else:
                    done = self.run(record).entry(step.name)
                    host = done.host if done is not None else None
                    self._telling.reached(tx, self.run(record), step.name, undo=True)
                    return _append(record, _entry(record, step, tx.now, undo=True, host=host))
            record = msgspec.structs.replace(record, cursor=record.cursor - 1)
        if record.back_to is None:
            return self.give_up(tx, record)
        self._journal.drop_events(tx.conn, record.subject)  # they told of the host that was given up
        record = msgspec.structs.replace(
            record, state=OperationState.RUNNING, cursor=record.back_to, round=record.round + 1, back_to=None,
            failure=None,
        )
        return self.advance(tx, record)

    def _undo_record(self, tx: Tx, record: OperationRecord, step: Record) -> Entry:
        """The journal line of an undone `Record` step; left open if its undo refuses."""
        assert not isinstance(step.undo, NoUndo)
        place = f"undo of {step.name}"
        if (refusal := tx.refused.get((record.round, place))) is not None:
            return _entry(record, step, tx.now, undo=True, failure=refusal)
        try:
            output = step.undo(tx, self.run(record))
        except Exception as error:
            raise RecordFailed(record.round, describe(error, place)) from error
        return _entry(record, step, tx.now, undo=True, state=EntryState.DONE, output=encode(output))

    def give_up(self, tx: Tx, record: OperationRecord) -> OperationRecord:
        """End a failed operation: everything is undone (or an operator forced it). It is stranded if the closing
        transaction refuses.

        Raises:
            RecordFailed: the closing transaction raised; nothing of it may be kept.
        """
        assert record.failure is not None
        if (refusal := tx.refused.get((record.round, UNDONE))) is not None:
            return self._strand(tx, record, refusal, undo=True)
        if not _is_skipped(record, undo=True):
            try:
                self.definition.fails(tx, self.run(record), record.failure)
            except Exception as error:
                raise RecordFailed(record.round, describe(error, UNDONE)) from error
        self._telling.failed(tx, self.run(record), record.failure)
        state = OperationState.CANCELLED if record.failure.cancelled else OperationState.FAILED
        return self._finish(tx, record, state, record.failure)

    def _strand(self, tx: Tx, record: OperationRecord, refusal: Failure, *, undo: bool) -> OperationRecord:
        """Leave an operation that cannot be closed to an operator."""
        entry = Entry(step=END, round=record.round, undo=undo, state=EntryState.STARTED, started_at=tx.now,
                      failure=refusal)
        return msgspec.structs.replace(_append(record, entry), state=OperationState.STRANDED)

    def _to_undo(self, record: OperationRecord, step: Step) -> bool:
        """Whether the step has an undo and may have had an effect that was not undone and that no other round needs."""
        if isinstance(step, Await) or isinstance(step.undo, NoUndo) or (record.back_to is not None and _lasts(step)):
            return False
        last: Entry | None = None
        for entry in reversed(record.entries):
            if entry.step == step.name:
                last = entry
                break
        if last is None:
            return False
        if last.undo:
            return last.state is EntryState.STARTED
        return not (isinstance(step, Record) and last.state is EntryState.FAILED)

    def undo_done(
        self, tx: Tx, record: OperationRecord, step: Step, output: msgspec.Raw, state: EntryState = EntryState.DONE,
    ) -> OperationRecord:
        """Journal that the step at the cursor is undone (or owed) and move down. What it writes may refuse; then the
        operation is stranded there."""
        place = f"undo of {step.name}"
        if (refusal := tx.refused.get((record.round, place))) is not None:
            stopped = amend(record, step.name, undo=True, failure=refusal)
            return msgspec.structs.replace(stopped, state=OperationState.STRANDED)
        record = _settle(record, step, tx.now, undo=True, state=state, output=output)
        if isinstance(step, (Here, OnHost)) and step.undone is not None:
            try:
                step.undone(tx, self.run(record))
            except Exception as error:
                raise RecordFailed(record.round, describe(error, place)) from error
        self._telling.passed(tx, self.run(record), step.name, undo=True)
        return self.retreat(tx, msgspec.structs.replace(record, cursor=record.cursor - 1))

    def go_forward(self, tx: Tx, record: OperationRecord, step: Step, failure: Failure) -> OperationRecord:
        """An undo found that the point of no return is passed: the step that is called so is done although it failed,
        and the operation goes on behind it."""
        assert self.definition.no_return is not None
        record = amend(record, step.name, undo=True, state=EntryState.FAILED, failure=failure, finished_at=tx.now)
        cursor = self.definition.position(self.definition.no_return)
        turn = self.definition.steps[cursor]
        record = msgspec.structs.replace(
            record, state=OperationState.RUNNING, cursor=cursor, back_to=None, failure=None
        )
        return self.step_done(tx, _append(record, _entry(record, turn, tx.now)), turn, NONE)

    def drop(self, tx: Tx, record: OperationRecord, failure: Failure) -> OperationRecord:
        """End an operation that never began."""
        return self._finish(tx, record, OperationState.CANCELLED, failure)

    # --- ends ------------------------------------------------------------------------------------

    def _finish(
        self, tx: Tx, record: OperationRecord, state: OperationState, failure: Failure | None
    ) -> OperationRecord:
        if record.exclusive:
            self._journal.drop_events(tx.conn, record.subject)
        if self.definition.scrub is not None:
            clean = self.definition.scrub(self._request)
            record = msgspec.structs.replace(record, request=msgspec.Raw(msgspec.json.encode(clean)))
        return msgspec.structs.replace(record, state=state, failure=failure, finished_at=tx.now)


def _lasts(step: Step) -> bool:
    return isinstance(step, Here) and step.lasting


def encode(output: msgspec.Struct | None) -> msgspec.Raw:
    return NONE if output is None else msgspec.Raw(msgspec.json.encode(output))


def _entry(
    record: OperationRecord, step: Step, now: float, *, undo: bool = False, state: EntryState = EntryState.STARTED,
    output: msgspec.Raw = NONE, host: str | None = None, failure: Failure | None = None,
) -> Entry:
    return Entry(
        step=step.name, round=record.round, undo=undo, state=state, host=host, started_at=now,
        finished_at=None if state is EntryState.STARTED else now, output=output, failure=failure,
    )


def _append(record: OperationRecord, entry: Entry) -> OperationRecord:
    """Add a line, or replace the line of the same step, round and direction."""
    entries = [e for e in record.entries if (e.step, e.round, e.undo) != (entry.step, entry.round, entry.undo)]
    return msgspec.structs.replace(record, entries=(*entries, entry), host=entry.host or record.host)


def _is_skipped(record: OperationRecord, *, undo: bool) -> bool:
    """Whether an operator lets the operation end without its closing transaction."""
    return any(e.step == END and e.undo == undo and e.state is EntryState.SKIPPED for e in record.entries)


def _settle(
    record: OperationRecord, step: Step, now: float, *, undo: bool, state: EntryState, output: msgspec.Raw
) -> OperationRecord:
    """What is owed keeps the error for which it is."""
    solved: dict[str, Any] = {} if state is EntryState.OWED and not undo else {"failure": None}
    return amend(record, step.name, undo=undo, state=state, output=output, finished_at=now, **solved)


def amend(record: OperationRecord, step: str, *, undo: bool, **changes: Any) -> OperationRecord:
    """Change the line of a step in this round."""
    entries: Sequence[Entry] = [
        msgspec.structs.replace(e, **changes) if (e.step, e.round, e.undo) == (step, record.round, undo) else e
        for e in record.entries
    ]
    return msgspec.structs.replace(record, entries=tuple(entries))
