"""Driving one operation: the loop between its journal and the world."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import structlog

from kilonova.db.journal import Owned
from kilonova.domain import tracing, trail
from kilonova.domain.errors import Fenced, Unreachable
from kilonova.domain.operation import TERMINAL, Entry, EntryState, Failure, OperationRecord, OperationState
from kilonova.engine import debt
from kilonova.engine.commands import Command, command_key
from kilonova.engine.failure import CRASH_LOOP, PAST_RETURN, cancelled, crash_loop, describe, out_of_time
from kilonova.engine.journaling import Moves, RecordFailed, amend, encode
from kilonova.engine.operation import Await, Here, NoUndo, OnHost, Operation, Record, Step, Tx
from kilonova.engine.workshop import Workshop

log = structlog.get_logger(__name__)

LONG_PAUSE = 2.0
"""Seconds from which on a pause is written down and the operation is laid to rest instead of held in memory."""

MAX_PAUSE = 60.0

GRACE = 15.0
"""Seconds for which a host is waited for after this process died in the midst of a step: both may be starting."""

BEGIN = "(begin)"
"""The name under which taking up an operation shows among the boundaries."""


class Driver:
    """Drives one leased operation until it ends, rests, or the lease is lost."""

    def __init__(self, shop: Workshop, owned: Owned) -> None:
        self._shop = shop
        self._epoch = owned.epoch
        self._cancel = owned.cancel
        self._resting = False
        self.record = owned.record
        self._debt: debt.DebtRequest | None = None
        self._moves = Moves(self._definition(), shop.journal, owned.record)
        self._place = ""
        self._taken_up = 0.0

    def _at(self, step: str, *, undo: bool = False) -> None:
        """From here on the boundaries and the log lines are those of this step."""
        self._place = f"{self.record.kind}/{step}/{'undo' if undo else 'do'}"
        trail.at_step(step, undo=undo)

    def _check(self, point: str) -> None:
        self._shop.checkpoint(f"{self._place}/{point}")

    def _definition(self) -> Operation:
        record = self.record
        if record.kind == debt.KIND:
            self._debt = msgspec.json.decode(record.request, type=debt.DebtRequest)
            parent = self._debt.parent
            definition = self._find(parent)
            return debt.payment(definition, self._debt, Moves(definition, self._shop.journal, parent).run(parent))
        return self._find(record)

    def _find(self, record: OperationRecord) -> Operation:
        definition = self._shop.definitions.find(record.kind, record.version)
        if definition is None:
            raise LookupError(f"Operation {record.id}: this release has no {record.kind} version {record.version}.")
        return definition

    def note_cancel(self, reason: str) -> None:
        """Somebody asked for the end while this process drives it."""
        self._cancel = self._cancel or reason

    async def drive(self) -> None:
        """Go on from where the journal stands.

        Raises:
            Fenced: another process took the operation over; nothing more is done here.
        """
        trail.driving(self.record, self._moves.definition.about)
        tracing.driving(self.record)
        self._at(BEGIN)
        self._check("before")
        await self._adopt()
        self._check("committed")
        while self.record.state not in TERMINAL and not self._resting:
            step = self._moves.current(self.record)
            assert step is not None
            undo = self.record.state is OperationState.UNDOING
            self._at(step.name, undo=undo)
            if isinstance(step, Await) and not undo:
                await self._await(step)
            elif undo and isinstance(step, Record):  # it was stranded and is resumed
                await self._commit(lambda tx: self._moves.retreat(tx, self.record))
            elif undo:
                await self._undo(step)
            else:
                await self._do(step)
            self._check("committed")

    async def _adopt(self) -> None:
        """Take up a new operation, or one that rested, or one whose process died."""
        record = self.record
        step = self._moves.current(record)
        undo = record.state is OperationState.UNDOING
        entry = self._moves.run(record).entry(step.name, undo=undo) if step is not None else None
        if entry is None or entry.state is not EntryState.STARTED:
            move = self._moves.retreat if undo else self._moves.advance
            await self._commit(lambda tx: move(tx, record))
        elif not record.resting and not isinstance(step, Await):
            assert step is not None
            name, crashes = step.name, entry.crashes + 1
            self._taken_up = self._shop.clock.now()
            await self._commit(lambda tx: amend(record, name, undo=undo, crashes=crashes))

    # --- forward ---------------------------------------------------------------------------------

    def _why_end(self) -> Failure | None:
        """Why the operation goes no further, if so: somebody asked for its end, or its time is up."""
        definition, record = self._moves.definition, self.record
        if record.state is not OperationState.RUNNING or definition.past_return(record.cursor):
            return None
        if self._cancel is not None:
            return cancelled(self._cancel)
        return out_of_time(record.kind) if self._shop.clock.now() >= self._moves.deadline else None

    async def _do(self, step: Step) -> None:
        record, moves = self.record, self._moves
        entry = self._entry(step, undo=False)
        if (end := self._why_end()) is not None:
            why = end
            await self._commit(lambda tx: moves.step_failed(tx, record, step, why))
            return
        if entry.crashes > moves.definition.max_crashes:
            await self._failed_for_good(step, entry, crash_loop("The service", entry.crashes, step.name))
            return
        try:
            output = await self._perform(step, entry, undo=False)
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - every failure of a step is journaled
            await self._failed(step, entry, error)
        else:
            await self._commit(lambda tx: moves.step_done(tx, record, step, output))

    def _persists(self, step: Step) -> bool:
        """Whether the step is tried until it succeeds: a debt, or one that is declared so."""
        return self._debt is not None or (isinstance(step, Here) and step.persistent)

    async def _failed(self, step: Step, entry: Entry, error: Exception) -> None:
        """A forward step failed: try again, owe it, or turn around."""
        record, moves = self.record, self._moves
        assert isinstance(step, (Here, OnHost))
        failure = describe(error, step.name)
        if failure.cancelled:  # cut short: the reason says more than the step knows
            failure = self._why_end() or failure
        unreachable = isinstance(error, Unreachable)
        retries = step.retries if isinstance(step.retries, int) else step.retries(moves.run(record))
        if unreachable and isinstance(step, OnHost) and step.owed and not self._is_patient():
            await self._owe(step, entry, undo=False)
        elif failure.kind != CRASH_LOOP and (
            self._persists(step)
            or (failure.retryable and self._left(step, entry) > 0 and (unreachable or entry.attempt <= retries))
        ):
            await self._pause(step, entry, failure, undo=False)
        else:
            await self._failed_for_good(step, entry, failure)

    async def _failed_for_good(self, step: Step, entry: Entry, failure: Failure) -> None:
        """No further attempt at a forward step is of use: owe it, or turn around. What must not fail is stranded."""
        record, moves = self.record, self._moves
        if self._persists(step):
            await self._strand(step, failure, undo=False)
        elif (isinstance(step, Here) and step.owed) or (isinstance(step, OnHost) and step.owed_anyway):
            self.record = amend(record, step.name, undo=False, failure=failure)
            await self._owe(step, entry, undo=False)
        else:
            if not failure.details and failure.kind not in ("Cancelled",):
                log.info("step failed", error=failure.message)
            await self._commit(lambda tx: moves.step_failed(tx, record, step, failure))

    async def _await(self, step: Await) -> None:
        record, moves = self.record, self._moves
        self._check("before")
        if (end := self._why_end()) is not None:
            why = end
            await self._commit(lambda tx: moves.step_failed(tx, record, step, why))
        else:
            await self._commit(lambda tx: moves.advance(tx, record))

    # --- backward --------------------------------------------------------------------------------

    async def _undo(self, step: Step) -> None:
        record, moves = self.record, self._moves
        entry = self._entry(step, undo=True)
        if entry.crashes > moves.definition.max_crashes:
            await self._not_undone(step, entry, crash_loop("The service", entry.crashes, step.name))
            return
        try:
            output = await self._perform(step, entry, undo=True)
            await self._commit(lambda tx: moves.undo_done(tx, record, step, output))
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - an undo does not give up
            failure = describe(error, step.name)
            if failure.kind == PAST_RETURN:
                await self._commit(lambda tx: moves.go_forward(tx, record, step, failure))
                return
            unreachable = isinstance(error, Unreachable)
            again = self._is_patient() if unreachable else entry.attempt % (moves.definition.undo_retries + 1) != 0
            if again and failure.kind != CRASH_LOOP:
                await self._pause(step, entry, failure, undo=True)
            elif unreachable:
                await self._owe(step, entry, undo=True)
            else:
                await self._not_undone(step, entry, failure)

    async def _not_undone(self, step: Step, entry: Entry, failure: Failure) -> None:
        """An undo has failed too often: owe it, or leave it to an operator."""
        if isinstance(step, (Here, OnHost)) and step.undo_owed:
            await self._owe(step, entry, undo=True)
        else:
            await self._strand(step, failure, undo=True)

    async def _strand(self, step: Step, failure: Failure, *, undo: bool) -> None:
        stopped = amend(self.record, step.name, undo=undo, failure=failure)
        await self._commit(lambda tx: replace_state(stopped, OperationState.STRANDED))

    # --- doing -----------------------------------------------------------------------------------

    async def _perform(self, step: Step, entry: Entry, *, undo: bool) -> msgspec.Raw:
        """Run the step's function, here or on its host; returns the JSON of its result."""
        self._check("before")
        with tracing.step(self.record, step.name, undo=undo, attempt=entry.attempt):
            if isinstance(step, OnHost):
                output = await self._on_host(step, entry, undo=undo)
            else:
                assert isinstance(step, Here)
                output = await self._here(step, entry, undo=undo)
        self._check("answered")
        return output

    async def _here(self, step: Here, entry: Entry, *, undo: bool) -> msgspec.Raw:
        function = step.undo if undo else step.do
        assert not isinstance(function, NoUndo)
        left = step.timeout if step.persistent else self._left(step, entry)
        async with asyncio.timeout(None if step.timeout >= debt.FOREVER else max(left, 1.0)):
            return encode(await function(self._shop.environment, self._moves.run(self.record)))

    async def _on_host(self, step: OnHost, entry: Entry, *, undo: bool) -> msgspec.Raw:
        run, record, shop = self._moves.run(self.record), self.record, self._shop
        args = (step.undo_args or step.args) if undo else step.args
        host_step = step.undo if undo else step.do
        assert not isinstance(host_step, NoUndo)
        assert entry.host is not None
        source = self._debt.parent if self._debt is not None else record
        backwards, tried = undo, 0
        if self._debt is not None:
            backwards, tried = self._debt.undo, self._debt.tried
        key = command_key(source.id, source.round, step.name, undo=backwards)
        since = record.created_at if self._debt is not None else entry.started_at  # debts are paid in their order
        if await shop.database.read(lambda conn: shop.journal.owes(conn, record.subject, since)):
            raise Unreachable(f"Host {entry.host} still owes earlier work on {record.subject}.")
        command = Command(
            key=key,
            opposite=command_key(source.id, source.round, step.name, undo=not backwards),
            fence=record.id,
            epoch=self._epoch,
            subject=record.subject,
            step=host_step.name,
            args=msgspec.json.encode(args(run)),
            undo=backwards,
            attempt=tried + entry.attempt,
            forgive=entry.resumed == entry.attempt,
        )
        deadline = shop.clock.monotonic() + max(1.0, self._left(step, entry))
        return await shop.hosts.run(
            entry.host, command, deadline=deadline, interrupted=lambda: self._why_end() is not None
        )

    def _left(self, step: Here | OnHost, entry: Entry) -> float:
        """Seconds that the step may still take. The time in which nobody drove it does not count."""
        return max(entry.started_at, self._taken_up) + step.timeout - self._shop.clock.now()

    def _is_patient(self) -> bool:
        return self._shop.clock.now() < self._taken_up + GRACE

    def _entry(self, step: Step, *, undo: bool) -> Entry:
        entry = self._moves.run(self.record).entry(step.name, undo=undo)
        assert entry is not None
        return entry

    async def _pause(self, step: Step, entry: Entry, failure: Failure, *, undo: bool) -> None:
        """Count the failed attempt and wait before the next, longer each time."""
        record = self.record
        declared = step.pause if isinstance(step, (Here, OnHost)) and not undo else None
        if declared is not None:
            seconds = declared(entry.attempt)
        else:
            seconds = min(0.1 * 2 ** min(entry.attempt, 12), MAX_PAUSE) * (0.75 + self._shop.random.random() / 2)
        attempt = entry.attempt + 1
        rest = seconds >= LONG_PAUSE
        await self._commit(
            lambda tx: amend(record, step.name, undo=undo, attempt=attempt, failure=failure),
            wake_in=seconds if rest else None,
        )
        if not rest:
            await self._shop.clock.sleep(seconds)

    async def _owe(self, step: Step, entry: Entry, *, undo: bool) -> None:
        """Journal a debt in place of the step, in the same transaction as going on without it."""
        record, moves, journal = self.record, self._moves, self._shop.journal

        def go_on(tx: Tx) -> OperationRecord:
            owed = debt.incur(record, step, undo=undo, host=entry.host, now=tx.now)
            if journal.get(tx.conn, owed.id) is None:
                journal.insert(tx.conn, owed, wake_at=tx.now + 1.0)
            move = moves.undo_done if undo else moves.step_done
            stays = undo and isinstance(step, OnHost) and step.binds
            going = msgspec.structs.replace(record, back_to=None) if stays else record
            return move(tx, going, step, msgspec.Raw(b"null"), EntryState.OWED)

        log.warning("owed", host=entry.host)
        await self._commit(go_on)

    # --- journal ---------------------------------------------------------------------------------

    async def _commit(self, move: Callable[[Tx], OperationRecord], *, wake_in: float | None = None) -> None:
        """Write the next state of the operation, repeating once for every `Record` step that refuses.

        Args:
            wake_in: lay the operation to rest for so many seconds.

        Raises:
            Fenced: the lease is lost.
        """
        refused: dict[tuple[int, str], Failure] = {}
        while True:
            try:
                self.record, cancel = await self._shop.database.write(
                    lambda conn: self._write(Tx(conn, self._shop.clock.now(), dict(refused)), move, wake_in)
                )
            except RecordFailed as error:
                if error.place in refused:
                    raise
                refused[error.place] = error.failure
            else:
                break
        self._cancel = self._cancel or cancel
        self._resting = self.record.resting
        self._shop.observe(self.record)
        if self.record.state in TERMINAL:
            tracing.ended(self.record, self._moves.definition.waits)
        if self.record.state is OperationState.STRANDED:
            stopped = self.record.entries[-1]
            log.error("operation stranded", error=stopped.failure.message if stopped.failure is not None else "")
        if self._resting or self.record.state in TERMINAL:  # something else is due, or this at another time
            self._shop.wake()

    def _write(
        self, tx: Tx, move: Callable[[Tx], OperationRecord], wake_in: float | None
    ) -> tuple[OperationRecord, str | None]:
        shop = self._shop
        shop.journal.lock(tx.conn, self.record.id)
        record = move(tx)
        ended = record.state in TERMINAL
        waits = self._moves.waits_until(record)
        rests = wake_in is not None or waits is not None or record.state is OperationState.STRANDED
        record = msgspec.structs.replace(record, updated_at=tx.now, resting=rests)
        wake_at = waits if waits is not None else tx.now + (wake_in or 0.0)
        held = not ended and not rests
        cancel = shop.journal.save(
            tx.conn, record, self._epoch, now=tx.now, wake_at=None if ended else wake_at,
            owner=shop.owner if held else None, lease_until=tx.now + shop.ttl if held else None,
        )
        if cancel is not None and rests and record.state is OperationState.RUNNING:
            shop.journal.wake(tx.conn, record.id, tx.now)
        if ended and record.exclusive:
            self._promote(tx, record.subject)
        self._check("written")
        return record, cancel

    def _promote(self, tx: Tx, subject: str) -> None:
        """Let the operation that waited for this one begin."""
        waiting = self._shop.journal.queued(tx.conn, subject)
        if waiting is not None:
            self._shop.journal.replace(
                tx.conn, replace_state(waiting, OperationState.RUNNING), wake_at=tx.now, now=tx.now
            )


def replace_state(record: OperationRecord, state: OperationState) -> OperationRecord:
    return msgspec.structs.replace(record, state=state)


