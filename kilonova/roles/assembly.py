"""Putting the parts of each role together from a configuration. One-machine mode and separate processes share it."""

from __future__ import annotations

import asyncio
import secrets
import socket
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom

import sqlalchemy as sa

from kilonova.agent.agent import Agent
from kilonova.bus.protocol import Bus
from kilonova.cells.kept_off import KeptOffHosts
from kilonova.cells.registry import Cell, Cells
from kilonova.conductor.conductor import Conductor, wake_subject
from kilonova.conductor.hosts import HostReports
from kilonova.config import AgentOptions, Config
from kilonova.console.proxy import ConsoleProxy
from kilonova.console.site import ConsoleSite
from kilonova.db import flavors, instances, outbox, upgrade
from kilonova.db.aggregates import StoredGroupings
from kilonova.db.database import Database
from kilonova.db.placement.hosts import HostSettings
from kilonova.db.schema import API, CELL
from kilonova.domain.clock import Clock
from kilonova.domain.operation import OperationRecord
from kilonova.embedded.schema import IDENTITY, IMAGE, NETWORK
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.fake_screen import FakeScreens
from kilonova.hypervisor.guest import NetworkBandwidth, PacketRate
from kilonova.imaging.signatures import ImageSignatures
from kilonova.metrics.measures import Metrics
from kilonova.notifications.changes import watch_states
from kilonova.notifications.deliverer import Deliverer
from kilonova.operations.consoles import Consoles
from kilonova.operations.environment import Environment, PlacingEnvironment
from kilonova.operations.service import ComputeOperations
from kilonova.roles import sinks
from kilonova.scheduler.placing import Placing
from kilonova.scheduler.scheduler import Scheduler
from kilonova.scheduler.service import WAKE, SchedulerService
from kilonova.services import cyborg
from kilonova.services.image import ImageService
from kilonova.services.network import NetworkService
from kilonova.services.volumes import VolumeService

CELLS = uuid.UUID("5d3c0f9e-3c55-4d0e-8a55-9d7f1f0f6c11")


@dataclass(frozen=True)
class Ground:
    """What every role stands on."""

    config: Config
    clock: Clock
    bus: Bus
    api: Database
    cell: Database
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def cells(self) -> Cells:
        name = self.config.cell.name
        return Cells(self.api, (Cell(name, str(uuid.uuid5(CELLS, name)), self.cell),))


async def databases(config: Config, clock: Clock, stack: AsyncExitStack) -> tuple[Database, Database]:
    """Open the API and the cell database, making what is not there yet; the stack closes them.

    Raises:
        KilonovaError: a database does not answer, or has tables that this release cannot work with.
    """
    listeners = config.notifications.listeners(own_host(config))
    options = {outbox.OPTION: listeners, instances.WATCHER: watch_states} if listeners is not None else None
    api = Database.open(config.database_url("api"), pool_size=config.database.pool_size, options=options)
    stack.push_async_callback(api.close)
    cell = api
    if config.database_url("cell") != config.database_url("api"):
        cell = Database.open(config.database_url("cell"), pool_size=config.database.pool_size, options=options)
        stack.push_async_callback(cell.close)
    for schema in (API, IDENTITY, IMAGE, NETWORK):
        await upgrade.ensure(api, schema)
    await upgrade.ensure(cell, CELL)
    await api.write(lambda conn: _seed(conn, clock.now()))
    return api, cell


def _seed(conn: sa.Connection, now: float) -> None:
    """Make the usual flavors; processes that start at the same time take turns."""
    upgrade.take_lock(conn)
    flavors.seed(conn, now=now)


class Wakes:
    """Telling runners that there is work: over the bus, and at once to those in this process."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._sending: set[asyncio.Task[None]] = set()

    def api(self, cancelled: str | None = None) -> None:
        self._send(WAKE, cancelled)

    def cell(self, name: str, cancelled: str | None = None) -> None:
        self._send(wake_subject(name), cancelled)

    def _send(self, subject: str, cancelled: str | None) -> None:
        task = asyncio.get_running_loop().create_task(self._bus.publish(subject, (cancelled or "").encode()))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)


def own_host(config: Config) -> str:
    """The name of this machine as a host."""
    return config.agent.host or socket.gethostname()


def placing(ground: Ground) -> Placing:
    """Scheduler and claims over the API database."""
    options = ground.config.scheduler
    groupings = StoredGroupings()
    scheduler = Scheduler(
        ground.api, ground.clock, SystemRandom(), groupings=groupings, kept_off=KeptOffHosts(ground.cells),
        service_down_time=options.service_down_time, default_zone=options.default_availability_zone,
        observer=_counter(ground.config, ground.metrics),
    )
    settings = HostSettings(
        initial_cpu_allocation_ratio=options.initial_cpu_allocation_ratio,
        initial_ram_allocation_ratio=options.initial_ram_allocation_ratio,
        initial_disk_allocation_ratio=options.initial_disk_allocation_ratio,
        reserved_host_cpus=options.reserved_host_cpus,
        reserved_host_memory_mb=options.reserved_host_memory_mb,
        reserved_host_disk_mb=options.reserved_host_disk_mb,
    )
    return Placing(
        ground.api, scheduler, groupings=groupings, default_zone=options.default_availability_zone, settings=settings,
        observer=_counter(ground.config, ground.metrics),
    )


def conductor(
    ground: Ground, placing_: Placing, networks: NetworkService, images: ImageService, volumes: VolumeService, *,
    alone: bool, name: str = "",
) -> Conductor:
    """A conductor of this process's cell."""
    config = ground.config
    (cell,) = ground.cells.all
    environment = Environment(
        cell.name, ground.cell, networks, placing_, ground.clock, config.operations, images,
        cyborg.accelerators(config.accelerator), volumes,
    )
    reports = HostReports(
        cell.uuid, ground.cell, placing_, ground.clock, config.operations,
        resume_guests=config.agent.resume_guests_state_on_host_boot,
    )
    owner = f"{secrets.token_hex(8)}@{name or own_host(config)}"
    return Conductor(
        owner, environment, ground.bus, reports, SystemRandom(), alone=alone, ttl=config.lease_seconds,
        deliverer=_deliverer(ground, ground.cell, outbox.cell_outbox, owner, alone=alone),
        observe=_observer(ground), audit_period=config.notifications.audit_period,
        audit_retention=config.notifications.instance_usage_audit_retention,
    )


def _observer(ground: Ground) -> Callable[[OperationRecord], None]:
    """What counts operations, if somebody wants to know."""
    return ground.metrics.observe if ground.config.metrics.port else lambda _record: None


def _counter(config: Config, metrics: Metrics) -> Metrics | None:
    """What counts all else, if somebody wants to know."""
    return metrics if config.metrics.port else None


def _deliverer(ground: Ground, database: Database, of: outbox.Outbox, owner: str, *, alone: bool) -> Deliverer | None:
    """What brings the notifications in a database to their sinks; None if nobody is told."""
    options = ground.config.notifications
    if not options.sinks:
        return None
    return Deliverer(
        database, of, sinks.open_all(ground.config), ground.clock, SystemRandom(), owner,
        retention=options.retention, alone=alone,
    )


def scheduler(ground: Ground, placing_: Placing, wakes: Wakes, *, alone: bool) -> SchedulerService:
    """A scheduler."""
    environment = PlacingEnvironment(
        ground.cells, placing_, placing_, ground.clock, ground.config.operations, wakes.cell
    )
    owner = f"{secrets.token_hex(8)}@{own_host(ground.config)}"
    return SchedulerService(
        owner, ground.api, environment, ground.bus, SystemRandom(), alone=alone, ttl=ground.config.lease_seconds,
        deliverer=_deliverer(ground, ground.api, outbox.api_outbox, owner, alone=alone), observe=_observer(ground),
    )


def compute(ground: Ground, wakes: Wakes) -> ComputeOperations:
    """What the API asks for operations."""
    return ComputeOperations(
        ground.cells, ground.bus, ground.clock, ground.config.operations, wake_api=wakes.api, wake_cell=wakes.cell
    )


def consoles(ground: Ground, url: str) -> Consoles:
    """What makes and judges the tokens of consoles. url: where clients reach this process."""
    return Consoles(ground.cells, ground.bus, ground.clock, ground.config.consoles, url)


def console_site(ground: Ground, judge: Consoles, url: str) -> ConsoleSite:
    """The pages and the proxy of consoles."""
    origins = ground.config.consoles.allowed_origins
    return ConsoleSite(ConsoleProxy(judge, ground.clock, url=url, allowed_origins=origins))


def agent(
    config: Config, host: str, driver: Driver, bus: Bus, journal: Database, clock: Clock, metrics: Metrics,
    images: ImageService | None = None,
) -> Agent:
    """The agent of one host. images: None if it cannot reach the image service."""
    options = config.agent
    return Agent(
        host, driver, bus, journal, clock, images=images, report_interval=options.report_interval,
        max_concurrent_builds=options.max_concurrent_builds if options.driver == "libvirt" else 0,
        max_concurrent_disk_ops=options.max_concurrent_disk_ops,
        max_concurrent_snapshots=options.max_concurrent_snapshots, image_cache=config.image_cache,
        device_specs=config.pci.device_spec,
        observer=_counter(config, metrics), bandwidths=_bandwidths(options),
        packet_rate=PacketRate(
            kpps=options.network_kpps, egress_kpps=options.network_egress_kpps,
            ingress_kpps=options.network_ingress_kpps,
        ),
    )


def _bandwidths(options: AgentOptions) -> tuple[NetworkBandwidth, ...]:
    own = NetworkBandwidth(egress_kbps=options.network_egress_kbps, ingress_kbps=options.network_ingress_kbps)
    return own, *(
        NetworkBandwidth(physical_network=name, egress_kbps=one.egress_kbps, ingress_kbps=one.ingress_kbps)
        for name, one in options.physical_networks.items()
    )


def signatures(config: Config, clock: Clock) -> ImageSignatures:
    """Which images the hosts of this process take, and the certificates that they know."""
    options = config.image_signatures
    return ImageSignatures(options, Path(options.certificates or config.directory / "certificates"), clock)


def fake_hosts(config: Config, directory: Path, clock: Clock) -> dict[str, Driver]:
    """The simulated hosts of this process, by name."""
    base = own_host(config)
    names = [base] if config.agent.hosts == 1 else [f"{base}-{n}" for n in range(1, config.agent.hosts + 1)]
    drivers: dict[str, Driver] = {}
    for name in names:
        hypervisor = FakeHypervisor(
            name, directory / "fake" / name, screens=FakeScreens(), signatures=signatures(config, clock)
        )
        hypervisor.faults.latency = config.agent.fake_latency
        drivers[name] = FakeDriver(hypervisor, clock)
    return drivers


Progress = Callable[[str, str], None]
"""Called with (component, what it does now) as an installation comes up."""
