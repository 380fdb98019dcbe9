"""Images of servers that boot from volumes: snapshots of the volumes, and an image that names them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import ImageNotFound, KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.shapes.image_disks import disks_in

SWAP = BlockDevice(
    uuid="90000000-9999-4999-8999-999999999999", source_type="blank", destination_type="local", guest_format="swap",
    volume_size=64,
)
QUIET = {"hw_qemu_guest_agent": "yes", "os_require_quiesce": "yes"}


async def volume_backed(cloud: SmallCloud, **properties: str) -> tuple[str, str, str]:
    """A server that boots from a volume and has another, and the ids of both. properties: of its image."""
    uuid = await cloud.build()
    root = await cloud.attach(uuid)
    data = await cloud.attach(uuid, cloud.volumes.add(size=2))
    device = cloud.devices(uuid)[0]
    now = cloud.now
    await cloud.databases.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=now, was=tuple(AttachState), boot_index=0, device_name="/dev/vda",
        delete_on_termination=True,
    ))
    asked = msgspec.structs.replace(device, boot_index=0, connection_info=None)
    await cloud.change(uuid, block_devices=(asked, SWAP), image_ref="", image=Image(id="", properties=properties))
    return uuid, root, data


async def snapshot(cloud: SmallCloud, uuid: str) -> str:
    return await cloud.compute.create_image(CONTEXT, await cloud.located(uuid), "snap", {"mine": "yes"})


def nothing_is_left(cloud: SmallCloud, uuid: str) -> None:
    server, guest = cloud.server(uuid), cloud.guest(uuid)
    assert (server.vm_state, server.task_state) == (VmState.ACTIVE, None)
    assert cloud.images.kept() == []
    assert cloud.volumes.snapshots == {}
    assert guest is not None
    assert not guest.frozen


@pytest.mark.spec("API-124", "EMG-30")
@in_cloud()
async def test_an_image_names_snapshots_of_all_volumes(cloud: SmallCloud) -> None:
    uuid, root, data = await volume_backed(cloud, hw_disk_bus="scsi")
    cloud.effects.clear()
    image_id = await snapshot(cloud, uuid)
    assert cloud.server(uuid).task_state is not None
    await cloud.rest()
    (image,) = cloud.images.kept()
    assert (image.id, image.status, image.size) == (image_id, "active", 0)
    kept = image.properties
    assert (kept["bdm_v2"], kept["root_device_name"], kept["hw_disk_bus"], kept["mine"]) == (
        "True", "/dev/vda", "scsi", "yes")
    snapshots = {one.volume_id: one for one in cloud.volumes.snapshots.values()}
    assert {one.status for one in snapshots.values()} == {"available"}
    assert {one.name for one in snapshots.values()} == {"snapshot for snap"}
    first, second, swap = msgspec.json.decode(kept["block_device_mapping"])
    assert (first["snapshot_id"], first["boot_index"], first["device_name"], first["volume_size"]) == (
        snapshots[root].id, 0, "/dev/vda", 1)
    assert (first["source_type"], first["destination_type"], first["delete_on_termination"]) == (
        "snapshot", "volume", True)
    assert (second["snapshot_id"], second["boot_index"], second["volume_size"]) == (snapshots[data].id, None, 2)
    assert (swap["source_type"], swap["guest_format"], swap["volume_size"]) == ("blank", "swap", 64)
    assert [d.snapshot_id for d in disks_in(kept)] == [snapshots[root].id, snapshots[data].id, None]
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
    assert cloud.calls("snapshot", "freeze") == []  # no disk is copied, and nobody asked to hold still
    await cloud.images.client(cloud.processes["api"]).delete(image_id)
    assert len(cloud.volumes.snapshots) == 2


@pytest.mark.spec("QUI-01", "QUI-05")
@in_cloud()
async def test_file_systems_are_held_still_until_the_snapshots_are_taken(cloud: SmallCloud) -> None:
    uuid, _, _ = await volume_backed(cloud, **QUIET)
    states: list[set[str]] = []
    cloud.at["thaw guest/do/before"] = lambda _p: states.append({s.status for s in cloud.volumes.snapshots.values()})
    await snapshot(cloud, uuid)
    await cloud.rest()
    assert states == [{"available"}]
    assert [name for _, name in cloud.calls("freeze", "thaw")] == ["freeze", "thaw"]
    looks = [name for name, _ in cloud.volumes.calls if name == "snapshot"]
    assert len(looks) > 4
    guest = cloud.guest(uuid)
    assert guest is not None
    assert (guest.frozen, guest.freezes) == (False, 1)


@pytest.mark.spec("QUI-07", "QUI-10")
@pytest.mark.parametrize("away", [True, False])
def test_a_guest_is_let_go_whatever_becomes_of_its_snapshots(away: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, root, _ = await volume_backed(cloud, **QUIET)
        if away:
            cloud.volumes.fail["snapshot"] = [KilonovaError("nobody knows")]
        else:
            cloud.volumes.stuck.add(root)
        with structlog.testing.capture_logs() as logs:
            await snapshot(cloud, uuid)
            await cloud.until(lambda: cloud.times("thaw"))
        (froze,), (thawed,) = cloud.times("freeze"), cloud.times("thaw")
        assert thawed - froze < 35.0
        assert [e["instance"] for e in logs if e["event"].startswith("guest thawed")] == [uuid]
        for id_, one in cloud.volumes.snapshots.items():
            cloud.volumes.snapshots[id_] = msgspec.structs.replace(one, status="available")
        await cloud.rest()
        assert cloud.operation(uuid, "snapshot-volumes").state is OperationState.SUCCEEDED

    story()


@pytest.mark.spec("SNP-16", "SNP-19", "API-124")
@pytest.mark.parametrize("what", ["create_snapshot", "snapshot", "image", "spoilt"])
def test_what_fails_leaves_neither_snapshots_nor_an_image(what: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid, _, data = await volume_backed(cloud, **QUIET)
        if what == "spoilt":
            cloud.volumes.spoilt.add(data)
        elif what == "image":
            cloud.images.fail["upload"] = [ImageNotFound("gone")] * 9
        else:
            cloud.volumes.fail[what] = [KilonovaError("no room")] * 9
        if what == "create_snapshot":
            with pytest.raises(KilonovaError, match="no room"):
                await snapshot(cloud, uuid)
        else:
            await snapshot(cloud, uuid)
        await cloud.rest()
        nothing_is_left(cloud, uuid)
        assert cloud.faults(uuid) == 1

    story()


@in_cloud()
async def test_a_server_that_is_deleted_meanwhile_leaves_nothing(cloud: SmallCloud) -> None:
    uuid, root, _ = await volume_backed(cloud, **QUIET)
    cloud.volumes.stuck.add(root)
    await snapshot(cloud, uuid)
    await cloud.until(lambda: cloud.times("thaw"))
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.images.kept() == []
    assert cloud.volumes.snapshots == {}


@in_cloud()
async def test_an_image_that_is_complete_outlives_its_server(cloud: SmallCloud) -> None:
    uuid, _, _ = await volume_backed(cloud)
    deletes: list[asyncio.Task[None]] = []
    cloud.at["activate image/do/before"] = lambda _p: deletes.append(asyncio.ensure_future(cloud.delete(uuid)))
    image_id = await snapshot(cloud, uuid)
    await cloud.until(lambda: deletes)
    await deletes[0]
    await cloud.rest()
    assert cloud.images.images[image_id].status == "active"
    assert {one.status for one in cloud.volumes.snapshots.values()} == {"available"}
    cloud.gone(uuid)


@in_cloud()
async def test_a_stopped_server_is_copied_without_a_guest_to_freeze(cloud: SmallCloud) -> None:
    uuid, _, _ = await volume_backed(cloud, **QUIET)
    await cloud.stop(uuid)
    await cloud.rest()
    image_id = await snapshot(cloud, uuid)
    await cloud.rest()
    assert cloud.images.images[image_id].status == "active"
    assert cloud.calls("freeze") == []
    assert cloud.power(uuid) is PowerState.SHUTDOWN
