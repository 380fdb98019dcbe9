"""How each operation is asked for. A new operation needs an entry here; its steps are found by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import sqlalchemy as sa
from accelerated import asks_for
from host_cells import DEDICATED
from host_devices import with_devices

from crash_matrix.cloud import CONTEXT, PROJECT, OneCloud
from crash_matrix.users_ports import DEVICE_NEEDS, DEVICE_PORT, NEED, SPARE_PORT, USERS_PORT
from crash_matrix.volumes import NEW_VOLUME, SPARE_VOLUME, VOLUME, begin_migration, have_taken
from kilonova.db import block_devices, instances
from kilonova.db.journal import cell_journal
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import KilonovaError
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BuildRequest, Instance, RequestSpec
from kilonova.domain.network import RequestedNetwork
from kilonova.domain.operation import Asker, ExternalEvent
from kilonova.domain.states import PowerState, VmState
from kilonova.embedded.volume.states import SnapshotStatus, VolumeStatus
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.hypervisor.fake import DISK, FakeGuest
from kilonova.hypervisor.volumes import FileMerge, FileSource
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface
from kilonova.operations.attach_share import ATTACH_SHARE, AttachShare
from kilonova.operations.attach_volume import ATTACH_VOLUME, AttachVolume
from kilonova.operations.bind_ports import BIND_PORTS, BindPorts
from kilonova.operations.clean_migration import CLEAN_MIGRATION, CleanMigration
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.crash_dump import TRIGGER_CRASH_DUMP, TriggerCrashDump
from kilonova.operations.delete_volume_snapshot import DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot
from kilonova.operations.deleted_guest import POWER_OFF_DELETED, REAP_DELETED, DeletedGuest
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.operations.detach_share import DETACH_SHARE, DetachShare
from kilonova.operations.detach_volume import DETACH_VOLUME, DetachVolume
from kilonova.operations.fixed_ip import ADD_FIXED_IP, REMOVE_FIXED_IP, AddFixedIp, RemoveFixedIp
from kilonova.operations.inject_network_info import INJECT_NETWORK_INFO, InjectNetworkInfo
from kilonova.operations.password import CHANGE_PASSWORD, ChangePassword
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer, UnpauseServer
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME, RebuildRootVolume
from kilonova.operations.remove_leftover import REMOVE_LEFTOVER, RemoveLeftover
from kilonova.operations.rescue import RESCUE, RescueServer
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize
from kilonova.operations.shelf import IMAGE_KEY
from kilonova.operations.shelve import UNSHELVE, UnshelveServer
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.shelve_volumes import SHELVE_VOLUMES, ShelveOnVolumes
from kilonova.operations.snapshot import SnapshotServer
from kilonova.operations.snapshot_volumes import SNAPSHOT_VOLUMES
from kilonova.operations.soft_delete import SOFT_DELETE, SoftDeleteServer
from kilonova.operations.start import START, StartServer
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER, ResumeServer, SuspendServer
from kilonova.operations.swap_volume import SWAP_VOLUME, SwapVolume
from kilonova.operations.take_volume_snapshot import TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot
from kilonova.operations.tidy import TIDY, TidyServer
from kilonova.operations.told import EXTENDED
from kilonova.operations.unrescue import UNRESCUE, UnrescueServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.image import NewImage
from kilonova.shapes.quiesce import Quiesce

SERVER = "44444444-4444-4444-8444-444444444444"
FLAVOR = with_devices(
    Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1, extra_specs=DEDICATED), "gpu:1"
)
BIGGER = with_devices(
    Flavor(flavor_id="2", name="bigger", vcpus=2, memory_mib=1024, root_gib=2, extra_specs=DEDICATED), "gpu:2"
)
IMAGE = Image(id="22222222-2222-4222-8222-222222222222")
OTHER_IMAGE = Image(id="33333333-3333-4333-8333-333333333333")
MADE_IMAGE = "44444444-4444-4444-8444-444444444444"
SECRET = "s3cret-pass"
TAKEN, DELETED = "77777777-1111-4777-8777-777777777777", "77777777-2222-4777-8777-777777777777"
"""Snapshots of a volume."""
DEVICES = (
    BlockDevice(
        uuid="66666666-1111-4666-8666-666666666666", source_type="volume", destination_type="volume",
        volume_id=SPARE_VOLUME, device_name="/dev/vdb", state=AttachState.RESERVED,
    ),
    BlockDevice(
        uuid="66666666-2222-4666-8666-666666666666", source_type="blank", destination_type="volume", volume_size=1,
        device_name="/dev/vdc", delete_on_termination=True, state=AttachState.RESERVED,
    ),
)
"""Volumes of new servers."""


Request = Callable[[OneCloud], Awaitable[None]]


class Scenario(msgspec.Struct, frozen=True):
    """How an operation comes about.

    Args:
        before: the requests that lead to it, of this table or of `LEADING`, each of them done.
        ask: the request itself.
        clean_up: what makes everything go after it has failed.
        server: it is about a server that a user sees. blamed: its failure is a fault of the server.
    """

    before: tuple[str, ...]
    ask: Request
    clean_up: Request = OneCloud.delete
    server: bool = True
    blamed: bool = True


async def _create(
    cloud: OneCloud, flavor: Flavor = FLAVOR, asked: Flavor | None = None, *, image: Image = IMAGE,
    devices: tuple[BlockDevice, ...] = DEVICES,
) -> None:
    """A server with an interface on a network and two on ports that the user brings, of which one is a device; with a
    volume that the user brings, and one that is made for it and goes with it. asked: how hosts are chosen."""
    instance = Instance(
        uuid=SERVER, project_id=PROJECT, user_id="u", display_name="vm", flavor=flavor, image_ref=image.id,
        image=image, created_at=cloud.clock.now(), block_devices=devices,
    )
    (network, *_) = [n for n in await cloud.networks.networks(CONTEXT) if n.name == "private"]
    spec = RequestSpec(
        instance_uuid=SERVER, project_id=PROJECT, user_id="u", flavor=asked or flavor, image=image,
        requested_networks=(
            RequestedNetwork(network_id=network.id), RequestedNetwork(port_id=USERS_PORT, need=NEED),
            RequestedNetwork(port_id=DEVICE_PORT, need=DEVICE_NEEDS[DEVICE_PORT]),
        ),
        block_devices=devices,
    )
    await cloud.compute.create(CONTEXT, [BuildRequest(instance=instance, spec=spec, admin_password=SECRET)])


async def _create_on_volume(cloud: OneCloud) -> None:
    """The same, booting from the volume that the user brings."""
    root, other = DEVICES
    root = msgspec.structs.replace(root, boot_index=0, device_name="/dev/vda")
    await _create(cloud, image=msgspec.structs.replace(IMAGE, id=""), devices=(root, other))


async def _create_accelerated(cloud: OneCloud) -> None:
    """The same with an accelerator."""
    await _create(cloud, *asks_for(FLAVOR, "fpga"))


async def _create_impossible(cloud: OneCloud) -> None:
    """A server whose flavor contradicts itself, which shows only when a host is chosen."""
    await _create(cloud, msgspec.structs.replace(FLAVOR, extra_specs={"resources:VCPU": "many"}))


async def _stop(cloud: OneCloud) -> None:
    await cloud.compute.stop(CONTEXT, await cloud.located())


async def _create_image(cloud: OneCloud) -> None:
    """If the image cannot even be recorded, its user is told at once."""
    with contextlib.suppress(KilonovaError):
        await cloud.compute.create_image(CONTEXT, await cloud.located(), "snap", {})


async def _tidy(cloud: OneCloud) -> None:
    """The states of a resized server were reset, which has the image of a shelf, too."""
    await cloud.images.create(NewImage(id=OTHER_IMAGE.id, name="shelved", owner=PROJECT))
    await cloud.images.upload(OTHER_IMAGE.id, _data())
    now, kept = cloud.clock.now(), {IMAGE_KEY: OTHER_IMAGE.id}
    await cloud.cell.write(
        lambda conn: instances.update(conn, SERVER, now=now, vm_state=VmState.ACTIVE, system_metadata=kept)
    )
    await cloud.compute.ask(CONTEXT, await cloud.located(), TIDY, TidyServer(unshelved=True))


async def _shelve(cloud: OneCloud) -> None:
    await cloud.compute.shelve(CONTEXT, await cloud.located())


async def _create_backup(cloud: OneCloud) -> None:
    with contextlib.suppress(KilonovaError):
        await cloud.compute.create_backup(
            CONTEXT, await cloud.located(), "backup", {}, backup_type="daily", rotation=1
        )


def _ask(definition: Operation, request: msgspec.Struct) -> Request:
    async def ask(cloud: OneCloud) -> None:
        await cloud.compute.ask(CONTEXT, await cloud.located(), definition, request)

    return ask


async def _soft_reboot(cloud: OneCloud) -> None:
    await cloud.compute.reboot(CONTEXT, await cloud.located(), hard=False)


async def _hard_reboot(cloud: OneCloud) -> None:
    await cloud.compute.reboot(CONTEXT, await cloud.located(), hard=True)


async def _attach_interface(cloud: OneCloud) -> None:
    """On another port that is a device."""
    request = AttachInterface(RequestedNetwork(port_id=SPARE_PORT, need=DEVICE_NEEDS[SPARE_PORT]))
    await cloud.compute.ask(CONTEXT, await cloud.located(), ATTACH_INTERFACE, request)


async def _add_fixed_ip(cloud: OneCloud) -> None:
    server = await cloud.located()
    await cloud.compute.ask(CONTEXT, server, ADD_FIXED_IP, AddFixedIp(server.instance.network_info[0].network_id))


async def _remove_fixed_ip(cloud: OneCloud) -> None:
    server = await cloud.located()
    request = RemoveFixedIp(server.instance.network_info[0].fixed_ips[0].address)
    await cloud.compute.ask(CONTEXT, server, REMOVE_FIXED_IP, request)


async def _detach_interface(cloud: OneCloud) -> None:
    """The one whose port is a device."""
    await cloud.compute.ask(CONTEXT, await cloud.located(), DETACH_INTERFACE, DetachInterface(DEVICE_PORT))


async def _extend_volume(cloud: OneCloud) -> None:
    """The volume service tells that the volume is larger, and waits to hear of the guest."""
    await cloud.volumes.reset_status(CONTEXT, VOLUME, status=VolumeStatus.EXTENDING)
    await cloud.conductor.deliver(ExternalEvent(subject=SERVER, name=EXTENDED, tag=VOLUME))


async def _swap_volume(cloud: OneCloud) -> None:
    """The volume service migrates the volume."""
    await begin_migration(cloud.volumes)
    await cloud.compute.ask(CONTEXT, await cloud.located(), SWAP_VOLUME, SwapVolume(VOLUME, NEW_VOLUME))


async def _take_volume_snapshot(cloud: OneCloud) -> None:
    """The volume service cannot take snapshots of a volume in use, as it is a file."""
    file = FileSource(path="/pool/base")
    told = msgspec.json.encode({"driver_volume_type": "local", "device_path": file.path}).decode()
    now, server = cloud.clock.now(), await cloud.located()
    device = await cloud.cell.read(lambda conn: block_devices.of_volume(conn, SERVER, VOLUME))
    await cloud.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=now, was=tuple(AttachState), connection_info=told,
    ))
    hypervisor = cloud.hypervisors[server.instance.host or ""]
    guest = msgspec.structs.replace(hypervisor.guests[SERVER])
    has = msgspec.structs.replace(guest.volumes[VOLUME], running=file, defined=file)
    hypervisor.keep(msgspec.structs.replace(guest, volumes=guest.volumes | {VOLUME: has}))
    await have_taken(cloud.volumes, TAKEN, SnapshotStatus.CREATING)
    await cloud.compute.ask(CONTEXT, server, TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot(
        volume_id=VOLUME, snapshot_id=TAKEN, new_file="new",
    ))


async def _delete_volume_snapshot(cloud: OneCloud) -> None:
    await have_taken(cloud.volumes, DELETED, SnapshotStatus.DELETING)
    await cloud.compute.ask(CONTEXT, await cloud.located(), DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot(
        volume_id=VOLUME, snapshot_id=DELETED, merge=FileMerge(file=None),
    ))


async def _rebuild(cloud: OneCloud) -> None:
    """From another image, with a password."""
    instance = (await cloud.located()).instance
    before = Origin.of(instance)
    after = msgspec.structs.replace(before, image=OTHER_IMAGE, image_ref=OTHER_IMAGE.id)
    request = RebuildServer(before=before, after=after, admin_password=SECRET)
    await cloud.compute.ask(CONTEXT, await cloud.located(), REBUILD, request)


async def _rebuild_root_volume(cloud: OneCloud) -> None:
    """From another image, with a password."""
    await cloud.images.create(NewImage(id=OTHER_IMAGE.id, name="other", owner=PROJECT))
    await cloud.images.upload(OTHER_IMAGE.id, _data())
    before = Origin.of((await cloud.located()).instance)
    request = RebuildRootVolume(before=before, after=before, image_id=OTHER_IMAGE.id, admin_password=SECRET)
    await cloud.compute.ask(CONTEXT, await cloud.located(), REBUILD_ROOT_VOLUME, request)


async def _delete(cloud: OneCloud) -> None:
    """The record does not know the interfaces, so that they are looked for."""
    now = cloud.clock.now()
    await cloud.cell.write(lambda conn: instances.update(conn, SERVER, now=now, network_info=()))
    await cloud.compute.delete(CONTEXT, await cloud.located())


async def _remove_leftover(cloud: OneCloud) -> None:
    """There is a guest that belongs to no server."""
    hypervisor = cloud.hypervisors["host0"]
    hypervisor.keep(FakeGuest(uuid=SERVER, disks=True, defined=True, power_state=PowerState.RUNNING))
    request = RemoveLeftover(host="host0")
    await cloud.cell.write(lambda conn: submit.submit(
        Tx(conn, cloud.clock.now()), cell_journal, REMOVE_LEFTOVER, SERVER, request, Asker()
    ))
    cloud.conductor.wake()


def _of_deleted(operation: Operation, request: msgspec.Struct, *, guest: bool = True) -> Request:
    """There is (or was, before its turn came) a guest of a server that is deleted."""

    async def ask(cloud: OneCloud) -> None:
        now = cloud.clock.now()
        hypervisor = cloud.hypervisors["host0"]
        hypervisor.keep(FakeGuest(uuid=SERVER, disks=guest, defined=guest, power_state=PowerState.RUNNING))
        gone = Instance(
            uuid=SERVER, project_id=PROJECT, user_id="u", display_name="vm", flavor=FLAVOR, created_at=now,
            vm_state=VmState.DELETED, deleted_at=now,
        )

        def accept(conn: sa.Connection) -> None:
            instances.insert(conn, gone)
            submit.submit(Tx(conn, now), cell_journal, operation, SERVER, request, Asker())

        await cloud.cell.write(accept)
        cloud.conductor.wake()

    return ask


REAP = _of_deleted(REAP_DELETED, DeletedGuest(host="host0"))


async def _data() -> AsyncIterator[bytes]:
    yield DISK


async def _precache_images(cloud: OneCloud) -> None:
    (cell,) = cloud.cells.all
    await cloud.images.create(NewImage(id=OTHER_IMAGE.id, name="early", owner=PROJECT))
    await cloud.images.upload(OTHER_IMAGE.id, _data())
    await cloud.compute.cache_images(CONTEXT, cell, SERVER, ["host0"], [OTHER_IMAGE.id])


SHARE = "77777777-7777-4777-8777-777777777777"
ATTACHED = AttachShare(share_id=SHARE, tag="data", export_location="/srv/data")
SOFTLY = SoftDeleteServer(grace=5.0, interval=1.0)

LEADING = {"build-on-volume": _create_on_volume}
"""Further requests that lead to operations."""

SCENARIOS = {
    "place": Scenario((), _create),
    "bury": Scenario((), _create_impossible),
    "build": Scenario((), _create_accelerated),
    "stop": Scenario(("build",), _stop),
    "start": Scenario(("build", "stop", "attach-share"), _ask(START, StartServer())),
    "attach-share": Scenario(("build", "stop"), _ask(ATTACH_SHARE, ATTACHED)),
    "detach-share": Scenario(("build", "stop", "attach-share"), _ask(DETACH_SHARE, DetachShare(SHARE))),
    "soft-reboot": Scenario(("build", "stop", "attach-share", "start"), _soft_reboot),
    "hard-reboot": Scenario(("build", "stop", "attach-share", "start"), _hard_reboot),
    "pause": Scenario(("build",), _ask(PAUSE_SERVER, PauseServer())),
    "unpause": Scenario(("build", "pause"), _ask(UNPAUSE_SERVER, UnpauseServer())),
    "suspend": Scenario(("build",), _ask(SUSPEND_SERVER, SuspendServer())),
    "resume": Scenario(("build", "suspend"), _ask(RESUME_SERVER, ResumeServer())),
    "add-fixed-ip": Scenario(("build",), _add_fixed_ip),
    "remove-fixed-ip": Scenario(("build",), _remove_fixed_ip),
    "attach-interface": Scenario(("build",), _attach_interface),
    "detach-interface": Scenario(("build",), _detach_interface),
    "attach-volume": Scenario(("build",), _ask(ATTACH_VOLUME, AttachVolume(volume_id=VOLUME))),
    "detach-volume": Scenario(("build", "attach-volume"), _ask(DETACH_VOLUME, DetachVolume(VOLUME))),
    "extend-volume": Scenario(("build", "attach-volume"), _extend_volume),
    "swap-volume": Scenario(("build", "attach-volume"), _swap_volume),
    "take-volume-snapshot": Scenario(("build", "attach-volume"), _take_volume_snapshot, blamed=False),
    "delete-volume-snapshot": Scenario(
        ("build", "attach-volume", "take-volume-snapshot"), _delete_volume_snapshot, blamed=False
    ),
    "bind-ports": Scenario(("build",), _ask(BIND_PORTS, BindPorts("host0")), blamed=False),
    "rebuild": Scenario(("build",), _rebuild),
    "rebuild-root-volume": Scenario(("build-on-volume",), _rebuild_root_volume),
    "trigger-crash-dump": Scenario(("build",), _ask(TRIGGER_CRASH_DUMP, TriggerCrashDump())),
    "inject-network-info": Scenario(("build",), _ask(INJECT_NETWORK_INFO, InjectNetworkInfo())),
    "change-password": Scenario(("build",), _ask(CHANGE_PASSWORD, ChangePassword(key="one"))),
    "snapshot": Scenario(("build",), _create_image),
    "snapshot-volumes": Scenario(("build", "attach-volume"), _ask(
        SNAPSHOT_VOLUMES,
        SnapshotServer(image=NewImage(id=MADE_IMAGE, name="snap", owner=PROJECT), quiesce=Quiesce.TRY),
    )),
    "backup": Scenario(("build",), _create_backup),
    "rescue": Scenario(("build",), _ask(RESCUE, RescueServer(image=OTHER_IMAGE, admin_password=SECRET))),
    "unrescue": Scenario(("build", "rescue"), _ask(UNRESCUE, UnrescueServer())),
    "resize": Scenario(("place",), _ask(RESIZE, ResizeServer(flavor=BIGGER))),
    "confirm-resize": Scenario(("place", "resize"), _ask(CONFIRM_RESIZE, ConfirmResize())),
    "revert-resize": Scenario(("place", "resize"), _ask(REVERT_RESIZE, RevertResize())),
    "tidy": Scenario(("place", "resize"), _tidy),
    "shelve": Scenario(("build",), _shelve),
    "shelve-on-volumes": Scenario(("build",), _ask(SHELVE_VOLUMES, ShelveOnVolumes(grace=1.0, interval=1.0))),
    "shelve-offload": Scenario(("build", "shelve"), _ask(SHELVE_OFFLOAD, OffloadServer())),
    "unshelve-offloaded": Scenario(
        ("build", "shelve", "shelve-offload"), _ask(UNSHELVE_OFFLOADED, UnshelveOffloaded())
    ),
    "unshelve": Scenario(("build", "shelve"), _ask(UNSHELVE, UnshelveServer())),
    "delete": Scenario(("build",), _delete),
    "soft-delete": Scenario(("build",), _ask(SOFT_DELETE, SOFTLY)),
    "restore": Scenario(("build", "soft-delete"), _ask(RESTORE, RestoreServer())),
    "power-off-deleted": Scenario(
        (), _of_deleted(POWER_OFF_DELETED, DeletedGuest(host="host0"), guest=False), clean_up=REAP, server=False
    ),
    "reap-deleted": Scenario((), REAP, clean_up=REAP, server=False),
    "clean-migration": Scenario(
        (), _of_deleted(CLEAN_MIGRATION, CleanMigration(migration=SERVER, source="host0", destination="host1")),
        clean_up=REAP, server=False,
    ),
    "precache-images": Scenario((), _precache_images, server=False),
    "remove-leftover": Scenario((), _remove_leftover, clean_up=_remove_leftover, server=False),
}
"""By operation."""
