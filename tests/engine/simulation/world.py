"""A whole cloud in one virtual second hand: api, scheduler, conductors, agents, and what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import sqlalchemy as sa
from accelerated import PCI_DEVICES
from host_devices import SPECS

from kilonova.agent.agent import Agent
from kilonova.cells.kept_off import KeptOffHosts
from kilonova.cells.registry import Cell, Cells
from kilonova.conductor.conductor import Conductor
from kilonova.conductor.hosts import HostReports
from kilonova.db import instances, outbox
from kilonova.db.aggregates import StoredGroupings
from kilonova.db.database import Database
from kilonova.db.instances import WATCHER
from kilonova.db.schema import api_metadata, cell_metadata
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.notification import Listeners
from kilonova.domain.operation import ExternalEvent
from kilonova.domain.states import PowerState, TaskState
from kilonova.engine.host import host_metadata
from kilonova.hypervisor.fake import FakeDriver, FakeGuest, FakeHypervisor
from kilonova.hypervisor.volumes import NbdSource
from kilonova.notifications.changes import watch_states
from kilonova.notifications.deliverer import Deliverer
from kilonova.operations.environment import Environment, PlacingEnvironment
from kilonova.operations.options import OperationOptions
from kilonova.operations.service import ComputeOperations
from kilonova.scheduler.placing import Placing
from kilonova.scheduler.scheduler import Scheduler
from kilonova.scheduler.service import SchedulerService
from kilonova.shapes.host import HostTopology
from kilonova.shapes.pci import PciDevice
from simulation.accelerators import Accelerators
from simulation.images import Shelf
from simulation.listeners import LISTENERS, Ears
from simulation.loop import VirtualLoop
from simulation.network import Net
from simulation.process import Process, SimBus, SimClock, SimDatabase, Trouble, Wire
from simulation.volumes import Volumes

CELL = "cell1"
TTL = 6.0
POLL = 5.0
"""Virtual seconds after which a runner looks into its journal although nobody has woken it."""
IMAGE = Image(id="22222222-2222-4222-8222-222222222222")
OPTIONS = OperationOptions(
    shutdown_timeout=20.0, wait_soft_reboot_seconds=15.0, vif_plugging_timeout=30.0, max_attempts=3,
    running_deleted_instance_action="noop", instance_delete_interval=-1.0,
    heal_instance_info_cache_interval=0.0,
)
"""Nothing looks for leftovers, so that they are found by the tests."""


class Everybody:
    """Guests in which an agent answers: all."""

    def __contains__(self, _uuid: object) -> bool:
        return True


class Databases:
    """Databases that are opened once per worker and emptied between runs (making tables costs more than a run).

    Args:
        told: others are told of what happens in them. states: of which states of servers, as of `Listeners`.
    """

    def __init__(self, *, told: bool = False, states: str = "") -> None:
        self.told = told
        listeners = Listeners(sinks=LISTENERS, host="here", state_changes=states)
        options = {outbox.OPTION: listeners, WATCHER: watch_states} if told else None
        self.api = Database.open("sqlite://", options=options)
        self.cell = Database.open("sqlite://", options=options)
        self.hosts: list[Database] = [Database.open("sqlite://") for _ in range(4)]
        self._made = False

    async def empty(self) -> None:
        for database, metadata in (
            (self.api, api_metadata), (self.cell, cell_metadata), *((h, host_metadata) for h in self.hosts)
        ):
            if not self._made:
                await database.write(metadata.create_all)
            else:
                await database.write(partial(_empty, metadata))
        self._made = True


def _empty(metadata: sa.MetaData, conn: sa.Connection) -> None:
    """In the driver's own terms: this is done ten thousand times."""
    driver = conn.connection.driver_connection
    for table in reversed(metadata.sorted_tables):
        driver.execute(f"DELETE FROM {table.name}")


class WatchedHypervisor(FakeHypervisor):
    """Raises the alarm when a guest runs twice."""

    def __init__(self, host: str, world: World, topology: HostTopology | None) -> None:
        super().__init__(host, vcpus=8, memory_mib=16384, local_gib=200, topology=topology)
        self._world = world

    def keep(self, guest: FakeGuest) -> None:
        super().keep(guest)
        if guest.power_state is PowerState.RUNNING:
            for other in self._world.hypervisors.values():
                twin = other.guests.get(guest.uuid)
                if other is not self and twin is not None and twin.power_state is PowerState.RUNNING:
                    self._world.violations.append(f"guest {guest.uuid} runs on {self.host} and {other.host}")
            for neighbour in self.guests.values():
                if neighbour.uuid != guest.uuid and neighbour.power_state is PowerState.RUNNING:
                    both = _cpus_of(neighbour) & _cpus_of(guest)
                    if both:
                        self._world.violations.append(f"CPUs {sorted(both)} of {self.host} belong to two guests")
                    if set(neighbour.host_devices) & set(guest.host_devices):
                        self._world.violations.append(f"two guests of {self.host} have {guest.host_devices}")


def _cpus_of(guest: FakeGuest) -> frozenset[int]:
    return guest.layout.taken() if guest.layout is not None else frozenset()


class World:
    """Everything of one run.

    Args:
        checkpoint: called with the name of a process and of the journal boundary that it has reached.
        topology: of each host, None for hosts that do not tell. devices: PCI devices of each host that guests may have.
        audit_period: period of usage that is audited, "" for none.
    """

    def __init__(
        self, loop: VirtualLoop, random: Random, databases: Databases, *, hosts: int, conductors: int,
        options: OperationOptions = OPTIONS, resume_guests: bool = False, max_concurrent_builds: int = 10,
        max_concurrent_disk_ops: int = 0, max_concurrent_snapshots: int = 0, topology: HostTopology | None = None,
        checkpoint: Callable[[str, str], None] = lambda _process, _place: None, audit_period: str = "",
        devices: tuple[PciDevice, ...] = (),
    ) -> None:
        self.loop = loop
        self.random = random
        self.options = options
        self._resume_guests = resume_guests
        self._limits = {
            "max_concurrent_builds": max_concurrent_builds, "max_concurrent_disk_ops": max_concurrent_disk_ops,
            "max_concurrent_snapshots": max_concurrent_snapshots,
        }
        self._checkpoint = checkpoint
        self._audit_period = audit_period
        self.databases = databases
        self.trouble = Trouble()
        self.wire = Wire(random, self.trouble)
        self.violations: list[str] = []
        self.net = Net(random, self.trouble, self._announce)
        self.accelerators = Accelerators(random, self.trouble, self._announce)
        self.ears = Ears(random, self.trouble)
        self.images = Shelf(random, self.trouble, IMAGE)
        self.volumes = Volumes(random, self.trouble, self._announce, self._uses, self.violations)
        self.hypervisors = {f"host{i}": WatchedHypervisor(f"host{i}", self, topology) for i in range(hosts)}
        for hypervisor in self.hypervisors.values():
            hypervisor.agents = Everybody()
            hypervisor.served = partial(self.volumes.served, hypervisor.host)
            hypervisor.devices = (*devices, *PCI_DEVICES)
        self.processes: dict[str, Process] = {}
        self.conductors: dict[str, Conductor] = {}
        self._ever: list[Any] = []
        self._makers: dict[str, Callable[[Process], Any]] = {"scheduler": self._scheduler}
        self._makers |= {f"conductor{i}": self._conductor for i in range(conductors)}
        self._makers |= dict.fromkeys(self.hypervisors, self._agent)
        api = Process("api", 0.0)
        self.processes["api"] = api
        self.cells = self._cells(api)
        self._bus = SimBus(self.wire, api)
        self.compute = ComputeOperations(
            self.cells, self._bus, SimClock(loop, api), options,
            wake_api=lambda cancelled: self._publish("kn.wake.api", cancelled),
            wake_cell=lambda cell, cancelled: self._publish(f"kn.wake.{cell}", cancelled),
        )

    @property
    def names(self) -> list[str]:
        """Processes that can crash."""
        return sorted(self._makers)

    def _publish(self, subject: str, cancelled: str | None) -> None:
        self.wire.spawn(self._bus.publish(subject, (cancelled or "").encode()))

    def _database(self, real: Database, process: Process) -> SimDatabase:
        return SimDatabase(real, process, self.random, self.trouble)

    def _cells(self, process: Process) -> Cells:
        cell = Cell(CELL, CELL, self._database(self.databases.cell, process))
        return Cells(self._database(self.databases.api, process), (cell,))

    def _placing(self, process: Process) -> Placing:
        database = self._database(self.databases.api, process)
        clock = SimClock(self.loop, process)
        groupings = StoredGroupings()
        scheduler = Scheduler(
            database, clock, self.random, groupings=groupings, kept_off=KeptOffHosts(self._cells(process)),
            service_down_time=120.0,
        )
        return Placing(database, scheduler, groupings=groupings)

    # --- processes ---------------------------------------------------------------------------------

    async def boot(self, name: str) -> None:
        """Start a process anew; the former life of that name is dead."""
        old = self.processes.get(name)
        if old is not None:
            old.alive = False
        process = Process(name, self.random.uniform(-1.5, 1.5))
        self.processes[name] = process
        self.wire.subscribers = [s for s in self.wire.subscribers if s.process.alive]
        role = self._makers[name](process)
        self._ever.append(role)  # a crashed process stands still; it is not collected
        if isinstance(role, Conductor):
            self.conductors[name] = role
        while process.alive:
            try:
                await role.start()
            except KilonovaError:
                await asyncio.sleep(0.5)
            else:
                return

    def _uses(self, export: str) -> bool:
        """Whether a running guest has a volume from this export, unless its server is deleted: then its host, which may
        be away, will remove it. Spec: DEL-55."""
        return any(
            isinstance(volume.running, NbdSource) and volume.running.export == export
            and not self._is_deleted(guest.uuid)
            for hypervisor in self.hypervisors.values() for guest in hypervisor.guests.values()
            for volume in guest.volumes.values()
        )

    def _is_deleted(self, server: str) -> bool:
        """Whether a delete has begun with a server."""
        with self.databases.cell.engine.connect() as conn:
            try:
                return instances.get(conn, server).task_state is TaskState.DELETING
            except InstanceNotFound:
                return True

    def crash(self, name: str) -> None:
        self.processes[name].alive = False

    def _conductor(self, process: Process) -> Conductor:
        clock = SimClock(self.loop, process)
        database = self._database(self.databases.cell, process)
        placing = self._placing(process)
        environment = Environment(
            CELL, database, self.net.client(process), placing, clock, self.options,
            self.images.client(process), self.accelerators.client(process), self.volumes.client(process),
        )
        reports = HostReports(
            CELL, database, placing, clock, self.options, resume_guests=self._resume_guests,
        )
        owner = f"{self.random.getrandbits(64):x}@{process.name}"
        return Conductor(
            owner, environment, SimBus(self.wire, process), reports, self.random, ttl=TTL, poll=POLL,
            deliverer=self._deliverer(process, database, outbox.cell_outbox, owner),
            checkpoint=partial(self._checkpoint, process.name), audit_period=self._audit_period,
        )

    def _deliverer(self, process: Process, database: Database, of: outbox.Outbox, owner: str) -> Deliverer | None:
        if not self.databases.told:
            return None
        clock = SimClock(self.loop, process)
        return Deliverer(
            database, of, self.ears.sinks(process), clock, self.random, owner, retention=86400.0, poll=1.0
        )

    def _scheduler(self, process: Process) -> SchedulerService:
        clock = SimClock(self.loop, process)
        bus = SimBus(self.wire, process)
        cells = self._cells(process)
        placing = self._placing(process)

        def wake(cell: str) -> None:
            self.wire.spawn(bus.publish(f"kn.wake.{cell}", b""))

        environment = PlacingEnvironment(cells, placing, placing, clock, self.options, wake)
        owner = f"{self.random.getrandbits(64):x}@{process.name}"
        return SchedulerService(
            owner, cells.api, environment, bus, self.random, ttl=TTL, poll=POLL,
            deliverer=self._deliverer(process, cells.api, outbox.api_outbox, owner),
            checkpoint=partial(self._checkpoint, process.name),
        )

    def _agent(self, process: Process) -> Agent:
        clock = SimClock(self.loop, process)
        number = int(process.name.removeprefix("host"))
        journal = self._database(self.databases.hosts[number], process)
        driver = self.driver(self.hypervisors[process.name], clock, process)
        return Agent(
            process.name, driver, SimBus(self.wire, process), journal, clock, report_interval=10.0,
            images=self.images.client(process), device_specs=SPECS,
            **self._limits,
            checkpoint=partial(self._checkpoint, process.name),
        )

    def driver(self, hypervisor: FakeHypervisor, clock: SimClock, process: Process) -> PortedDriver:
        """What an agent drives its hypervisor with."""
        return PortedDriver(hypervisor, clock, process)

    async def _announce(self, event: ExternalEvent) -> None:
        """The network service tells until somebody has taken it down."""
        while True:
            for name in sorted(self.conductors):
                if self.processes[name].alive:
                    task = self.wire.spawn(self.conductors[name].deliver(event))
                    done, _ = await asyncio.wait({task}, timeout=2.0)
                    if done and task.exception() is None:
                        return
            await asyncio.sleep(1.0)


class PortedDriver(FakeDriver):
    """The fake driver, whose calls a crash of the agent cuts off before or after their effect."""

    def __init__(self, hypervisor: FakeHypervisor, clock: SimClock, process: Process) -> None:
        super().__init__(hypervisor, clock)
        self._process = process

    async def _call(self, name: str) -> None:
        await self._process.port(super()._call(name))
