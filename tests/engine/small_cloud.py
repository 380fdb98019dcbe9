"""A small simulated cloud in which nothing goes wrong unless a test says so: for stories told step by step.

A test is an async function over a `SmallCloud`, made runnable by `in_cloud`; time in it is virtual. Everything
that has an effect is written down in the order in which it happens: `effects` for calls to hypervisors and to the
network service, `history` for every state of every server that was committed.
"""

from __future__ import annotations

import asyncio
import inspect
import uuid as uuids
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, NamedTuple, SupportsIndex

import msgspec
import sqlalchemy as sa
from simulation.loop import VirtualLoop, abandon
from simulation.network import NETWORK
from simulation.process import Process, SimClock
from simulation.violations import ACTIVE
from simulation.world import IMAGE, Databases, PortedDriver, World

from kilonova.cells.registry import Located
from kilonova.db import block_devices, build_requests, instances, migration_records, services
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.outbox import cell_outbox
from kilonova.db.placement.tables import allocations, consumers, hosts, inventories, providers
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import BuildRequest, Fault, Instance, RequestSpec
from kilonova.domain.migration import Migration
from kilonova.domain.network import RequestedNetwork
from kilonova.domain.operation import ExternalEvent, OperationRecord
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Operation
from kilonova.hypervisor.fake import FakeGuest, FakeHypervisor
from kilonova.hypervisor.guest import Guest
from kilonova.operations.action_log import Action
from kilonova.operations.attach_volume import ATTACH_VOLUME, AttachVolume
from kilonova.operations.history import History
from kilonova.operations.options import OperationOptions
from kilonova.operations.start import START, StartServer

FLAVOR = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1)
CONTEXT = RequestContext(request_id="req-1", user_id="user", project_id="project", is_admin=True)
OPTIONS = OperationOptions(
    shutdown_timeout=20.0, shutdown_retry_interval=5.0, wait_soft_reboot_seconds=15.0, vif_plugging_timeout=30.0,
    max_attempts=3, shelved_offload_time=-1.0, running_deleted_instance_action="noop",
    heal_instance_info_cache_interval=0.0,
)
LIMIT = 120.0
"""Virtual seconds that anything awaited may take, unless a test says otherwise."""


class Effect(NamedTuple):
    """A call that may have an effect: on which host (or `network`), its name, and when in virtual seconds."""

    where: str
    name: str
    at: float


class Always(list[Exception]):
    """Errors to raise that never run out."""

    def pop(self, _index: SupportsIndex = -1) -> Exception:
        return self[0]


class WatchedDriver(PortedDriver):
    """Writes down what it is asked for."""

    def __init__(self, hypervisor: FakeHypervisor, clock: SimClock, process: Process, cloud: SmallCloud) -> None:
        super().__init__(hypervisor, clock, process)
        self._cloud = cloud
        self._here = hypervisor.host
        cloud.drivers[hypervisor.host] = self

    async def _call(self, name: str) -> None:
        if name not in ("power_state", "guests", "pci_devices"):
            self._cloud.effects.append(Effect(self._here, name, self._cloud.loop.time()))
        await super()._call(name)

    async def create_disks(self, guest: Guest) -> None:
        self._cloud.guests_made.append((self._here, "create_disks", guest))
        await super().create_disks(guest)

    async def spawn(self, guest: Guest, *, paused: bool = False) -> None:
        self._cloud.guests_made.append((self._here, "spawn", guest))
        await super().spawn(guest, paused=paused)

    async def power_on(self, guest: Guest) -> None:
        self._cloud.guests_made.append((self._here, "power_on", guest))
        await super().power_on(guest)

    async def hard_reboot(self, guest: Guest) -> None:
        self._cloud.guests_made.append((self._here, "hard_reboot", guest))
        await super().hard_reboot(guest)

    async def power_off(self, uuid: str, *, grace: float, interval: float) -> None:
        self._cloud.power_offs.append((grace, interval))
        await super().power_off(uuid, grace=grace, interval=interval)


class SmallCloud(World):
    """The world of the simulation, with words for telling a story in it."""

    def __init__(
        self, loop: VirtualLoop, databases: Databases, *, hosts: int, conductors: int, **settings: Any
    ) -> None:
        self.effects: list[Effect] = []
        self.history: list[Instance] = []
        self.guests_made: list[tuple[str, str, Guest]] = []
        self.power_offs: list[tuple[float, float]] = []
        self.drivers: dict[str, WatchedDriver] = {}
        self.at: dict[str, Callable[[str], None]] = {}
        """By (part of) a journal boundary: called once, with the name of the process that reached it."""
        self.boundaries: list[str] = []
        settings.setdefault("options", OPTIONS)
        super().__init__(
            loop, Random(1), databases, hosts=hosts, conductors=conductors, checkpoint=self._reached, **settings
        )
        self.net.calls = _Calls(self)
        write = databases.cell.write

        async def watched(fn: Callable[[sa.Connection], Any]) -> Any:
            result = await write(fn)
            self._look()
            return result

        self.unwatched = write
        databases.cell.write = watched  # type: ignore[method-assign]

    def driver(self, hypervisor: FakeHypervisor, clock: SimClock, process: Process) -> PortedDriver:
        return WatchedDriver(hypervisor, clock, process, self)

    def _reached(self, process: str, place: str) -> None:
        self.boundaries.append(place)
        for wanted in list(self.at):
            if wanted in place:
                self.at.pop(wanted)(process)

    def _look(self) -> None:
        """Write down every server that the last commit changed."""
        with self.databases.cell.engine.connect() as conn:
            for instance in conn.execute(sa.select(instances.instances.c.body)).scalars():
                last = next((known for known in reversed(self.history) if known.uuid == instance.uuid), None)
                if last != instance:
                    self.history.append(instance)

    # --- asking -----------------------------------------------------------------------------------

    def new(self, *, networks: int = 1, ports: tuple[str, ...] = (), **fields: Any) -> BuildRequest:
        """A server to ask for. fields: of the instance, the request spec and the build request."""
        uuid = fields.pop("uuid", None) or str(uuids.UUID(int=self.random.getrandbits(128), version=4))
        brought = tuple(RequestedNetwork(port_id=p, need=known.need if (known := self.net.ports.get(p)) else None)
                        for p in ports)
        wanted = brought + (RequestedNetwork(network_id=NETWORK),) * networks
        both = {"project_id": "project", "user_id": "user", "flavor": fields.pop("flavor", FLAVOR)}
        image = fields.pop("image", IMAGE)
        both["block_devices"] = fields.pop("block_devices", ())
        spec = RequestSpec(
            instance_uuid=uuid, image=image, requested_networks=wanted, **both,
            **{name: fields.pop(name) for name in RequestSpec.__struct_fields__ if name in fields},
        )
        rest = {name: fields.pop(name) for name in BuildRequest.__struct_fields__ if name in fields}
        instance = Instance(
            uuid=uuid, display_name="vm", image_ref=image.id, image=image, created_at=self.now, **both, **fields
        )
        return BuildRequest(instance=instance, spec=spec, **rest)

    @property
    def now(self) -> float:
        return SimClock(self.loop).now()

    async def ask(self, request: BuildRequest) -> str:
        """Create a server; returns as soon as that is accepted."""
        await self.compute.create(CONTEXT, [request])
        return request.instance.uuid

    async def build(self, **fields: Any) -> str:
        """Create a server and wait until it runs."""
        uuid = await self.ask(self.new(**fields))
        await self.until(lambda: self.server(uuid).vm_state is VmState.ACTIVE)
        await self.rest()
        return uuid

    async def located(self, uuid: str) -> Located:
        return await self.cells.locate(uuid)

    async def delete(self, uuid: str) -> None:
        await self.compute.delete(CONTEXT, await self.located(uuid))

    async def act(self, uuid: str, definition: Operation, request: msgspec.Struct) -> None:
        """Ask for an operation on a server; returns as soon as that is accepted."""
        await self.compute.ask(CONTEXT, await self.located(uuid), definition, request)

    async def stop(self, uuid: str, *, clean: bool = True) -> None:
        await self.compute.stop(CONTEXT, await self.located(uuid), clean=clean)

    async def start(self, uuid: str) -> None:
        await self.act(uuid, START, StartServer())

    async def reboot(self, uuid: str, *, hard: bool = False) -> None:
        await self.compute.reboot(CONTEXT, await self.located(uuid), hard=hard)

    async def stopped(self, **fields: Any) -> str:
        """A server that was built and stopped."""
        uuid = await self.build(**fields)
        await self.stop(uuid)
        await self.rest()
        assert self.server(uuid).vm_state is VmState.STOPPED
        return uuid

    async def attach(self, uuid: str, volume_id: str = "", **request: Any) -> str:
        """Attach a volume (a new one, unless it is told which) to a server, and wait until that is over."""
        volume_id = volume_id or self.volumes.add()
        wanted = AttachVolume(volume_id=volume_id, **request)
        await self.compute.ask_and_wait(CONTEXT, await self.located(uuid), ATTACH_VOLUME, wanted)
        return volume_id

    # --- waiting ----------------------------------------------------------------------------------

    async def until(self, holds: Callable[[], Any], *, within: float = LIMIT) -> None:
        """Wait until something holds; fails if it does not come true in time."""
        began = self.loop.time()
        while not _true(holds):
            waited = self.loop.time() - began
            assert waited < within, f"not within {within} s: {inspect.getsource(holds).strip()}"
            await asyncio.sleep(min(max(0.01, waited / 100), 0.5))

    async def rest(self, *, within: float = LIMIT, debts: bool = False) -> None:
        """Wait until nothing is being done. debts: nor owed."""
        await self.until(lambda: not [o for o in self.active() if debts or o.kind != "debt"], within=within)
        await asyncio.sleep(0.5)

    async def task(self, uuid: str, state: TaskState) -> None:
        """Wait until a server is in this task state."""
        await self.until(lambda: self.server(uuid).task_state is state)

    # --- looking ----------------------------------------------------------------------------------

    def cell(self, query: Callable[[sa.Connection], Any]) -> Any:
        with self.databases.cell.engine.connect() as conn:
            return query(conn)

    def api(self, query: Callable[[sa.Connection], Any]) -> Any:
        with self.databases.api.engine.connect() as conn:
            return query(conn)

    def server(self, uuid: str) -> Instance:
        """The record, deleted or not. Raises InstanceNotFound."""
        found: Instance = self.cell(lambda conn: instances.get(conn, uuid, deleted=True))
        return found

    def fault(self, uuid: str) -> Fault | None:
        found: dict[str, Fault] = self.cell(lambda conn: instances.latest_faults(conn, [uuid]))
        return found.get(uuid)

    def faults(self, uuid: str) -> int:
        table = instances.instance_faults
        count = sa.select(sa.func.count()).where(table.c.instance_uuid == uuid)
        found: int = self.cell(lambda conn: conn.execute(count).scalar())
        return found

    def active(self) -> list[OperationRecord]:
        """All operations that are not over, of both journals."""
        select: Callable[[Any], Any] = lambda of: lambda conn: of.select(conn, states=ACTIVE, limit=100)  # noqa: E731
        return [*self.api(select(api_journal)), *self.cell(select(cell_journal))]

    def operations(self, uuid: str, kind: str = "") -> list[OperationRecord]:
        """The operations on a server, oldest first."""
        found = self.cell(lambda conn: cell_journal.of_subject(conn, uuid))
        return [o for o in reversed(found) if kind in ("", o.kind)]

    def operation(self, uuid: str, kind: str) -> OperationRecord:
        return self.operations(uuid, kind)[-1]

    async def actions(self, uuid: str) -> list[Action]:
        """What the server's history tells, oldest first."""
        return list(reversed(await History(self.cells).actions(uuid)))

    def calls(self, *names: str) -> list[tuple[str, str]]:
        """Where and what was called, in order; all calls, or those of these names."""
        return [(e.where, e.name) for e in self.effects if not names or e.name in names]

    def times(self, name: str) -> list[float]:
        """When a call of that name was made."""
        return [e.at for e in self.effects if e.name == name]

    def events(self, uuid: str) -> list[ExternalEvent]:
        found: list[ExternalEvent] = self.cell(lambda conn: cell_journal.events_of(conn, uuid))
        return found

    def states(self, uuid: str) -> list[tuple[str, str | None]]:
        """All pairs of vm_state and task_state that were stored, in order, without repeats."""
        pairs = [(i.vm_state.value, i.task_state.value if i.task_state else None)
                 for i in self.history if i.uuid == uuid]
        return [pair for n, pair in enumerate(pairs) if n == 0 or pairs[n - 1] != pair]

    def guest(self, uuid: str) -> FakeGuest | None:
        """The guest, wherever it is; fails if there are two."""
        found = [h.guests[uuid] for h in self.hypervisors.values() if uuid in h.guests]
        assert len(found) < 2
        return found[0] if found else None

    def power(self, uuid: str) -> PowerState | None:
        guest = self.guest(uuid)
        return guest.power_state if guest is not None and guest.defined else None

    def ports(self, uuid: str) -> list[str]:
        return [port.id for port in self.net.of(uuid)]

    def devices(self, uuid: str) -> list[BlockDevice]:
        """The records of its volumes, oldest first."""
        found: list[BlockDevice] = self.cell(lambda conn: block_devices.of_server(conn, uuid))
        return found

    def claims(self, uuid: str) -> list[str]:
        """Hosts on which the server holds something."""
        query = (
            sa.select(hosts.c.host).distinct()
            .join(allocations, allocations.c.provider_id == hosts.c.provider_id)
            .where(allocations.c.consumer == uuid)
        )
        return sorted(self.api(lambda conn: conn.execute(query).scalars().all()))

    def held(self, uuid: str) -> dict[str, dict[str, int]]:
        """By consumer (the server, its migrations): what is held for the server."""
        query = (
            sa.select(consumers.c.uuid, allocations.c.resource_class, allocations.c.used)
            .join(allocations, allocations.c.consumer == consumers.c.uuid).where(consumers.c.instance == uuid)
        )
        found: dict[str, dict[str, int]] = {}
        for row in self.api(lambda conn: conn.execute(query).all()):
            found.setdefault(row.uuid, {})[row.resource_class] = row.used
        return found

    def migrations(self, uuid: str) -> list[Migration]:
        """Those of a server, newest first."""
        found: list[Migration] = self.cell(lambda conn: migration_records.of_server(conn, uuid))
        return found

    def provider(self, host: str) -> str:
        """The uuid of a host's resource provider."""
        query = sa.select(providers.c.uuid).join(hosts, hosts.c.provider_id == providers.c.id)
        found: str = self.api(lambda conn: conn.execute(query.where(hosts.c.host == host)).scalar())
        return found

    def failed_builds(self, host: str) -> int:
        query = sa.select(hosts.c.failed_builds).where(hosts.c.host == host)
        found: int = self.api(lambda conn: conn.execute(query).scalar())
        return found

    def nothing_left(self, uuid: str) -> None:
        """Fail if anything but its history is left of a server."""
        assert self.guest(uuid) is None
        assert self.ports(uuid) == []
        assert self.claims(uuid) == []
        assert self.api(lambda conn: conn.execute(
            sa.select(consumers).where(consumers.c.instance == uuid)).all()) == []
        assert self.api(lambda conn: build_requests.get(conn, uuid)) is None
        assert self.events(uuid) == []

    def gone(self, uuid: str) -> None:
        """Fail unless the server is deleted and nothing of it is left."""
        self.nothing_left(uuid)
        try:
            record = self.server(uuid)
        except InstanceNotFound:
            return
        assert record.deleted_at is not None
        assert (record.vm_state, record.task_state) == (VmState.DELETED, None)

    # --- meddling ---------------------------------------------------------------------------------

    def fail(self, call: str, *errors: Exception, host: str | None = None) -> None:
        """Let the next calls of a driver fail, on one host or on whichever comes first."""
        planned = list(errors)
        for hypervisor in [self.hypervisors[host]] if host else self.hypervisors.values():
            hypervisor.faults.fail[call] = planned  # type: ignore[assignment]

    def always_fail(self, call: str, error: Exception, host: str | None = None) -> None:
        """Let all calls of a driver fail until `heal`."""
        for hypervisor in [self.hypervisors[host]] if host else self.hypervisors.values():
            hypervisor.faults.fail[call] = Always([error])  # type: ignore[assignment]

    def heal(self) -> None:
        """Nothing fails any more."""
        self.net.fail.clear()
        self.volumes.fail.clear()
        for hypervisor in self.hypervisors.values():
            hypervisor.faults.fail.clear()
            hypervisor.faults.disobedient = set()
            hypervisor.faults.latency = 0.0

    async def change(self, uuid: str, **changes: Any) -> None:
        """Change a record behind everybody's back."""
        now = self.now
        await self.databases.cell.write(lambda conn: instances.update(conn, uuid, now=now, deleted=True, **changes))

    async def erase(self, uuid: str) -> None:
        """Remove a record behind everybody's back."""
        await self.databases.cell.write(lambda conn: instances.erase(conn, uuid))

    async def restart(self, *names: str) -> None:
        """Kill processes and start them anew."""
        for name in names:
            self.crash(name)
        for name in names:
            await self.boot(name)

    async def wire_up(self, uuid: str, *, status: str = "completed", ports: tuple[str, ...] = ()) -> None:
        """The network service tells of the server's ports."""
        for port in ports or self.ports(uuid):
            await self.tell(uuid, "network-vif-plugged", port, status=status)

    async def tell(self, uuid: str, name: str, tag: str = "", *, status: str = "completed") -> bool:
        event = ExternalEvent(subject=uuid, name=name, tag=tag, status=status)
        return await next(iter(self.conductors.values())).deliver(event)


class _Calls(list[str]):
    """Calls of the network service, also written among all effects."""

    def __init__(self, cloud: SmallCloud) -> None:
        super().__init__()
        self._cloud = cloud

    def append(self, name: str) -> None:
        super().append(name)
        self._cloud.effects.append(Effect("network", name, self._cloud.loop.time()))


def _true(holds: Callable[[], Any]) -> bool:
    try:
        return bool(holds())
    except InstanceNotFound:
        return False


Story = Callable[..., Awaitable[None]]


def in_cloud(
    *, hosts: int = 1, conductors: int = 1, told: bool | str = False, **settings: Any
) -> Callable[[Story], Callable[..., None]]:
    """Make a story a test.

    Args:
        told: others are told of what happens; of states, too, if it names which. settings: further ones of `World`.
    """

    def decorate(story: Story) -> Callable[..., None]:
        def test(*arguments: Any, **parameters: Any) -> None:
            play(story, hosts=hosts, conductors=conductors, told=told, settings=settings, parameters=parameters)

        signature = inspect.signature(story)
        rest = [p for name, p in signature.parameters.items() if name != "cloud"]
        test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
        test.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        return test

    return decorate


def play(
    story: Story, *, hosts: int, conductors: int, told: bool | str, settings: dict[str, Any], parameters: dict[str, Any]
) -> None:
    """Run a story to its end, in virtual time."""
    loop = VirtualLoop(Random(1))
    databases = _databases(told)

    async def run() -> None:
        await databases.empty()
        cloud = SmallCloud(loop, databases, hosts=hosts, conductors=conductors, **settings)
        try:
            for name in cloud.names:
                await cloud.boot(name)
            known = sa.select(sa.func.count(sa.distinct(inventories.c.provider_id)))
            await cloud.until(lambda: cloud.api(lambda conn: conn.execute(known).scalar()) == hosts)
            if told:  # of what has come up; the story begins with what is told after it
                here = sa.select(sa.func.count()).select_from(services.services)
                waits = sa.select(sa.func.count()).select_from(cell_outbox.rows)
                await cloud.until(lambda: cloud.cell(lambda conn: conn.execute(here).scalar()) == len(cloud.names))
                await cloud.until(lambda: cloud.cell(lambda conn: conn.execute(waits).scalar()) == 0)
                cloud.ears.heard.clear()
            await story(cloud, **parameters)
            assert cloud.violations == []
        finally:
            del databases.cell.write

    try:
        loop.run_until_complete(run())
    finally:
        abandon(loop)


_kept: dict[bool | str, Databases] = {}


def _databases(told: bool | str) -> Databases:
    if told not in _kept:
        _kept[told] = Databases(told=bool(told), states=told if isinstance(told, str) else "")
    return _kept[told]


