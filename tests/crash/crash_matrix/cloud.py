"""A whole cloud in one process on files in one directory: what is killed and started again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import sqlalchemy as sa
from accelerated import PCI_DEVICES, offer_devices
from hearing import unheard
from host_cells import TWO_CELLS
from host_devices import GPUS, PORT_FUNCTIONS, SPECS
from invariants import ACTIVE, Cloud, look

from crash_matrix import planting, users_ports, volumes
from crash_matrix.accelerators import Accelerators
from crash_matrix.bus import CutBus
from crash_matrix.clock import FastClock
from crash_matrix.listener import NAME, TOLD, Listener, waiting
from crash_matrix.plan import Plan
from kilonova.agent import agent as agent_module
from kilonova.agent.agent import Agent
from kilonova.cells.registry import Cell, Cells, Located
from kilonova.conductor import conductor as conductor_module
from kilonova.conductor.conductor import Conductor
from kilonova.conductor.hosts import HostReports
from kilonova.conductor.power_states import UNFIT
from kilonova.db.database import Database
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.db.placement.hosts import count_build
from kilonova.db.placement.tables import inventories
from kilonova.db.schema import api_metadata, cell_metadata
from kilonova.db.upgrade import ensure
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InstanceNotFound, NotFound, Unreachable
from kilonova.domain.operation import EntryState, ExternalEvent, OperationRecord, OperationState
from kilonova.domain.states import PowerState
from kilonova.embedded.image import schema as image_schema
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.network import schema
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring
from kilonova.embedded.volume import attachments
from kilonova.embedded.volume.schema import journal as volume_journal
from kilonova.engine.host import host_metadata
from kilonova.engine.journaling import Moves
from kilonova.engine.operation import Await
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.operations.catalogue import API_OPERATIONS, CELL_OPERATIONS
from kilonova.operations.environment import Environment, PlacingEnvironment
from kilonova.operations.options import OperationOptions
from kilonova.operations.rebuild import IMAGE_WRITTEN
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME, REIMAGED
from kilonova.operations.service import ComputeOperations
from kilonova.scheduler import service as scheduler_module
from kilonova.scheduler.placing import Placing
from kilonova.scheduler.scheduler import Scheduler
from kilonova.scheduler.service import SchedulerService
from kilonova.services.cyborg import Cyborg

T = TypeVar("T")
CELL = "cell1"
HOSTS = ("host0", "host1")
HOST_STEPS = agent_module.ALL
PROJECT = "11111111111141118111111111111111"
CONTEXT = RequestContext(request_id="req-crash", user_id="u", project_id=PROJECT, is_admin=True)
OPTIONS = OperationOptions(
    shutdown_timeout=20.0, wait_soft_reboot_seconds=15.0, vif_plugging_timeout=300.0, max_attempts=2,
    running_deleted_instance_action="noop", instance_delete_interval=-1.0,
    shelved_offload_time=-1.0, heal_instance_info_cache_interval=0.0, volume_usage_poll_interval=1e9,
)
SILENCE = 600.0
"""Seconds of the cloud after which a host counts as dead: long enough for a machine that stalls under its load."""
LIMIT = 25.0
"""Real seconds after which an operation that has not ended counts as stuck."""


class Stuck(Exception):
    """Something has not come to an end; says what."""


class OneCloud:
    """Api, scheduler, conductor, agents and the services around them over the databases of a directory.

    Args:
        server: uuid of the one server. limits: other values for fields of operations.
    """

    def __init__(self, directory: Path, plan: Plan, clock: FastClock, server: str, limits: dict[str, int]) -> None:
        self.server = server
        self.plan = plan
        self.clock = clock
        self.directory = directory
        self.bus = CutBus()
        self._listener = Listener(directory)
        self.api, self.cell = self._open("api"), self._open("cell")
        self._hosts_journal = self._open("hosts")
        self.hypervisors = {host: FakeHypervisor(host, directory / host, topology=TWO_CELLS) for host in HOSTS}
        for hypervisor in self.hypervisors.values():
            hypervisor.devices = (*GPUS, *PORT_FUNCTIONS, *PCI_DEVICES)
        self.networks = EmbeddedNetwork(self.api, clock, None, "", FakeWiring(plugs_at_once=False), self._on_event)  # type: ignore[arg-type]
        self.accelerators = Accelerators(directory)
        self.images = EmbeddedImage(self.api, directory / "images", clock, None, "")  # type: ignore[arg-type]
        self._answered: set[tuple[int, str]] = set()
        self._wakes: set[asyncio.Task[None]] = set()
        self.compute, self.cells = self._compute(self.api, self.cell, self._wake)
        self.problems: list[str] = []
        storage = volumes.Storage(directory)
        for hypervisor in self.hypervisors.values():
            hypervisor.served = partial(storage.served, self._connected_to, hypervisor.host)
        self.volumes = volumes.service(
            self.api, directory, storage, clock, self.images, self.cells, self._wake, self._on_event,
            self._export_ends,
        )
        self._gone = False
        conductor_module.CELL_OPERATIONS = planting.definitions(CELL_OPERATIONS, plan, **limits)
        scheduler_module.API_OPERATIONS = planting.definitions(API_OPERATIONS, plan, **limits)
        agent_module.ALL = planting.host_steps(HOST_STEPS, plan)
        plan.users = {"delete": self._delete_at_once, "deaf": lambda: setattr(self.bus, "cut", True)}
        plan.watch = self._must_stay_gone
        self._parts: list[Any] = []

    def _open(self, name: str) -> Database:
        return Database.open(f"sqlite:///{self.directory}/{name}.db", options=TOLD)

    def _compute(
        self, api: Database, cell: Database, wake: Callable[[str, str | None], None]
    ) -> tuple[ComputeOperations, Cells]:
        cells = Cells(api, (Cell(CELL, CELL, cell),))
        compute = ComputeOperations(
            cells, self.bus, self.clock, OPTIONS, wake_api=lambda cancelled: wake("api", cancelled), wake_cell=wake
        )
        return compute, cells

    def _wake(self, journal: str, cancelled: str | None = None) -> None:
        task = asyncio.get_running_loop().create_task(
            self.bus.publish(f"kn.wake.{journal}", (cancelled or "").encode())
        )
        self._wakes.add(task)
        task.add_done_callback(self._wakes.discard)

    # --- life ------------------------------------------------------------------------------------

    async def create_tables(self) -> str:
        """Make the databases of a new cloud, with the ports of the user's; returns the network of the first."""
        await self.api.write(api_metadata.create_all)
        await self.cell.write(cell_metadata.create_all)
        await self._hosts_journal.write(host_metadata.create_all)
        await ensure(self.api, schema.NETWORK)
        await ensure(self.api, image_schema.IMAGE)
        await self.networks.bootstrap(PROJECT)
        other = await self.networks.bootstrap(PROJECT, name="other", cidr="10.9.0.0/24")
        await self.api.write(lambda conn: users_ports.make(conn, PROJECT, other, self.clock.now()))
        return other

    async def start(self) -> None:
        """Start everything, in the order of one-machine mode."""
        clock, plan, random = self.clock, self.plan, Random()
        await self.networks.start()
        await self.images.recover()
        await self.volumes.start()
        placing = Placing(self.api, Scheduler(self.api, clock, random, service_down_time=SILENCE))
        watched: Any = planting.Watched(placing, plan)
        networks: Any = planting.Watched(self.networks, plan)
        images: Any = planting.Watched(self.images, plan)
        database = planting.WatchedDatabase(self.cell, plan)
        accelerators: Any = planting.Watched(Cyborg(self.accelerators), plan)
        attached: Any = planting.Watched(volumes.Client(self.volumes), plan)
        environment = Environment(CELL, self.cell, networks, watched, clock, OPTIONS, images, accelerators, attached)
        self.conductor = Conductor(
            f"{random.getrandbits(64):x}@crash", environment, self.bus,
            HostReports(CELL, self.cell, placing, clock, OPTIONS), random, alone=True, ttl=600.0, poll=0.05,
            checkpoint=plan.checkpoint, deliverer=self._listener.deliverer(self.cell, cell_outbox, clock, random, "c"),
        )
        placed = PlacingEnvironment(
            Cells(self.api, (Cell(CELL, CELL, database),)), watched, watched, clock, OPTIONS, self._wake
        )
        self.scheduler = SchedulerService(
            f"{random.getrandbits(64):x}@crash", self.api, placed, self.bus, random, alone=True, ttl=600.0, poll=0.05,
            checkpoint=plan.checkpoint, deliverer=self._listener.deliverer(self.api, api_outbox, clock, random, "s"),
        )
        agents = [self._agent(host) for host in HOSTS]
        for part in (self.conductor, self.scheduler, *agents):
            await part.start()
        self._parts = [*reversed(agents), self.scheduler, self.conductor, self.volumes, self.images, self.networks]

    def _agent(self, host: str) -> Agent:
        driver: Any = planting.Watched(FakeDriver(self.hypervisors[host], self.clock), self.plan)
        images: Any = planting.Watched(self.images, self.plan)
        return Agent(
            host, driver, self.bus, self._hosts_journal, self.clock, images=images, report_interval=20.0,
            device_specs=SPECS, bandwidths=users_ports.BANDWIDTHS, packet_rate=users_ports.RATE,
            checkpoint=lambda _place: self.plan.here("effect"),
        )

    async def close(self) -> None:
        for part in self._parts:
            await part.close()
        await self.bus.close()
        for database in (self.api, self.cell, self._hosts_journal):
            await database.close()

    async def _on_event(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        if name == REIMAGED and self.plan.asked(f"{REBUILD_ROOT_VOLUME.name}/{IMAGE_WRITTEN}/do/event"):
            status = "failed"
        if not await self.conductor.deliver(ExternalEvent(subject=instance_uuid, name=name, tag=tag, status=status)):
            raise NotFound(f"Instance {instance_uuid} awaits no event.")

    def _connected_to(self, attachment: str) -> str:
        """The host that has it."""
        found = at_once(self.api.read(lambda conn: attachments.get(conn, attachment)))
        return str((found.connector or {}).get("host"))

    async def _export_ends(self, export: str) -> None:
        """A guest lets go of a volume before it is served no longer; or owes it, which is safe: nothing else is served
        under that name."""
        owes = any(record.kind == "debt" for record in await self._active())
        if volumes.uses(self.hypervisors.values(), export) and not owes:
            self.problems.append(f"attachment {export} was ended while a guest used it")

    # --- the user --------------------------------------------------------------------------------

    async def located(self) -> Located:
        return await self.cells.locate(self.server)

    async def delete(self) -> None:
        """A user deletes the server; one that is gone already is no surprise."""
        self._deleted(await _delete(self.compute, self.cells, self.server))

    def _deleted(self, unplaced: bool) -> None:
        self._gone = self._gone or unplaced

    def _delete_at_once(self) -> None:
        """A user deletes the server while the conductor stands at a point: from another thread, on its own files."""
        wakes: list[tuple[str, str | None]] = []
        done: list[bool] = []

        async def delete() -> None:
            api, cell = self._open("api"), self._open("cell")
            compute, cells = self._compute(api, cell, lambda *wake: wakes.append(wake))
            try:
                done.append(await _delete(compute, cells, self.server))
            finally:
                await api.close()
                await cell.close()

        thread = threading.Thread(target=asyncio.run, args=(delete(),))
        thread.start()
        thread.join()
        self._deleted(done[0])
        loop = asyncio.get_running_loop()
        for wake in wakes:
            loop.call_soon(self._wake, *wake)

    def _must_stay_gone(self, point: str) -> None:
        """A server that was deleted before it had a cell is never seen again."""
        if self._gone:
            try:
                at_once(self.located())
            except InstanceNotFound:
                return
            self.problems.append(f"at {point} the deleted server is back")

    # --- rest ------------------------------------------------------------------------------------

    async def until_hosts_known(self) -> None:
        """Wait for the first reports of all hosts; on each of them a build has failed, which one that does not must
        clear."""
        async with self._limit("hosts to report"):
            known = sa.select(inventories.c.provider_id).distinct()
            while len(await self.api.read(lambda conn: conn.execute(known).all())) < 2:  # noqa: ASYNC110 - a database
                await asyncio.sleep(0.002)
        await self.api.write(offer_devices)
        for host in HOSTS:
            await self.api.write(lambda conn, host=host: count_build(conn, host, host, failed=True))

    async def settle(self) -> None:
        """Wait until no operation is left that somebody would go on with. Raises Stuck."""
        async with self._limit("operations to end"):
            while (active := await self._active()) or self.conductor.runner.busy or self.scheduler.runner.busy:
                if self.bus.cut and all(record.kind == "debt" for record in active):
                    self.bus.cut = False  # the hosts are back
                if active and all(record.kind == "debt" for record in active):
                    await volumes.delete_snapshots(self.volumes, CONTEXT)
                for record in active:
                    await self._answer_wait(record)
                await asyncio.sleep(0.005)

    async def observe(self) -> None:
        """Wait until the records tell the power states of their guests, and until what does not fit a server has been
        stopped. Raises Stuck."""
        while True:
            async with self._limit("reports of power states"):
                while any(self._differ()):  # noqa: ASYNC110 - a database is asked
                    await asyncio.sleep(0.05)
            if not await self._active():
                await volumes.Client(self.volumes).give_up()
                return
            await self.settle()

    async def told(self) -> list[str]:
        """Wait until everything was delivered, and return what the listener should have heard and has not, or the
        other way round. Raises Stuck."""
        async with self._limit("notifications to be delivered"):
            while await waiting(self.api, self.cell):  # noqa: ASYNC110 - databases are asked
                await asyncio.sleep(0.01)
        operations = await self.cell.read(lambda conn: cell_journal.select(conn, limit=1000))
        return unheard({NAME: self._listener.heard()}, operations)

    def _differ(self) -> Iterator[bool]:
        """For each server at rest on a host, whether its guest is not what its record says or what it is to be."""
        there = self.look()
        for server in there.alive.values():
            if server.host is not None and server.task_state is None:
                guest = there.guests[server.host].get(server.uuid)
                found = guest.power_state if guest and guest.defined else PowerState.NOSTATE
                yield server.power_state is not found or found in UNFIT.get(server.vm_state, ())

    async def _active(self) -> list[OperationRecord]:
        """Those of the volume service first: what it tells makes others. Without debts that wait for a stranded one."""
        found = await self.api.read(lambda conn: volume_journal.select(conn, states=ACTIVE))
        found += await self.api.read(lambda conn: api_journal.select(conn, states=ACTIVE))
        found += await self.cell.read(lambda conn: cell_journal.select(conn, states=ACTIVE))
        if found and all(_waits(record) for record in found):
            stranded = [OperationState.STRANDED]
            if await self.cell.read(lambda conn: cell_journal.select(conn, states=stranded)):
                return []
        return found

    async def _answer_wait(self, record: OperationRecord) -> None:
        """What an operation waits for happens, once in each life and round."""
        definition = conductor_module.CELL_OPERATIONS.find(record.kind, record.version)
        if definition is None:
            return
        moves = Moves(definition, cell_journal, record)
        step, run = moves.current(record), moves.run(record)
        if not isinstance(step, Await) or (entry := run.entry(step.name)) is None:
            return
        if entry.state is not EntryState.STARTED:
            return
        for key in step.events(run):
            name, _, tag = key.partition(":")
            if (record.round, key) in self._answered or name == REIMAGED:  # the volume service tells of that
                continue
            self._answered.add((record.round, key))
            if self.plan.asked(f"{record.kind}/{step.name}/do/event"):
                event = ExternalEvent(subject=record.subject, name=name, tag=tag, status="failed")
                await self.conductor.deliver(event)
            elif name == "network-vif-plugged":
                await self.networks.plugged(tag)
            else:
                self.accelerators.resolve(record.subject)
                await self.conductor.deliver(ExternalEvent(subject=record.subject, name=name, tag=tag))

    def look(self) -> Cloud:
        """Everything there is, read from the files, not from what this process remembers."""
        guests = {host: FakeHypervisor(host, self.directory / host).guests for host in HOSTS}
        with _reading(self.directory / "api.db") as api, _reading(self.directory / "cell.db") as cell:
            return look(
                api, cell, guests, self.accelerators.arqs, exports=set(volumes.Storage(self.directory).exports)
            )

    def _limit(self, what: str) -> _Limit:
        return _Limit(what, self)

    async def describe(self) -> str:
        """What is still going on."""
        return "; ".join(
            f"{r.kind} is {r.state.value} at step {r.cursor}: "
            + ", ".join(f"{e.step}{' (undo)' if e.undo else ''} {e.state.value} x{e.attempt}" for e in r.entries[-3:])
            for r in await self._active()
        )


class _Limit:
    """A time limit that says what did not happen."""

    def __init__(self, what: str, cloud: OneCloud) -> None:
        self._what = what
        self._cloud = cloud
        self._timeout = asyncio.timeout(LIMIT)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise Stuck(f"waited in vain for {self._what}: {await self._cloud.describe()}") from None


@contextmanager
def _reading(file: Path) -> Iterator[sa.Connection]:
    engine = sa.create_engine(f"sqlite:///{file}")
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _waits(record: OperationRecord) -> bool:
    """Whether a debt cannot be paid before another one is."""
    last = record.entries[-1].failure if record.entries else None
    return record.kind == "debt" and record.resting and last is not None and last.kind == Unreachable.__name__


async def _delete(compute: ComputeOperations, cells: Cells, server: str) -> bool:
    """Returns whether the server had no cell yet, so that it is gone at once."""
    try:
        located = await cells.locate(server)
        await compute.delete(CONTEXT, located)
    except InstanceNotFound:
        return False
    try:
        await cells.locate(server)
    except InstanceNotFound:
        return True
    return False


def at_once(call: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """The result of a coroutine that only reads SQLite, which never waits."""
    assert isinstance(call, Coroutine)
    try:
        call.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")
