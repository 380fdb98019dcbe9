"""The agent: one hypervisor host's side of the bus."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import structlog

import kilonova
from kilonova.agent import queries
from kilonova.agent.image_cache import DEFAULT, ImageCacheOptions, image_cache_rounds
from kilonova.agent.observed import Nobody, Observer
from kilonova.agent.reports import REFUSED, HostReport, PowerReport, Query
from kilonova.agent.steps import ALL
from kilonova.agent.steps.environment import HostEnvironment
from kilonova.bus.protocol import Bus, Subscription
from kilonova.bus.subjects import from_host, to_host
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InvalidInput, KilonovaError, Unreachable
from kilonova.engine.commands import REPLY_LIMIT
from kilonova.engine.host import HostExecutor
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.guest import GuestEvent, HostInventory, NetworkBandwidth, PacketRate
from kilonova.services.image import ImageService
from kilonova.shapes.host import HostTopology
from kilonova.shapes.pci_requests import DeviceSpec, offered

log = structlog.get_logger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode_query = msgspec.msgpack.Decoder(Query).decode

ANNOUNCE_PAUSE = 2.0
"""Seconds between announcements of a host that no conductor has heard yet."""

JOURNAL_DAYS = 7
"""Finished commands are remembered so long: longer than any conductor goes on repeating one."""


class Agent:
    """Runs host steps, reports the host, answers queries.

    Args:
        host: name under which it is known. journal: the host's own database.
        images: the image service, None if it cannot be reached from here.
        report_interval: seconds between reports. max_concurrent_builds, max_concurrent_disk_ops,
            max_concurrent_snapshots: 0 for no limit.
        device_specs: the PCI devices that guests may have.
        bandwidths, packet_rate: what the host carries of networks.
        checkpoint: see `HostExecutor`. observer: counts steps and guests.
    """

    def __init__(self, host: str, driver: Driver, bus: Bus, journal: Database, clock: Clock, *,
                 images: ImageService | None = None, report_interval: float = 10.0, max_concurrent_builds: int = 10,
                 max_concurrent_disk_ops: int = 0, max_concurrent_snapshots: int = 0,
                 image_cache: ImageCacheOptions = DEFAULT, device_specs: Sequence[DeviceSpec] = (),
                 bandwidths: tuple[NetworkBandwidth, ...] = (), packet_rate: PacketRate | None = None,
                 checkpoint: Callable[[str], None] = lambda _place: None, observer: Observer | None = None) -> None:
        self.host = host
        self._observer = observer or Nobody()
        self.executor = HostExecutor(
            host, ALL, HostEnvironment(host, driver, clock, images), journal, clock, max_heavy=max_concurrent_builds,
            max_disk_work=max_concurrent_disk_ops, max_snapshots=max_concurrent_snapshots, checkpoint=checkpoint,
            observe=partial(self._observer.host_step, host),
        )
        self._driver = driver
        self._device_specs = device_specs
        self._bus = bus
        self._clock = clock
        self._report_interval = report_interval
        self._bandwidths = bandwidths
        self._packet_rate = packet_rate or PacketRate()
        self._cache = image_cache_rounds(driver, clock, image_cache)
        self._subscriptions: list[Subscription] = []
        self._changed: asyncio.Queue[GuestEvent] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect to the hypervisor, look at it, announce the host, then listen for commands.

        Returns when the host serves, or when no conductor has heard of it for a while; it goes on trying then. Raises
        what the driver raises: a host that cannot be looked at does not begin to serve. Raises InvalidInput if a
        conductor refuses the host; then it has closed everything. Spec: INI-006, INI-015, INI-022, INI-023.
        """
        await self._driver.start(self._changed.put_nowait)
        serving = asyncio.create_task(self._serve(await self._look(started=True)))
        self._tasks = [serving]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPLY_LIMIT):
                await asyncio.wait({serving})
        if serving.done() and serving.exception() is not None:
            await self.close()
            serving.result()

    async def _serve(self, found: HostReport) -> None:
        """No command is taken, and no event of a guest told, before conductors have begun to recover the servers.

        Spec: INI-016, INI-020, LCE-22.
        """
        await self._announce(found)
        for subject, handler in (("command", self.executor.handle), ("query", self._answer)):
            self._subscriptions.append(await self._bus.subscribe(to_host(self.host, subject), handler))
        self._tasks += [asyncio.create_task(self._report_loop()), asyncio.create_task(self._event_loop())]
        self._cache.start()

    async def _look(self, *, started: bool = False) -> HostReport:
        report = HostReport(
            host=self.host,
            driver=self._driver.name,
            started=started,
            version=kilonova.__version__,
            inventory=await self._inventory(),
            guests=tuple(await self._driver.guests()),
        )
        self._observer.guests(self.host, Counter(guest.power_state.name.lower() for guest in report.guests))
        return report

    async def _inventory(self) -> HostInventory:
        """With the devices that guests may have, and what the network carries."""
        found = msgspec.structs.replace(
            await self._driver.inventory(), bandwidths=self._bandwidths, packet_rate=self._packet_rate
        )
        if not self._device_specs:
            return found
        devices = offered(await self._driver.pci_devices(), self._device_specs)
        cells = found.topology.cells if found.topology is not None else ()
        return msgspec.structs.replace(found, topology=HostTopology(cells, devices))

    async def _report_loop(self) -> None:
        ticks = 0
        while True:
            await self._clock.sleep(self._report_interval)
            ticks += 1
            try:
                await self._bus.publish(from_host(self.host, "report"), _encode(await self._look()))
                if ticks % 360 == 0:
                    await self.executor.forget(self._clock.now() - JOURNAL_DAYS * 86400)
            except KilonovaError as error:
                log.warning("host not reported", host=self.host, error=str(error))

    async def _announce(self, found: HostReport) -> None:
        """Say that the host is back until a conductor has taken note, because recovery begins with that. Raises
        InvalidInput if it refuses the host as it is configured."""
        while True:
            try:
                answer = await self._bus.request(from_host(self.host, "report"), _encode(found), timeout=REPLY_LIMIT)
            except Unreachable:
                await self._clock.sleep(min(ANNOUNCE_PAUSE, self._report_interval))
            else:
                if not answer.startswith(REFUSED):
                    return
                log.error("this host must not serve", host=self.host, reason=answer.removeprefix(REFUSED).decode())
                raise InvalidInput(answer.removeprefix(REFUSED).decode())
            try:
                found = await self._look(started=True)
            except KilonovaError as error:
                log.warning("host not reported", host=self.host, error=str(error))

    async def _event_loop(self) -> None:
        """Tell of guests that changed by themselves, one after the other. Spec: LCE-16, LCE-17."""
        while True:
            event = await self._changed.get()
            try:
                await self._tell(event)
            except Exception as error:  # noqa: BLE001 - the next event must be told, and the next report tells all
                log.warning("event of a guest not told", instance=event.uuid, error=str(error))

    async def _tell(self, event: GuestEvent) -> None:
        """Tell of a change, unless the guest has changed again since. Spec: LCE-05, LCE-07."""
        log.info("guest changed by itself", host=self.host, instance=event.uuid, transition=event.transition)
        if await self._driver.power_state(event.uuid) is not event.power_state:
            return
        report = PowerReport(
            host=self.host, uuid=event.uuid, power_state=event.power_state, transition=event.transition
        )
        await self._bus.publish(from_host(self.host, "event"), _encode(report))

    async def _answer(self, _subject: str, payload: bytes) -> bytes:
        return _encode(await queries.answer(self._driver, _decode_query(payload)))

    async def close(self) -> None:
        """Stop; guests keep running, and what was being done goes on after the next start.

        Each step of the exit happens whatever the others meet; then the first error is raised. Spec: INI-183, INI-189.
        """
        async with contextlib.AsyncExitStack() as exit_:  # the last one pushed is the first to happen
            exit_.push_async_callback(self._driver.close)
            exit_.push_async_callback(self.executor.close)
            for subscription in self._subscriptions:
                exit_.push_async_callback(subscription.unsubscribe)
            exit_.push_async_callback(self._cache.close)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
