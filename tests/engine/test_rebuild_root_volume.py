"""Rebuild of servers that boot from a volume: the image is written into it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from asked_volumes import ROOT, WITHOUT_ID, of_image, of_user
from small_cloud import OPTIONS, SmallCloud, in_cloud
from test_shelve_volumes import runs
from test_volume_usage import stored, use

from kilonova.db.outbox import cell_outbox
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import InvalidVolume, KilonovaError, OverQuota, ServiceUnavailable
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.operations.rebuild import Origin
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME, RebuildRootVolume

REFUSES = KilonovaError("the hypervisor refuses")
OTHER = "33333333-3333-4333-8333-333333333333"
NEW = Image(id="", name="other", properties={"os_type": "linux"})
HASTY = msgspec.structs.replace(OPTIONS, reimage_timeout_per_gb=0.2)


async def booted(cloud: SmallCloud, *others: str) -> str:
    """A server that boots from a volume of 2 GiB and has others, too."""
    more = [of_user(volume, uuid=volume) for volume in others]
    return await cloud.build(image=WITHOUT_ID, block_devices=(of_image(), *more))


async def rebuild(cloud: SmallCloud, uuid: str, image: str = OTHER, **fields: Any) -> None:
    before = Origin.of((await cloud.located(uuid)).instance)
    after = msgspec.structs.replace(before, image=NEW)
    request = RebuildRootVolume(before=before, after=after, image_id=image, **fields)
    await cloud.act(uuid, REBUILD_ROOT_VOLUME, request)


def failed(cloud: SmallCloud, uuid: str, why: str, *, image: Image = WITHOUT_ID) -> None:
    """Fail unless the rebuild failed with a fault that says why, and the record tells of that image."""
    assert cloud.operation(uuid, "rebuild-root-volume").state is OperationState.FAILED
    server, fault = cloud.server(uuid), cloud.fault(uuid)
    assert (server.task_state, server.image) == (None, image)
    assert fault is not None
    assert why in fault.message


@pytest.mark.spec(
    "RBD-02", "RBD-38", "RBD-39", "RBD-41", "RBD-46", "RBD-48", "RBD-49", "API-593",
)
@in_cloud()
async def test_an_image_is_written_into_the_root_volume_while_no_guest_has_it(cloud: SmallCloud) -> None:
    other = cloud.volumes.add()
    uuid = await booted(cloud, other)
    old, kept = cloud.devices(uuid)
    cloud.history.clear()
    cloud.effects.clear()
    cloud.volumes.calls.clear()
    await rebuild(cloud, uuid, admin_password="secret", changes={"display_name": "new"})
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("active", "rebuilding"), ("active", "rebuild_block_device_mapping"), ("active", "rebuild_spawning"),
        ("active", None),
    ]
    assert cloud.volumes.images == {ROOT: OTHER}
    runs(cloud, uuid, "host0", ROOT, other)
    root, still = cloud.devices(uuid)
    assert root.attachment_id != old.attachment_id
    assert still == kept
    done = [name for name, about in cloud.volumes.calls if about in (ROOT, root.attachment_id)]
    assert [name for name in done if name not in ("volume", "attachment")] == [
        "create_attachment", "discard_attachments", "reimage", "update_attachment", "complete_attachment"]
    assert [name for where, name in cloud.calls() if where == "host0" and name != "inventory"] == [
        "prepare_disks", "power_off", "destroy", "unplug", "replace_disks", "plug", "spawn", "drop_old_disks"]
    after = cloud.server(uuid)
    assert (after.image, after.image_ref, after.display_name, after.power_state) == (
        NEW, "", "new", PowerState.RUNNING)
    assert cloud.guests_made[-1][2].metadata.admin_password == "secret"
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("RBD-38")
@in_cloud(told=True, options=msgspec.structs.replace(OPTIONS, volume_usage_poll_interval=1e9))
async def test_the_loss_of_the_root_volume_is_told_and_what_was_done_with_it_counted(cloud: SmallCloud) -> None:
    uuid = await booted(cloud)
    use(cloud, uuid, ROOT, 1, 2, 3, 4)
    cloud.ears.heard.clear()
    await rebuild(cloud, uuid)
    await cloud.rest()
    waits = sa.select(sa.func.count()).select_from(cell_outbox.rows)
    await cloud.until(lambda: cloud.cell(lambda conn: conn.execute(waits).scalar()) == 0)
    (row,) = stored(cloud)
    assert (row.volume_id, row.total_read_requests, row.total_write_bytes) == (ROOT, 1, 4)
    events = [one for one in cloud.ears.once() if "instance.create" not in one.event_type]
    assert [one.event_type for one in events if one.versioned] == [
        "instance.exists", "instance.rebuild.start", "volume.usage", "instance.volume_detach.start",
        "instance.volume_detach.end", "instance.rebuild.end",
    ]
    assert "compute.instance.volume.detach" in [one.event_type for one in events if not one.versioned]


@pytest.mark.spec("RBD-56", "EMV-39")
@pytest.mark.parametrize("change", [{"status": "downloading"}, {"status": "uploading"}])
def test_a_volume_that_cannot_be_written_now_costs_nothing(change: dict[str, Any]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await booted(cloud)
        before = cloud.volumes.volumes[ROOT]
        cloud.volumes.volumes[ROOT] = msgspec.structs.replace(before, **change)
        await rebuild(cloud, uuid)
        await cloud.rest()
        failed(cloud, uuid, change["status"])
        cloud.volumes.volumes[ROOT] = before
        runs(cloud, uuid, "host0", ROOT)

    story()


@pytest.mark.spec("RBD-39", "RBD-54")
@pytest.mark.parametrize(("call", "error"), [
    ("create_attachment", InvalidVolume("not now")), ("reimage", InvalidVolume("it does not fit")),
    ("reimage", OverQuota("no quota")),
])
def test_a_volume_service_that_refuses_leaves_the_old_data_and_the_connection(call: str, error: KilonovaError) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await booted(cloud)
        cloud.volumes.fail[call] = [error]
        await rebuild(cloud, uuid)
        await cloud.rest()
        failed(cloud, uuid, error.message if call == "reimage" else "cannot be reserved")
        assert cloud.server(uuid).vm_state is VmState.ERROR
        assert cloud.volumes.images == {}
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        runs(cloud, uuid, "host0", ROOT)

    story()


@pytest.mark.spec("RBD-54")
@in_cloud()
async def test_a_volume_that_was_spoilt_can_be_written_again(cloud: SmallCloud) -> None:
    uuid = await booted(cloud)
    cloud.volumes.spoilt.add(ROOT)
    await rebuild(cloud, uuid)
    await cloud.rest()
    failed(cloud, uuid, "volume-reimaged")
    (device,) = cloud.devices(uuid)
    assert (device.state, device.connection_info) == (AttachState.RESERVED, None)
    assert [one.id for one in cloud.volumes.of_server(uuid)] == [device.attachment_id]
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "is not connected" in fault.message
    cloud.volumes.spoilt.clear()
    await rebuild(cloud, uuid)
    await cloud.rest()
    runs(cloud, uuid, "host0", ROOT)
    assert cloud.server(uuid).image == NEW


@pytest.mark.spec("EMV-39")
@in_cloud(options=HASTY)
async def test_writing_an_image_may_take_as_long_as_the_volume_is_large(cloud: SmallCloud) -> None:
    """It is connected again as soon as it has been written after all; the user rebuilds again, or deletes."""
    uuid = await booted(cloud)
    await rebuild(cloud, uuid)
    await cloud.rest()
    failed(cloud, uuid, "Timed out waiting for volume-reimaged")
    (device,) = cloud.devices(uuid)
    assert (device.state, cloud.volumes.find(ROOT).status) == (AttachState.ATTACHED, "in-use")
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    runs(cloud, uuid, "host0", ROOT)


@pytest.mark.spec("RBD-53")
@in_cloud()
async def test_a_server_whose_volume_is_being_written_can_be_deleted(cloud: SmallCloud) -> None:
    uuid = await booted(cloud)
    cloud.volumes.stuck.add(ROOT)
    await rebuild(cloud, uuid)
    await cloud.until(lambda: cloud.volumes.find(ROOT).status == "downloading")
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.volumes.held == {}


@pytest.mark.spec("RBD-54", "RBD-57")
@in_cloud()
async def test_a_guest_that_does_not_start_has_the_new_data_and_a_hard_reboot_starts_it(cloud: SmallCloud) -> None:
    uuid = await booted(cloud)
    cloud.fail("spawn", REFUSES)
    await rebuild(cloud, uuid)
    await cloud.rest()
    failed(cloud, uuid, "refuses", image=NEW)
    assert cloud.server(uuid).vm_state is VmState.ERROR
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    runs(cloud, uuid, "host0", ROOT)
    assert cloud.volumes.images == {ROOT: OTHER}


@pytest.mark.spec("RBD-41")
@in_cloud()
async def test_a_volume_service_that_tells_before_it_has_ended_is_waited_for(cloud: SmallCloud) -> None:
    uuid = await booted(cloud)
    cloud.volumes.fail["update_attachment"] = [InvalidVolume("being worked on"), ServiceUnavailable("away")]
    await rebuild(cloud, uuid)
    await cloud.rest()
    runs(cloud, uuid, "host0", ROOT)
