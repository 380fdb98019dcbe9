"""Images made of servers: snapshots, and backups with their rotation."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog
from small_cloud import CONTEXT, IMAGE, SmallCloud, in_cloud

from kilonova.domain.errors import (
    Forbidden,
    InstanceInvalidState,
    InstanceNeverLaunched,
    InvalidInput,
    KilonovaError,
    ServiceUnavailable,
)
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.backup import surplus

REFUSES = KilonovaError("the hypervisor refuses")
BASE = msgspec.structs.replace(IMAGE, min_disk=3, min_ram=64, properties={
    "hw_disk_bus": "scsi", "unheard_of": "x", "cache_in_nova": "True", "img_signature_hash_method": "SHA-256",
})


async def snapshot(cloud: SmallCloud, uuid: str, **metadata: str) -> str:
    return await cloud.compute.create_image(CONTEXT, await cloud.located(uuid), "snap", metadata)


async def backup(cloud: SmallCloud, uuid: str, rotation: int = 2, kind: str = "daily") -> str:
    return await cloud.compute.create_backup(
        CONTEXT, await cloud.located(uuid), "backup", {}, backup_type=kind, rotation=rotation
    )


def untouched(cloud: SmallCloud, uuid: str, vm: VmState = VmState.ACTIVE) -> None:
    """The server is as before, and nothing is left of an attempt."""
    server, guest = cloud.server(uuid), cloud.guest(uuid)
    assert (server.vm_state, server.task_state) == (vm, None)
    assert guest is not None
    assert (guest.snapshots, guest.starts) == ((), 1)


@pytest.mark.spec("SNP-01", "SNP-03", "SNP-13", "SNP-14", "SNP-15")
@in_cloud()
async def test_a_snapshot_becomes_an_image_while_the_guest_runs(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.history.clear()
    image = await snapshot(cloud, uuid)
    assert cloud.images.images[image].status == "queued"
    await cloud.rest()
    assert cloud.states(uuid) == [("active", task) for task in (
        "image_snapshot_pending", "image_snapshot", "image_pending_upload", "image_uploading", None
    )]
    assert cloud.images.images[image].status == "active"
    assert cloud.images.images[image].size > 0
    untouched(cloud, uuid)
    assert [a.action for a in await cloud.actions(uuid)] == ["create", "createImage"]


@pytest.mark.spec("EMG-32", "EMG-35")
@in_cloud()
async def test_what_the_image_of_a_server_says(cloud: SmallCloud) -> None:
    uuid = await cloud.build(image=BASE)
    new = cloud.images.new[await snapshot(cloud, uuid, note="mine", instance_uuid="forged", image_type="golden")]
    assert (new.name, new.owner, new.member, new.disk_format, new.container_format) == (
        "snap", "project", "", "qcow2", "bare")
    assert (new.min_disk, new.min_ram) == (3, 64)
    assert new.properties == {
        "hw_disk_bus": "scsi", "unheard_of": "x", "note": "mine", "base_image_ref": BASE.id, "boot_roles": "",
        "image_location": "snapshot", "image_state": "available", "image_type": "golden", "instance_uuid": uuid,
        "owner_id": "project", "user_id": "user",
    }
    await cloud.rest()


@pytest.mark.spec("EMG-24")
@in_cloud()
async def test_an_image_made_in_another_project_is_shared_with_the_servers(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    admin = msgspec.structs.replace(CONTEXT, project_id="operators", user_id="operator", roles=("admin", "reader"))
    new = cloud.images.new[await cloud.compute.create_image(admin, await cloud.located(uuid), "snap", {})]
    assert (new.owner, new.member) == ("operators", "project")
    assert (new.properties["boot_roles"], new.properties["user_id"]) == ("admin,reader", "operator")
    await cloud.rest()


@pytest.mark.spec("SNP-11")
@in_cloud()
async def test_the_power_state_is_looked_at_first(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await cloud.change(uuid, power_state=PowerState.NOSTATE)
    with structlog.testing.capture_logs() as logs:
        await snapshot(cloud, uuid)
        await cloud.rest()
    untouched(cloud, uuid, VmState.STOPPED)
    assert cloud.server(uuid).power_state is PowerState.SHUTDOWN
    assert [e["log_level"] for e in logs if e["event"] == "guest that is copied does not run"] == ["warning"]


@in_cloud()
async def test_in_which_states_images_are_made(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for state in VmState:
        if state is VmState.DELETED:
            continue
        await cloud.change(uuid, vm_state=state)
        for make, action in ((snapshot, "createImage"), (backup, "createBackup")):
            if state in (VmState.ACTIVE, VmState.STOPPED, VmState.PAUSED, VmState.SUSPENDED):
                await make(cloud, uuid)
                await cloud.until(lambda: not cloud.active())
                await cloud.change(uuid, vm_state=state)
            else:
                with pytest.raises(InstanceInvalidState, match=f"Cannot '{action}' instance .* vm_state {state}"):
                    await make(cloud, uuid)
    await cloud.change(uuid, vm_state=VmState.ACTIVE, launched_at=None)
    with pytest.raises(InstanceNeverLaunched):
        await snapshot(cloud, uuid)
    assert len(cloud.images.kept()) == 6  # of the backups two are kept


@in_cloud()
async def test_a_refusal_of_the_image_service_is_told_at_once(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for refusal in (Forbidden("too many images"), InvalidInput("status is no property")):
        cloud.images.fail["create"] = [refusal]
        with pytest.raises(type(refusal), match=refusal.message):
            await snapshot(cloud, uuid)
        await cloud.rest()
        untouched(cloud, uuid)
        assert cloud.images.kept() == []


@pytest.mark.spec("SNP-01", "SNP-23")
@in_cloud()
async def test_an_image_service_that_is_away_for_a_moment_is_asked_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    away = ServiceUnavailable("away")
    cloud.images.fail = {"create": [away], "upload": [away, away]}
    image = await snapshot(cloud, uuid)
    await cloud.rest()
    assert cloud.images.images[image].status == "active"
    untouched(cloud, uuid)


@pytest.mark.spec("SNP-02", "SNP-19", "SNP-25", "FND-27", "SNP-32")
@pytest.mark.parametrize("make", [snapshot, backup])
@pytest.mark.parametrize("call", ["snapshot", "snapshot_data"])
def test_a_host_that_cannot_leaves_no_image_and_one_fault(make: type, call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.fail(call, REFUSES)
        told: list[int] = []
        cloud.at["create image/undo/answered"] = lambda _p: told.append(cloud.faults(uuid))
        await make(cloud, uuid)
        await cloud.rest()
        untouched(cloud, uuid)
        assert told == [0]  # the image goes first
        assert cloud.images.kept() == []
        assert "backups" not in [name for name, _ in cloud.images.calls]
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.message, cloud.faults(uuid)) == (REFUSES.message, 1)
        assert (await cloud.actions(uuid))[-1].message == "Error"

    story()


@pytest.mark.spec("FND-28")
@in_cloud()
async def test_an_image_that_cannot_be_deleted_does_not_hide_what_failed(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("snapshot", REFUSES)
    cloud.images.fail["delete"] = [Forbidden("protected")]
    with structlog.testing.capture_logs() as logs:
        image = await snapshot(cloud, uuid)
        await cloud.rest()
    assert [e["image"] for e in logs if e["event"] == "image left over"] == [image]
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.message, cloud.faults(uuid)) == (REFUSES.message, 1)


@pytest.mark.spec("SNP-04", "SNP-16", "SNP-08", "SNP-10")
@pytest.mark.parametrize("step", ["create image", "look at guest", "take snapshot", "upload"])
def test_a_delete_ends_a_snapshot_and_takes_the_image_along(step: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"snapshot/{step}/do/before"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
        asking = asyncio.ensure_future(snapshot(cloud, uuid))
        await asyncio.gather(asking, return_exceptions=True)
        await cloud.until(lambda: not cloud.active())
        cloud.gone(uuid)
        assert all(image.status == "active" for image in cloud.images.kept())
        assert step == "upload" or cloud.images.kept() == []
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("SNP-16")
@in_cloud()
async def test_an_image_that_is_complete_outlives_its_server(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["upload/do/effect"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
    image = await snapshot(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.images.images[image].status == "active"


@pytest.mark.spec("SNP-05", "SNP-17")
@pytest.mark.parametrize("task", [None, TaskState.DELETING])
@pytest.mark.parametrize("step", ["look at guest", "upload"])
def test_a_server_that_somebody_else_took_over_keeps_its_task(task: TaskState | None, step: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"snapshot/{step}/do/before"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=task))
        await snapshot(cloud, uuid)
        await cloud.until(lambda: not cloud.active())
        assert cloud.server(uuid).task_state is task
        left = [image.status for image in cloud.images.kept()]
        assert left == ([] if step == "look at guest" else ["active"])  # it was complete before that showed
        assert cloud.operation(uuid, "snapshot").state is OperationState.CANCELLED

    story()


@pytest.mark.spec("SNP-18")
@in_cloud()
async def test_an_image_that_its_user_deletes_fails_the_snapshot(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["upload/do/before"] = lambda _p: cloud.images.images.popitem()
    with structlog.testing.capture_logs() as logs:
        image = await snapshot(cloud, uuid)
        await cloud.rest()
    untouched(cloud, uuid)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == f"Image {image} could not be found."
    assert (await cloud.actions(uuid))[-1].message == "Error"
    assert [e["log_level"] for e in logs if e["event"] == "no image made of server"] == ["warning"]


@pytest.mark.spec("SNP-07", "FND-55", "SNP-09")
@pytest.mark.parametrize(("limit", "together"), [(1, 1), (2, 2), (0, 3), (-1, 3)])
def test_only_so_many_snapshots_run_at_once_on_a_host(limit: int, together: int) -> None:
    @in_cloud(max_concurrent_snapshots=limit)
    async def story(cloud: SmallCloud) -> None:
        uuids = [await cloud.build() for _ in range(3)]
        cloud.hypervisors["host0"].faults.latency = 100.0
        for make, uuid in zip((snapshot, backup, snapshot), uuids, strict=True):
            await make(cloud, uuid)
        await cloud.until(lambda: cloud.calls("snapshot"))
        cloud.hypervisors["host0"].faults.latency = 400.0
        await asyncio.sleep(50.0)
        assert len(cloud.calls("snapshot")) == together
        waiting = {TaskState.IMAGE_SNAPSHOT, TaskState.IMAGE_BACKUP}
        assert all(cloud.server(uuid).task_state in waiting for uuid in uuids)
        await cloud.rest(within=8_000.0)
        assert [image.status for image in cloud.images.kept()] == ["active"] * 3
        assert [cloud.faults(uuid) for uuid in uuids] == [0, 0, 0]

    story()


@pytest.mark.spec("SNP-08", "SNP-10")
@in_cloud(max_concurrent_snapshots=1)
async def test_a_server_that_waits_for_its_turn_can_be_deleted(cloud: SmallCloud) -> None:
    first, second = await cloud.build(), await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 100.0
    await snapshot(cloud, first)
    image = await snapshot(cloud, second)
    await cloud.until(lambda: cloud.calls("snapshot"), within=1000.0)
    await cloud.task(second, TaskState.IMAGE_SNAPSHOT)
    with pytest.raises(InstanceInvalidState, match="task_state image_snapshot"):
        await cloud.stop(second)
    await cloud.delete(second)
    await cloud.rest(within=4000.0)
    cloud.gone(second)
    assert [i.status for i in cloud.images.kept()] == ["active"]
    assert image not in cloud.images.images
    assert len(cloud.calls("snapshot")) == 1


@pytest.mark.spec("SNP-06", "SNP-21", "SNP-22", "SNP-23", "FND-29", "INI-102", "INI-114")
@pytest.mark.parametrize("make", [snapshot, backup])
@pytest.mark.parametrize("step", ["create image", "look at guest", "take snapshot", "upload"])
@pytest.mark.parametrize("moment", ["before", "answered"])
def test_a_snapshot_that_was_cut_off_goes_on(make: type, step: str, moment: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()

        def die(_process: str) -> None:
            for name in ("host0", "conductor0"):
                cloud.crash(name)

        cloud.at[f"{step}/do/{moment}"] = die
        asking = asyncio.ensure_future(make(cloud, uuid))
        await cloud.until(lambda: not cloud.at)
        await asyncio.sleep(30.0)
        await cloud.restart("host0", "conductor0")
        image = await asking
        await cloud.rest()
        untouched(cloud, uuid)
        assert [i.id for i in cloud.images.kept()] == [image]
        assert cloud.images.images[image].status == "active"

    story()


@pytest.mark.spec("INI-077", "INI-102")
@pytest.mark.parametrize("task", [
    TaskState.IMAGE_SNAPSHOT_PENDING, TaskState.IMAGE_SNAPSHOT, TaskState.IMAGE_PENDING_UPLOAD,
    TaskState.IMAGE_UPLOADING, TaskState.IMAGE_BACKUP,
])
def test_a_task_that_nobody_works_on_is_cleared_and_the_server_stays(task: TaskState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, task_state=task)
        await cloud.restart("host0")
        await cloud.until(lambda: cloud.server(uuid).task_state is None)
        untouched(cloud, uuid)

    story()


# --- backups ----------------------------------------------------------------------------------------


@pytest.mark.spec("SNP-24", "SNP-26", "SNP-27")
@in_cloud()
async def test_the_oldest_backups_of_a_type_go(cloud: SmallCloud) -> None:
    uuid, other = await cloud.build(), await cloud.build()
    others = await backup(cloud, other)
    await cloud.rest()
    cloud.history.clear()
    weekly = await backup(cloud, uuid, kind="weekly")
    await cloud.rest()
    assert cloud.states(uuid) == [("active", task) for task in (
        "image_backup", "image_pending_upload", "image_uploading", None
    )]
    plain = await snapshot(cloud, uuid)
    await cloud.rest()
    daily = []
    for _ in range(4):
        daily.append(await backup(cloud, uuid, rotation=2))
        await cloud.rest()
    assert {image.id for image in cloud.images.kept()} == {others, weekly, plain, *daily[-2:]}
    new = cloud.images.new[daily[-1]]
    assert (new.properties["image_type"], new.properties["backup_type"]) == ("backup", "daily")
    await backup(cloud, uuid, rotation=0)
    await cloud.rest()
    assert {image.id for image in cloud.images.kept()} == {others, weekly, plain}
    untouched(cloud, uuid)
    assert [a.action for a in await cloud.actions(other)] == ["create", "createBackup"]


@pytest.mark.spec("SNP-27")
@in_cloud()
async def test_the_surplus_goes_oldest_first(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    made = []
    for _ in range(3):
        made.append(await backup(cloud, uuid, rotation=9))
        await cloud.rest()
    await backup(cloud, uuid, rotation=1)
    await cloud.rest()
    assert [image for name, image in cloud.images.calls if name == "delete"] == made


@pytest.mark.spec("SNP-28")
@in_cloud()
async def test_a_backup_that_cannot_be_deleted_stays_and_the_next_goes(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    made = []
    for _ in range(2):
        made.append(await backup(cloud, uuid, rotation=9))
        await cloud.rest()
    cloud.images.fail["delete"] = [Forbidden("protected")]
    with structlog.testing.capture_logs() as logs:
        made.append(await backup(cloud, uuid, rotation=1))
        await cloud.rest()
    assert [image.id for image in cloud.images.kept()] == [made[0], made[2]]
    assert [e["image"] for e in logs if e["event"] == "old backup not deleted"] == [made[0]]
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("SNP-25", "SNP-31")
@in_cloud()
async def test_a_backup_is_good_although_no_list_of_the_old_ones_can_be_had(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    old = await backup(cloud, uuid)
    await cloud.rest()
    cloud.images.fail["backups"] = [ServiceUnavailable("away")] * 5
    new = await backup(cloud, uuid, rotation=1)
    await cloud.rest()
    untouched(cloud, uuid)
    assert cloud.faults(uuid) == 0
    await cloud.rest(debts=True, within=900.0)
    assert [image.id for image in cloud.images.kept()] == [new]
    assert old not in cloud.images.images


@pytest.mark.spec("SNP-31")
@in_cloud()
async def test_two_backups_of_a_server_do_not_rotate_at_once(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.images.fail["backups"] = [ServiceUnavailable("away")] * 3
    await backup(cloud, uuid, rotation=1)
    await cloud.until(lambda: len(cloud.images.fail["backups"]) < 3)
    with pytest.raises(InstanceInvalidState, match="task_state image_uploading"):
        await backup(cloud, uuid, rotation=1)
    await cloud.rest()


def shelf(*statuses: str) -> list[Image]:
    """Backups, newest first, called by their place."""
    return [Image(id=str(place), status=status) for place, status in enumerate(statuses)]


@pytest.mark.spec("SNP-27", "SNP-30")
def test_backups_without_data_do_not_count_and_go_if_they_are_older() -> None:
    backups = shelf("queued", "active", "saving", "active", "queued", "active")
    assert surplus(backups, "1", 2) == ["5", "4", "2"]
    assert surplus(backups, "1", 9) == ["4", "2"]
    assert surplus(backups, "1", 0) == ["5", "4", "3", "2", "1"]
    assert surplus(shelf("active"), "gone", 1) == []


@pytest.mark.spec("SNP-29")
@in_cloud()
async def test_without_a_rotation_all_backups_are_kept(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for _ in range(3):
        await cloud.compute.create_backup(
            CONTEXT, await cloud.located(uuid), "backup", {}, backup_type="daily", rotation=None
        )
        await cloud.rest()
    assert len(cloud.images.kept()) == 3


@pytest.mark.spec("EMG-34")
@in_cloud()
async def test_an_image_that_demands_quiet_file_systems_is_taken_of_a_guest_that_is_off(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].agents = frozenset()
    uuid = await cloud.build(image=msgspec.structs.replace(IMAGE, properties={"os_require_quiesce": "yes"}))
    image = await snapshot(cloud, uuid)
    await cloud.rest()
    assert image not in cloud.images.images
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "os_require_quiesce" in fault.message
    untouched(cloud, uuid)
    await cloud.compute.stop(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    image = await snapshot(cloud, uuid)
    await cloud.rest()
    assert cloud.images.images[image].status == "active"


QUIET = {"os_require_quiesce": "yes", "hw_qemu_guest_agent": "yes"}


def frozen(cloud: SmallCloud, uuid: str) -> tuple[bool, int]:
    """Whether the file systems of the guest are held still, and how often they were."""
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest.frozen, guest.freezes


@pytest.mark.spec("QUI-01")
@pytest.mark.parametrize(("properties", "freezes"), [
    (QUIET, 1), ({"hw_qemu_guest_agent": "yes"}, 1), ({"os_require_quiesce": "True"}, 1), ({}, 0),
    ({"hw_qemu_guest_agent": "no"}, 0),
])
def test_file_systems_are_held_still_as_the_servers_own_image_says(properties: dict[str, str], freezes: int) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build(image=msgspec.structs.replace(IMAGE, properties=properties))
        for _ in range(2):
            image = await cloud.compute.create_image(
                CONTEXT, await cloud.located(uuid), "image", {"os_require_quiesce": "no"}
            )
            await cloud.rest()
            assert cloud.images.images[image].status == "active"
        assert frozen(cloud, uuid) == (False, 2 * freezes)

    story()


@in_cloud()
async def test_file_systems_of_a_guest_without_an_agent_are_copied_as_they_are(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].agents = frozenset()
    properties = {"hw_qemu_guest_agent": "yes"}
    uuid = await cloud.build(image=msgspec.structs.replace(IMAGE, properties=properties))
    image = await snapshot(cloud, uuid)
    await cloud.rest()
    assert cloud.images.images[image].status == "active"
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("QUI-11")
@in_cloud()
async def test_a_guest_that_is_left_frozen_is_a_fault(cloud: SmallCloud) -> None:
    """It is thawed by the undo; that a thaw is tried several times is the driver's business."""
    uuid = await cloud.build(image=msgspec.structs.replace(IMAGE, properties=QUIET))
    cloud.fail("thaw", KilonovaError("still frozen"))
    image = await snapshot(cloud, uuid)
    await cloud.rest()
    assert image not in cloud.images.images
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "still frozen" in fault.message
    assert frozen(cloud, uuid) == (False, 1)


@pytest.mark.spec("QUI-03", "QUI-04", "QUI-12")
@in_cloud()
async def test_a_guest_that_was_frozen_when_the_agent_died_is_thawed(cloud: SmallCloud) -> None:
    uuid = await cloud.build(image=msgspec.structs.replace(IMAGE, properties=QUIET))
    hypervisor = cloud.hypervisors["host0"]
    hypervisor.faults.latency = 5.0
    image = await snapshot(cloud, uuid)
    await cloud.until(lambda: frozen(cloud, uuid)[0])
    for ask in (cloud.stop, cloud.reboot):
        with pytest.raises(InstanceInvalidState):
            await ask(uuid)
    await cloud.restart()
    hypervisor.faults.latency = 0.0
    await cloud.until(lambda: not frozen(cloud, uuid)[0])
    await cloud.rest()
    assert frozen(cloud, uuid)[0] is False
    assert cloud.images.images[image].status == "active"
