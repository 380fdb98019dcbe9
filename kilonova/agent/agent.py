"""The agent: one hypervisor host's side of the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import structlog

import kilonova
from kilonova.agent.reports import Answer, ConsoleQuery, Found, HostReport, PowerReport, Query
from kilonova.agent.steps import ALL, HostEnvironment
from kilonova.bus.protocol import Bus, Subscription
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.engine.host import HostExecutor
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.guest import GuestEvent

log = structlog.get_logger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode_query = msgspec.msgpack.Decoder(Query).decode

JOURNAL_DAYS = 7
"""Finished commands are remembered so long: longer than any conductor goes on repeating one."""


class Agent:
    """Runs host steps, reports the host, answers queries.

    Args:
        host: name under which it is known. journal: the host's own database.
        report_interval: seconds between reports. max_concurrent_builds: 0 for no limit.
        checkpoint: see `HostExecutor`.
    """

    def __init__(self, host: str, driver: Driver, bus: Bus, journal: Database, clock: Clock, *,
                 report_interval: float = 10.0, max_concurrent_builds: int = 10,
                 checkpoint: Callable[[str], None] = lambda _place: None) -> None:
        self.host = host
        self.executor = HostExecutor(
            host, ALL, HostEnvironment(host, driver, clock), journal, clock, max_heavy=max_concurrent_builds,
            checkpoint=checkpoint,
        )
        self._driver = driver
        self._bus = bus
        self._clock = clock
        self._report_interval = report_interval
        self._subscriptions: list[Subscription] = []
        self._changed: asyncio.Queue[GuestEvent] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect to the hypervisor, listen for commands, report. Raises what the driver raises."""
        await self._driver.start(self._changed.put_nowait)
        for subject, handler in (("command", self.executor.handle), ("query", self._answer)):
            self._subscriptions.append(await self._bus.subscribe(f"kn.host.{self.host}.{subject}", handler))
        await self._report(started=True)
        self._tasks = [asyncio.create_task(self._report_loop()), asyncio.create_task(self._event_loop())]

    async def _report(self, *, started: bool = False) -> None:
        report = HostReport(
            host=self.host,
            driver=self._driver.name,
            started=started,
            version=kilonova.__version__,
            inventory=await self._driver.inventory(),
            guests=tuple(await self._driver.guests()),
        )
        await self._bus.publish(f"kn.from.{self.host}.report", _encode(report))

    async def _report_loop(self) -> None:
        ticks = 0
        while True:
            await self._clock.sleep(self._report_interval)
            ticks += 1
            try:
                await self._report()
                if ticks % 360 == 0:
                    await self.executor.forget(self._clock.now() - JOURNAL_DAYS * 86400)
            except KilonovaError as error:
                log.warning("host not reported", host=self.host, error=str(error))

    async def _event_loop(self) -> None:
        while True:
            event = await self._changed.get()
            report = PowerReport(
                host=self.host, uuid=event.uuid, power_state=event.power_state, transition=event.transition
            )
            with contextlib.suppress(KilonovaError):  # the next report tells the same
                await self._bus.publish(f"kn.from.{self.host}.event", _encode(report))

    async def _answer(self, _subject: str, payload: bytes) -> bytes:
        query = _decode_query(payload)
        try:
            if isinstance(query, ConsoleQuery):
                return _encode(Answer(console=await self._driver.console_output(query.uuid, query.limit)))
            found = Found(guests=tuple(await self._driver.guests()), disks=tuple(await self._driver.disks()))
            return _encode(Answer(found=found))
        except KilonovaError as error:
            return _encode(Answer(error=error.message, status=error.status))

    async def close(self) -> None:
        """Stop; guests keep running, and what was being done goes on after the next start."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.executor.close()
        await self._driver.close()
