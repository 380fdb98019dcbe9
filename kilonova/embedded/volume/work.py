"""Driving the operations of the volume service: accepting them, waiting for them, going on after a restart."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from random import Random

import msgspec
import sqlalchemy as sa

from kilonova.bus.local import LocalBus
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError, NotFound, ServiceUnavailable
from kilonova.domain.operation import (
    TERMINAL,
    Asker,
    EntryState,
    ExternalEvent,
    Failure,
    OperationRecord,
    OperationState,
)
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.catalogue import VOLUME_OPERATIONS
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.engine.commands import Hosts
from kilonova.engine.operation import Operation, Tx
from kilonova.engine.runner import POLL, Runner
from kilonova.engine.submit import Busy, submit
from kilonova.engine.workshop import Workshop

ANSWER_LIMIT = 60.0
"""Seconds for which a caller waits for an operation that it wants the result of."""
LEASE = 10.0

_ERRORS: dict[int, type[KilonovaError]] = {
    error.status: error for error in (InvalidInput, NotFound, Conflict, ServiceUnavailable)
}


class NotYet(KilonovaError):
    """An operation goes on, but its caller has waited long enough; asking again is safe. Spec: EMV-21."""

    status = 504


class VolumeWork:
    """The operations of one volume service.

    Args:
        poll, checkpoint: see `kilonova.engine`.
    """

    def __init__(
        self, environment: VolumeEnvironment, random: Random, *, poll: float = POLL,
        checkpoint: Callable[[str], None] = lambda _place: None,
    ) -> None:
        self._database = environment.database
        self._clock = environment.clock
        self._waiting: dict[tuple[str, str], asyncio.Future[OperationRecord]] = {}
        """By operation and step, "" for its end: who waits for that."""
        self.runner = Runner(
            Workshop(
                database=environment.database, journal=schema.journal, definitions=VOLUME_OPERATIONS,
                environment=environment, hosts=Hosts(LocalBus(), environment.clock), clock=environment.clock,
                random=random, owner=f"{random.getrandbits(64):x}@volumes", ttl=LEASE, wake=self.wake,
                observe=self._observe, checkpoint=checkpoint,
            ),
            alone=True, poll=poll,
        )

    def wake(self, cancelled: str | None = None) -> None:
        """There may be work in the journal. cancelled: an operation that was asked to end, if any."""
        if cancelled is not None:
            self.runner.note_cancel(cancelled, "asked to end")
        self.runner.wake()

    def _observe(self, record: OperationRecord) -> None:
        for waits in [waits for waits in self._waiting if waits[0] == record.id]:
            if _has_reached(record, waits[1]):
                waiting = self._waiting.pop(waits)
                if not waiting.done():
                    waiting.set_result(record)

    async def begin(
        self, caller: RequestContext, operation: Operation, subject: str, request: msgspec.Struct, *,
        check: Callable[[sa.Connection], object] = lambda _conn: None, join: bool = False,
    ) -> OperationRecord:
        """Accept an operation; it goes on by itself.

        Args:
            check: refuses by raising, in the transaction that accepts.
            join: one of its kind that works on the subject already is as good.

        Raises:
            InvalidVolume: another operation works on it. Whatever the operation's `begins` raises.
        """
        asker = Asker(project_id=caller.project_id or "", user_id=caller.user_id, request_id=caller.request_id,
                      global_request_id=caller.global_request_id or "")
        now, operation_id = self._clock.now(), str(uuid.uuid4())

        def unit(conn: sa.Connection) -> tuple[OperationRecord, str | None]:
            check(conn)
            accepted = submit(
                Tx(conn, now), schema.journal, operation, subject, request, asker, operation_id=operation_id
            )
            if accepted.record.id != operation_id and not join:
                raise Busy(accepted.record)
            return accepted.record, accepted.preempted

        try:
            record, preempted = await self._database.write(unit)
        except Busy as error:
            raise InvalidVolume(subject, f"is being worked on ({error.holder.kind})") from error
        if preempted is not None:
            self.runner.note_cancel(preempted, f"pre-empted by {operation.name}")
        self.wake()
        return record

    async def finish(
        self, caller: RequestContext, operation: Operation, subject: str, request: msgspec.Struct, *,
        check: Callable[[sa.Connection], object] = lambda _conn: None, limit: float = ANSWER_LIMIT,
    ) -> None:
        """Accept an operation and wait for its end, for `limit` seconds.

        Raises:
            NotYet: it goes on. Otherwise as `begin`, or what the operation failed of.
        """
        accepted = await self.begin(caller, operation, subject, request, check=check, join=True)
        await self.reach(accepted, limit=limit)

    async def reach(self, operation: OperationRecord, step: str = "", *, limit: float = ANSWER_LIMIT) -> None:
        """Wait for the end of an operation, or until a step of it is done, for `limit` seconds.

        Raises:
            NotYet: it goes on. Otherwise what the operation failed of.
        """
        waits = (operation.id, step)
        future = self._waiting.setdefault(waits, asyncio.get_running_loop().create_future())
        found = await self._database.read(lambda conn: schema.journal.get(conn, operation.id))
        if found is not None:  # it may have come before anybody listened
            self._observe(found)
        try:
            async with asyncio.timeout(limit):
                reached = await asyncio.shield(future)
        except TimeoutError as error:
            raise NotYet(f"Operation {operation.kind} {operation.id} still goes on.", hint="ask again") from error
        if _has_ended(reached) and reached.state is not OperationState.SUCCEEDED:
            raise _error(reached.failure)

    async def deliver(self, event: ExternalEvent) -> bool:
        """Hand an event to the operation that works on its subject; False if there is none."""
        now = self._clock.now()
        kept = await self._database.write(lambda conn: schema.journal.add_event(conn, event, now))
        self.wake()
        return kept


def _has_ended(record: OperationRecord) -> bool:
    return record.state in TERMINAL or record.state is OperationState.STRANDED


def _has_reached(record: OperationRecord, step: str) -> bool:
    done = any(one.step == step and one.state is EntryState.DONE and not one.undo for one in record.entries)
    return done or _has_ended(record)


def _error(failure: Failure | None) -> KilonovaError:
    if failure is None:
        return ServiceUnavailable("The operation is stranded.", hint="`kilonova ops` tells why")
    return _ERRORS.get(failure.status, KilonovaError)(failure.message)
