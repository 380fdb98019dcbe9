"""The scheduler process: one runner over the API database's journal, which places new servers."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from kilonova.bus.protocol import Bus, Subscription
from kilonova.cells.heartbeat import Heartbeat
from kilonova.db.database import Database
from kilonova.db.journal import api_journal
from kilonova.domain.operation import OperationRecord
from kilonova.engine.commands import Hosts
from kilonova.engine.runner import POLL, Runner
from kilonova.engine.workshop import Workshop
from kilonova.notifications.deliverer import Deliverer
from kilonova.operations.catalogue import API_OPERATIONS
from kilonova.operations.environment import PlacingEnvironment

WAKE = "kn.wake.api"
"""Where schedulers hear that there is work."""


class SchedulerService:
    """Drives the operations over the API database.

    Args:
        name: of this process, new at every start. alone: no other scheduler can be alive.
        deliverer: of the notifications in the API database, None if nobody is told.
        poll, observe, checkpoint: see `Runner` and `Workshop`.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        environment: PlacingEnvironment,
        bus: Bus,
        random: Random,
        *,
        alone: bool = False,
        ttl: float = 10.0,
        poll: float = POLL,
        deliverer: Deliverer | None = None,
        observe: Callable[[OperationRecord], None] = lambda _record: None,
        checkpoint: Callable[[str], None] = lambda _place: None,
    ) -> None:
        clock = environment.clock
        self._bus = bus
        self.runner = Runner(
            Workshop(
                database=database,
                journal=api_journal,
                definitions=API_OPERATIONS,
                environment=environment,
                hosts=Hosts(bus, clock),
                clock=clock,
                random=random,
                owner=name,
                ttl=ttl,
                wake=self.wake,
                observe=observe,
                checkpoint=checkpoint,
            ),
            alone=alone,
            poll=poll,
        )
        self._heartbeat = Heartbeat(environment.cells.all[0].database, clock, "nova-scheduler", name)
        self._deliverer = deliverer
        self._subscription: Subscription | None = None

    def wake(self) -> None:
        """There may be a server to place."""
        self.runner.wake()

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(WAKE, self._on_wake)
        await self.runner.start()
        self._heartbeat.start()
        if self._deliverer is not None:
            await self._deliverer.start()

    async def _on_wake(self, _subject: str, payload: bytes) -> None:
        if payload:
            self.runner.note_cancel(payload.decode(), "asked to end")
        self.wake()

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()
        if self._deliverer is not None:
            await self._deliverer.close()
        await self._heartbeat.close()
        await self.runner.close()
