"""A conductor's runner: finds operations that are due, leases them, drives them, keeps the leases alive."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import sqlalchemy as sa
import structlog

from kilonova.db.journal import Owned
from kilonova.domain.errors import Fenced, KilonovaError
from kilonova.engine.driver import Driver
from kilonova.engine.workshop import Workshop

log = structlog.get_logger(__name__)

POLL = 1.0
"""Seconds between looks at the journal when nothing wakes the runner: bounds what a lost message can cost."""


class Runner:
    """Drives the operations of one journal.

    Args:
        shop: what driving needs. concurrency: operations driven at once.
        alone: no other process can hold leases on this journal (one-machine mode), so that what a dead
            predecessor held is taken up at once.
        poll: seconds between looks when nothing wakes it.
    """

    def __init__(self, shop: Workshop, *, concurrency: int = 256, alone: bool = False,
                 poll: float = POLL) -> None:
        self._shop = shop
        self._concurrency = concurrency
        self._alone = alone
        self._poll = poll
        self._woken = asyncio.Event()
        self._drivers: dict[str, tuple[Driver, asyncio.Task[None]]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def wake(self) -> None:
        """There may be something due."""
        self._woken.set()

    def note_cancel(self, operation_id: str, reason: str) -> None:
        """Tell the driver at once, if this process drives the operation."""
        running = self._drivers.get(operation_id)
        if running is not None:
            running[0].note_cancel(reason)

    @property
    def busy(self) -> int:
        """Operations driven now."""
        return len(self._drivers)

    async def start(self) -> None:
        if self._alone:
            await self._shop.database.write(self._shop.journal.expire_leases)
        self._tasks = [asyncio.create_task(self._claim_loop()), asyncio.create_task(self._renew_loop())]

    async def _claim_loop(self) -> None:
        while True:
            self._woken.clear()
            pause = self._poll
            try:
                pause = await self._until_due()
                if pause <= 0:
                    await self._claim()
            except KilonovaError as error:
                log.warning("cannot read the journal", error=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(pause, 0.0)):
                    await self._woken.wait()

    async def _claim(self) -> None:
        shop = self._shop
        room = self._concurrency - len(self._drivers)
        if room <= 0:  # woken by the next one that ends
            self._woken.clear()
            await self._woken.wait()
            return
        now = shop.clock.now()
        owned = await shop.database.write(
            lambda conn: shop.journal.claim(conn, shop.owner, now=now, until=now + shop.ttl, count=min(room, 64))
        )
        for one in owned:
            self._drive(one)

    async def _until_due(self) -> float:
        now = self._shop.clock.now()
        due = await self._shop.database.read(lambda conn: self._shop.journal.next_due(conn, now))
        return self._poll if due is None else min(self._poll, due - now)

    def _drive(self, owned: Owned) -> None:
        try:
            driver = Driver(self._shop, owned)
        except LookupError as error:
            log.error("operation left for a release that knows it", error=str(error))
            return
        operation_id = owned.record.id
        task = asyncio.create_task(self._run(driver))
        self._drivers[operation_id] = (driver, task)

        def done(_task: asyncio.Task[None]) -> None:
            if self._drivers.get(operation_id, (None, None))[1] is _task:
                del self._drivers[operation_id]
            if len(self._drivers) >= self._concurrency - 1:
                self._woken.set()

        task.add_done_callback(done)

    async def _run(self, driver: Driver) -> None:
        record = driver.record
        try:
            await driver.drive()
        except Fenced:
            log.info("operation taken over by another conductor", operation=record.id, kind=record.kind)
        except KilonovaError as error:  # the database is away: the lease runs out and somebody adopts it
            log.warning("operation laid down", operation=record.id, kind=record.kind, error=str(error))
        except Exception:
            log.exception("operation laid down by a defect", operation=record.id, kind=record.kind)

    async def _renew_loop(self) -> None:
        shop = self._shop
        while True:
            await shop.clock.sleep(shop.ttl / 3)
            if not self._drivers:
                continue
            until = shop.clock.now() + shop.ttl
            try:
                await shop.database.write(self._renewal(until))
            except KilonovaError as error:
                log.warning("leases not renewed", error=str(error))

    def _renewal(self, until: float) -> Callable[[sa.Connection], None]:
        return lambda conn: self._shop.journal.renew(conn, self._shop.owner, until)

    async def close(self) -> None:
        """Stop at once. Nothing is lost: whoever starts next goes on from the journal."""
        tasks = [*self._tasks, *(task for _, task in self._drivers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drivers.clear()
