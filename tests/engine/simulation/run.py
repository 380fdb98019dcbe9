"""One seeded run: a cloud, its users, and everything that can go wrong; then calm, then the invariants."""

from __future__ import annotations

import asyncio
import gc
import logging
import uuid
from random import Random
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from accelerated import asks_for, offer_devices
from host_cells import DEDICATED, TWO_CELLS
from host_devices import GPUS, PORT_FUNCTIONS, with_devices

from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.db.placement.tables import inventories
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput, KilonovaError, Retryable, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BuildRequest, Instance, RequestSpec
from kilonova.domain.network import DeviceVnic, PortDevice, PortNeed, RequestedNetwork
from kilonova.domain.states import VmState
from kilonova.engine.operation import Operation
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface
from kilonova.operations.attach_share import ATTACH_SHARE, AttachShare
from kilonova.operations.attach_volume import ATTACH_VOLUME, AttachVolume
from kilonova.operations.bind_ports import BIND_PORTS, BindPorts
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.crash_dump import TRIGGER_CRASH_DUMP, TriggerCrashDump
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.operations.detach_share import DETACH_SHARE, DetachShare
from kilonova.operations.detach_volume import DETACH_VOLUME, DetachVolume
from kilonova.operations.fixed_ip import ADD_FIXED_IP, REMOVE_FIXED_IP, AddFixedIp, RemoveFixedIp
from kilonova.operations.inject_network_info import INJECT_NETWORK_INFO, InjectNetworkInfo
from kilonova.operations.password import CHANGE_PASSWORD, ChangePassword
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer, UnpauseServer
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.rescue import RESCUE, RescueServer
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize
from kilonova.operations.shelve import UNSHELVE, UnshelveServer
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.soft_delete import SOFT_DELETE, SoftDeleteServer
from kilonova.operations.start import START, StartServer
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER, ResumeServer, SuspendServer
from kilonova.operations.unrescue import UNRESCUE, UnrescueServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.network import PortSummary
from kilonova.shapes.accelerators import profile_of
from simulation.loop import VirtualLoop, abandon
from simulation.network import NETWORK
from simulation.violations import active, violations
from simulation.world import IMAGE, OPTIONS, Databases, World

FLAVOR = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1)
PINNED = Flavor(flavor_id="3", name="pinned", vcpus=2, memory_mib=512, root_gib=1, extra_specs=DEDICATED)
GPU = with_devices(Flavor(flavor_id="4", name="gpu", vcpus=1, memory_mib=512, root_gib=1), "gpu:1")
BIGGER = Flavor(flavor_id="2", name="bigger", vcpus=2, memory_mib=1024, root_gib=2, ephemeral_gib=1)
ACCELERATED = asks_for(FLAVOR, "fpga")
OTHER_IMAGE = Image(id="33333333-3333-4333-8333-333333333333", properties={"hw_qemu_guest_agent": "yes"})
CONTEXT = RequestContext(request_id="req-simulation", user_id="u", project_id="p", is_admin=True)
CHAOS = 40.0
"""Virtual seconds during which things go wrong."""
SETTLE = 900.0
"""Virtual seconds after which everything must be at rest."""
REPORTED = 90.0
"""Virtual seconds after which the hosts have reported what their guests are, and overdue work was looked for."""


class Result(msgspec.Struct):
    """What a run showed. operations: how many were accepted, crashes: how many processes were killed."""

    seed: int
    violations: list[str]
    operations: int = 0
    crashes: int = 0
    states: dict[str, int] = {}


def simulate(seed: int, databases: Databases) -> Result:
    """Run one seed to its end."""
    random = Random(seed)
    loop = VirtualLoop(random)
    result = Result(seed, [])
    try:
        loop.run_until_complete(_run(loop, random, databases, result))
    finally:
        abandon(loop)
        if seed % 50 == 0:
            gc.collect()
    return result


async def _run(loop: VirtualLoop, random: Random, databases: Databases, result: Result) -> None:
    await databases.empty()
    options = msgspec.structs.replace(OPTIONS, shelved_offload_time=random.choice((-1.0, 0.0, 5.0)))
    world = World(
        loop, random, databases, hosts=random.randint(1, 3), conductors=random.randint(1, 2), options=options,
        topology=TWO_CELLS, devices=(*GPUS[:2], *PORT_FUNCTIONS[:3]),
    )
    for name in world.names:
        await world.boot(name)
    await _until_hosts_known(world)
    for volume in VOLUMES:
        world.volumes.add(volume)
    servers = [_server(world, random, n) for n in range(random.randint(1, 3))]
    chaos = asyncio.ensure_future(_chaos(world, random, result))
    await asyncio.gather(*(_user(world, random, server, result) for server in servers))
    await chaos
    await _calm(world)
    await _settle(world)
    found, states = violations(world)
    if found or databases.told:
        if found:
            await asyncio.sleep(REPORTED)
            await _settle(world)
        if databases.told:
            await _until_told(world)
        found, states = violations(world)
    result.states = dict(states)
    result.violations = world.violations + world.wire.defects + found


def _bring_device(world: World, random: Random) -> RequestedNetwork:
    """A new port of the user's that is a PCI device."""
    port = str(uuid.UUID(int=random.getrandbits(128), version=4))
    kind: DeviceVnic = random.choice(("direct", "macvtap"))
    need = PortNeed(port_id=port, device=PortDevice(vnic_type=kind, physical_network="physnet1"))
    world.net.ports[port] = PortSummary(
        id=port, network_id=NETWORK, project_id="p", mac="fa:16:3e:00:00:09", addresses=("10.0.0.9",), need=need
    )
    world.net.order.append(port)
    return RequestedNetwork(port_id=port, need=need)


def _server(world: World, random: Random, number: int) -> BuildRequest:
    uuid_ = str(uuid.UUID(int=random.getrandbits(128), version=4))
    plain = random.choice((FLAVOR, FLAVOR, PINNED, GPU))
    flavor, asked = ACCELERATED if random.random() < 0.2 else (plain, plain)
    instance = Instance(
        uuid=uuid_, project_id="p", user_id="u", display_name=f"vm{number}", flavor=flavor, image_ref=IMAGE.id,
        image=IMAGE, created_at=1_700_000_000.0 + number,
    )
    networks = (RequestedNetwork(network_id=NETWORK),) if random.random() < 0.8 else ()
    if random.random() < 0.3:
        networks += (_bring_device(world, random),)
    spec = RequestSpec(
        instance_uuid=uuid_, project_id="p", user_id="u", flavor=asked, image=IMAGE, requested_networks=networks
    )
    return BuildRequest(instance=instance, spec=spec, admin_password="secret")


async def _until_hosts_known(world: World) -> None:
    for _ in range(100):
        hosts = await world.databases.api.read(lambda conn: conn.execute(sa.select(inventories.c.provider_id)).all())
        if hosts:
            await world.databases.api.write(offer_devices)
            return
        await asyncio.sleep(0.2)
    raise AssertionError("no host ever reported")


# --- users ------------------------------------------------------------------------------------------


SHARE = "66666666-7777-4777-8777-777777777777"
AGGREGATE = "77777777-7777-4777-8777-777777777777"
ASKED: dict[str, tuple[Operation, msgspec.Struct]] = {
    "unshelve": (UNSHELVE, UnshelveServer()),
    "offload": (SHELVE_OFFLOAD, OffloadServer()),
    "unshelve offloaded": (UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0)),
    "start": (START, StartServer()),
    "pause": (PAUSE_SERVER, PauseServer()),
    "crash dump": (TRIGGER_CRASH_DUMP, TriggerCrashDump()),
    "inject": (INJECT_NETWORK_INFO, InjectNetworkInfo()),
    "password": (CHANGE_PASSWORD, ChangePassword(key="one")),
    "unpause": (UNPAUSE_SERVER, UnpauseServer()),
    "suspend": (SUSPEND_SERVER, SuspendServer()),
    "resume": (RESUME_SERVER, ResumeServer()),
    "attach": (ATTACH_INTERFACE, AttachInterface(RequestedNetwork(network_id=NETWORK))),
    "add address": (ADD_FIXED_IP, AddFixedIp(NETWORK)),
    "remove address": (REMOVE_FIXED_IP, RemoveFixedIp("10.0.0.100")),
    "attach share": (ATTACH_SHARE, AttachShare(share_id=SHARE, tag="data", export_location="/srv/data")),
    "detach share": (DETACH_SHARE, DetachShare(SHARE)),
    "soft-delete": (SOFT_DELETE, SoftDeleteServer(grace=5.0, interval=1.0)),
    "restore": (RESTORE, RestoreServer()),
    "rescue": (RESCUE, RescueServer(image=OTHER_IMAGE, admin_password="secret")),
    "unrescue": (UNRESCUE, UnrescueServer()),
    "resize": (RESIZE, ResizeServer(flavor=BIGGER)),
    "pin": (RESIZE, ResizeServer(flavor=PINNED)),
    "give device": (RESIZE, ResizeServer(flavor=GPU)),
    "shrink": (RESIZE, ResizeServer(flavor=FLAVOR)),
    "confirm": (CONFIRM_RESIZE, ConfirmResize()),
    "revert": (REVERT_RESIZE, RevertResize()),
}
"""Operations that a user asks for without more ado."""
VOLUMES = ("88888888-1111-4888-8888-888888888888", "88888888-2222-4888-8888-888888888888")
"""Which all servers want."""
NOT_WITH_DEVICES = ("resize", "pin", "shrink", "suspend")
"""What the API refuses for servers with accelerators."""


async def _user(world: World, random: Random, server: BuildRequest, result: Result) -> None:
    """Create a server, do things to it at bad moments, sometimes delete it."""
    uuid_ = server.instance.uuid
    await asyncio.sleep(random.random() * 10)
    if not await _ask(world.compute.create(CONTEXT, [server]), result):
        return
    wants_volume = random.random() < 0.5
    for _ in range(random.randint(0, 4)):
        await asyncio.sleep(random.choice((0.001, 0.05, 0.5, 3.0, 10.0)) * random.random())
        try:
            located = await world.cells.locate(uuid_)
        except KilonovaError:
            continue
        action = random.choice((
            "stop", "soft", "hard", "hard", "delete", "rebuild", "reset", "detach", "image", "backup", "shelve",
            "cache", "bind", "attach device", "attach volume", "attach volume", "detach volume", "extend volume", *ASKED
        ))
        if wants_volume:
            action = "attach volume"
        if profile_of(server.instance.flavor) is not None and action in NOT_WITH_DEVICES:
            continue
        calls: dict[str, Any] = {
            "stop": lambda at=located: world.compute.stop(CONTEXT, at),
            "soft": lambda at=located: world.compute.reboot(CONTEXT, at, hard=False),
            "hard": lambda at=located: world.compute.reboot(CONTEXT, at, hard=True),
            "delete": lambda at=located: world.compute.delete(CONTEXT, at),
            "rebuild": lambda at=located: world.compute.ask(CONTEXT, at, REBUILD, _other_image(at.instance)),
            "cache": lambda: world.compute.cache_images(
                CONTEXT, world.cells.all[0], AGGREGATE, sorted(world.hypervisors), [IMAGE.id]
            ),
            "bind": lambda at=located: world.compute.ask(CONTEXT, at, BIND_PORTS, BindPorts(at.instance.host or "")),
            "shelve": lambda at=located: world.compute.shelve(CONTEXT, at),
            "image": lambda at=located: world.compute.create_image(CONTEXT, at, "snap", {}),
            "backup": lambda at=located: world.compute.create_backup(
                CONTEXT, at, "backup", {}, backup_type="daily", rotation=1
            ),
            "reset": lambda at=located: _reset_if_idle(world, at),
            "detach": lambda at=located: _detach(world, random, at),
            "attach device": lambda at=located: world.compute.ask(
                CONTEXT, at, ATTACH_INTERFACE, AttachInterface(_bring_device(world, random))
            ),
            "attach volume": lambda at=located: world.compute.ask(
                CONTEXT, at, ATTACH_VOLUME, AttachVolume(volume_id=random.choice(VOLUMES))
            ),
            "detach volume": lambda at=located: world.compute.ask(
                CONTEXT, at, DETACH_VOLUME, DetachVolume(random.choice(VOLUMES))
            ),
            "extend volume": lambda at=located: _extend(world, random, random.choice(VOLUMES)),
            **{name: lambda at=located, it=it: world.compute.ask(CONTEXT, at, *it) for name, it in ASKED.items()},
        }
        accepted = await _ask(calls[action](), result)
        wants_volume &= not (accepted and action == "attach volume")


def _other_image(instance: Instance) -> RebuildServer:
    before = Origin.of(instance)
    image = IMAGE if instance.image_ref != IMAGE.id else OTHER_IMAGE
    after = msgspec.structs.replace(before, image=image, image_ref=image.id)
    return RebuildServer(before=before, after=after, admin_password="secret")


async def _extend(world: World, random: Random, volume: str) -> None:
    """A user of the volume service extends one, which may wait until guests have seen it."""
    waits = random.random() < 0.5 and bool(world.volumes.find(volume).attachments)
    world.volumes.extend(volume, world.volumes.find(volume).size + 1, waits=waits)
    world.volumes.tell_larger(volume)


async def _reset_if_idle(world: World, located: Any) -> None:
    resettable = (VmState.ERROR, VmState.RESCUED, VmState.RESIZED, VmState.SHELVED)
    if located.instance.vm_state in resettable and located.instance.task_state is None:
        await world.compute.reset_state(CONTEXT, located, active=False)


async def _detach(world: World, random: Random, located: Any) -> None:
    if located.instance.network_info:
        vif = random.choice(located.instance.network_info)
        await world.compute.ask(CONTEXT, located, DETACH_INTERFACE, DetachInterface(vif.id))


async def _ask(call: Any, result: Result) -> bool:
    try:
        await call
    except KilonovaError:
        return False
    result.operations += 1
    return True


# --- trouble ----------------------------------------------------------------------------------------


async def _chaos(world: World, random: Random, result: Result) -> None:
    trouble = world.trouble
    trouble.lost = random.choice((0.0, 0.02, 0.2))
    trouble.duplicated = random.choice((0.0, 0.1))
    trouble.db_error = random.choice((0.0, 0.0, 0.02))
    trouble.service_error = random.choice((0.0, 0.05, 0.3))
    for hypervisor in world.hypervisors.values():
        hypervisor.faults.latency = random.choice((0.0, 0.01, 0.2))
        if random.random() < 0.3:
            _plan_failures(hypervisor.faults.fail, random)
    murderous = random.random() < 0.8
    while world.loop.time() < CHAOS:
        await asyncio.sleep(random.expovariate(1 / 4.0))
        for hypervisor in world.hypervisors.values():
            if random.random() < 0.1:
                hypervisor.faults.disobedient = set(hypervisor.guests)
        event = random.random()
        name = random.choice(world.names)
        if event < 0.6 and murderous:
            result.crashes += 1
            world.crash(name)
            asyncio.get_running_loop().call_later(random.random() * 12.0, _reboot, world, name)
        elif event < 0.75:
            trouble.partitioned = {name} if random.random() < 0.6 else set()


def _plan_failures(plan: dict[str, list[KilonovaError]], random: Random) -> None:
    errors: tuple[KilonovaError, ...] = (
        TryElsewhere("no room here"), Retryable("busy"), KilonovaError("the hypervisor refuses"),
        InvalidInput("the image is corrupt"),
    )
    calls = (
        "create_disks", "spawn", "resume", "power_off", "power_on", "soft_reboot", "hard_reboot", "destroy", "pause",
        "suspend", "wake",
        "attach_interface", "detach_interface", "attach_volume", "detach_volume", "extend_volume",
        "snapshot", "snapshot_data", "discard_snapshot", "freeze", "thaw",
        "prepare_disks", "replace_disks", "drop_old_disks", "restore_disks", "prepare_rescue", "drop_rescue",
        "resize_disks", "revert_disks", "drop_kept_disks",
    )
    for call in calls:
        if random.random() < 0.3:
            plan[call] = [random.choice(errors) for _ in range(random.randint(1, 3))]


def _reboot(world: World, name: str) -> None:
    if not world.processes[name].alive:
        world.wire.spawn(world.boot(name))


async def _calm(world: World) -> None:
    """Faults end: all links heal, every process is alive."""
    world.trouble.calm()
    for hypervisor in world.hypervisors.values():
        hypervisor.faults.fail.clear()
        hypervisor.faults.latency = 0.0
        hypervisor.faults.disobedient = set()
    for name in world.names:
        if not world.processes[name].alive:
            await world.boot(name)


async def _settle(world: World) -> None:
    deadline = world.loop.time() + SETTLE
    while world.loop.time() < deadline:
        await asyncio.sleep(2.0)
        if not await active(world):
            await asyncio.sleep(1.0)
            return


async def _until_told(world: World) -> None:
    """Until everybody has heard everything, or nobody will."""
    deadline = world.loop.time() + SETTLE
    while world.loop.time() < deadline:
        for database, of in ((world.databases.api, api_outbox), (world.databases.cell, cell_outbox)):
            if await database.read(lambda conn, of=of: conn.execute(sa.select(of.rows.c.id).limit(1)).first()):
                break
        else:
            return
        await asyncio.sleep(2.0)


def quiet() -> None:
    """Failures are expected by the thousand: only defects are worth a line."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(),
    )
