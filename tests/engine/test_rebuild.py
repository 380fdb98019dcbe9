"""Rebuild: the same server, made anew from its image or another."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from small_cloud import FLAVOR, IMAGE, OPTIONS, SmallCloud, in_cloud

from kilonova.db import build_requests
from kilonova.domain.errors import Conflict, InstanceInvalidState, InvalidInput, KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.instance import InjectedFile
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.fake import FakeDisks
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer

REFUSES = KilonovaError("the hypervisor refuses")
CORRUPT = InvalidInput("the image is corrupt")
OTHER = Image(id="33333333-3333-4333-8333-333333333333", properties={"os_shutdown_timeout": "7"})
LARGE = msgspec.structs.replace(FLAVOR, ephemeral_gib=1, swap_mib=64)


async def rebuild(cloud: SmallCloud, uuid: str, image: Image = OTHER, origin: Any = (), **fields: Any) -> None:
    """Ask for it. origin: further changes of what the guest is made from."""
    before = Origin.of((await cloud.located(uuid)).instance)
    after = msgspec.structs.replace(before, image=image, image_ref=image.id, **dict(origin))
    await cloud.act(uuid, REBUILD, RebuildServer(before=before, after=after, **fields))


def disks(cloud: SmallCloud, uuid: str) -> tuple[FakeDisks, FakeDisks | None, FakeDisks | None]:
    """Those in use, those prepared, those put aside."""
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest.uses, guest.prepared, guest.old


@pytest.mark.spec("RBD-02", "RBD-30", "RBD-32", "RBD-46", "RBD-48", "RBD-49")
@in_cloud()
async def test_a_server_is_made_anew_from_another_image(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    cloud.history.clear()
    cloud.effects.clear()
    file = InjectedFile("/etc/motd", base64.b64encode(b"hello").decode())
    await rebuild(cloud, uuid, admin_password="secret", files=(file,), changes={"display_name": "new"})
    asked = cloud.server(uuid)
    assert (asked.task_state, asked.image_ref, asked.display_name) == (TaskState.REBUILDING, OTHER.id, "new")
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("active", "rebuilding"), ("active", "rebuild_block_device_mapping"), ("active", "rebuild_spawning"),
        ("active", None),
    ]
    after = cloud.server(uuid)
    assert (after.power_state, after.image, after.host) == (PowerState.RUNNING, OTHER, before.host)
    assert after.launched_at is not None
    assert before.launched_at is not None
    assert after.launched_at > before.launched_at
    host = [name for where, name in cloud.calls() if where == "host0"]
    assert host == [
        "prepare_disks", "power_off", "destroy", "unplug", "replace_disks", "plug", "spawn", "drop_old_disks"]
    assert cloud.power_offs == [(7.0, 5.0)]  # a clean shutdown, as the image in the record asks
    assert disks(cloud, uuid) == (FakeDisks(OTHER.id, 2), None, None)
    made = cloud.guests_made[-1][2]
    assert (made.metadata.admin_password, made.metadata.files, made.name) == ("secret", (file,), "new")
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("RBD-23")
@in_cloud()
async def test_no_port_is_touched_and_the_interfaces_are_those_that_are_stored(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    vifs = cloud.server(uuid).network_info
    cloud.net.calls.clear()
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert cloud.net.calls == []
    assert cloud.guests_made[-1][2].vifs == vifs
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.devnames == tuple(vif.devname for vif in vifs)


@pytest.mark.parametrize(("keep", "ephemeral"), [(True, 1), (False, 2)])
def test_ephemeral_disks_are_kept_if_that_is_asked_for(keep: bool, ephemeral: int) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build(flavor=LARGE)
        await rebuild(cloud, uuid, IMAGE, keep_ephemeral=keep)
        await cloud.rest()
        assert disks(cloud, uuid) == (FakeDisks(IMAGE.id, ephemeral), None, None)

    story()


@pytest.mark.spec("RBD-03", "RBD-31")
@in_cloud()
async def test_a_stopped_server_is_stopped_again(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.history.clear()
    cloud.power_offs.clear()
    await rebuild(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).task_state is TaskState.POWERING_OFF)
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("stopped", "rebuilding"), ("stopped", "rebuild_block_device_mapping"), ("stopped", "rebuild_spawning"),
        ("active", "powering-off"), ("stopped", None),
    ]
    assert cloud.power_offs[-1][0] == 0.0
    assert cloud.power(uuid) is PowerState.SHUTDOWN
    actions = await cloud.actions(uuid)
    assert [action.action for action in actions][-2:] == ["rebuild", "stop"]
    assert disks(cloud, uuid)[0].image == OTHER.id


@pytest.mark.spec("RBD-32")
@in_cloud()
async def test_a_server_in_error_without_a_guest_is_active_afterwards(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].guests.pop(uuid)
    await cloud.change(uuid, vm_state=VmState.ERROR)
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.power(uuid)) == (VmState.ACTIVE, PowerState.RUNNING)


@in_cloud()
async def test_states_in_which_a_server_is_not_rebuilt(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for state in set(VmState) - {VmState.ACTIVE, VmState.STOPPED, VmState.ERROR, VmState.DELETED}:
        await cloud.change(uuid, vm_state=state)
        with pytest.raises(InstanceInvalidState, match="Cannot 'rebuild'"):
            await rebuild(cloud, uuid)
    await cloud.change(uuid, vm_state=VmState.ACTIVE)
    stale = Origin.of(cloud.server(uuid))
    await rebuild(cloud, uuid)
    await cloud.rest()
    with pytest.raises(Conflict, match="was rebuilt meanwhile"):
        await cloud.act(uuid, REBUILD, RebuildServer(before=stale, after=stale))


@pytest.mark.spec("RBD-04", "RBD-13")
@in_cloud()
async def test_a_rebuild_has_its_server_to_itself_and_claims_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await rebuild(cloud, uuid)
    await cloud.until(lambda: cloud.power_offs)
    for act in (cloud.stop, cloud.start, cloud.reboot):
        with pytest.raises(InstanceInvalidState):
            await act(uuid)
    with pytest.raises(InstanceInvalidState):
        await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert cloud.claims(uuid) == ["host0"]


@pytest.mark.spec("RBD-56", "RBD-06")
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.STOPPED])
def test_an_image_that_is_no_good_costs_nothing(state: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.build() if state is VmState.ACTIVE else cloud.stopped())
        before = cloud.server(uuid)
        cloud.power_offs.clear()
        cloud.fail("prepare_disks", CORRUPT)
        await rebuild(cloud, uuid, origin={"user_data": "eA=="})
        await cloud.rest()
        after = cloud.server(uuid)
        assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
        assert cloud.power_offs == []
        assert disks(cloud, uuid) == (FakeDisks(IMAGE.id, 1), None, None)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.code, fault.message) == (400, "the image is corrupt")
        assert spec_image(cloud, uuid) == IMAGE
        assert (await cloud.actions(uuid))[-1].message == "Error"

    story()


def spec_image(cloud: SmallCloud, uuid: str) -> Image:
    spec = cloud.api(lambda conn: build_requests.spec_of(conn, uuid))
    image: Image = spec.image
    return image


@in_cloud()
async def test_the_scheduler_learns_of_the_new_image(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await rebuild(cloud, uuid, origin={"trusted_certs": None})
    await cloud.rest()
    assert spec_image(cloud, uuid) == OTHER


@pytest.mark.spec("RBD-08", "RBD-55", "RBD-56")
@pytest.mark.parametrize("properties", [{"hw_architecture": "aarch64"}, {"trait:CUSTOM_GOLD": "required"}])
def test_an_image_that_its_host_cannot_run_is_refused_before_anything_is_done(properties: dict[str, str]) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.effects.clear()
        await rebuild(cloud, uuid, msgspec.structs.replace(OTHER, properties=properties))
        await cloud.rest()
        after = cloud.server(uuid)
        assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
        assert cloud.calls() == []
        fault = cloud.fault(uuid)
        assert fault is not None
        assert f"Host {before.host} cannot run image {OTHER.id}" in fault.message
        assert spec_image(cloud, uuid) == IMAGE
        assert cloud.claims(uuid) == [before.host]

    story()


@in_cloud()
async def test_the_same_image_is_not_looked_at_by_the_scheduler(cloud: SmallCloud) -> None:
    """Its host may have lost what the image asks for: the server is there all the same."""
    demanding = msgspec.structs.replace(IMAGE, properties={"hw_architecture": "x86_64"})
    uuid = await cloud.build(image=demanding)
    unrunnable = msgspec.structs.replace(IMAGE, properties={"hw_architecture": "aarch64"})
    await cloud.change(uuid, image=unrunnable)
    await rebuild(cloud, uuid, unrunnable)
    await cloud.rest()
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("RBD-20")
@in_cloud()
async def test_a_host_that_cannot_check_certificates_is_not_trusted_with_them(cloud: SmallCloud) -> None:
    """Whatever the scheduler believed: the host looks again, before the guest is touched."""
    uuid = await cloud.build()
    await cloud.change(uuid, trusted_certs=("cert",))
    cloud.effects.clear()
    await rebuild(cloud, uuid, IMAGE)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "trusted certificates" in fault.message
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert cloud.calls("power_off", "destroy", "prepare_disks") == []


@pytest.mark.spec("RBD-54", "RBD-57", "RBD-06")
@pytest.mark.parametrize("call", ["power_off", "destroy", "replace_disks", "spawn", "drop_old_disks"])
def test_a_late_failure_ends_in_error_with_the_old_disks(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build(flavor=LARGE)
        cloud.fail(call, REFUSES)
        await rebuild(cloud, uuid)
        await cloud.rest()
        after = cloud.server(uuid)
        assert (after.vm_state, after.task_state, after.image) == (VmState.ERROR, None, IMAGE)
        assert cloud.faults(uuid) == 1
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "the hypervisor refuses"
        assert disks(cloud, uuid) == (FakeDisks(IMAGE.id, 1), None, None)
        assert spec_image(cloud, uuid) == IMAGE
        assert cloud.claims(uuid) == ["host0"]
        await cloud.reboot(uuid, hard=True)  # what it was before comes back
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.power(uuid)) == (VmState.ACTIVE, PowerState.RUNNING)
        assert cloud.guests_made[-1][2].image == IMAGE

    story()


@pytest.mark.spec("RBD-54")
@in_cloud()
async def test_a_rebuild_that_failed_can_be_asked_for_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("spawn", REFUSES)
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ERROR
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).image) == (VmState.ACTIVE, OTHER)
    assert disks(cloud, uuid) == (FakeDisks(OTHER.id, 2), None, None)


@pytest.mark.spec("RBD-52", "RBD-53")
@pytest.mark.parametrize("place", [
    "prepare disks/do/answered", "power off/do/answered", "replace disks/do/answered", "start guest/do/answered",
    "drop old disks/do/before",
])
def test_a_delete_ends_a_rebuild_and_leaves_nothing(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"rebuild/{place}"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
        await rebuild(cloud, uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        await cloud.rest(debts=True)
        cloud.gone(uuid)
        assert cloud.operation(uuid, "rebuild").state is not OperationState.SUCCEEDED
        assert (await cloud.actions(uuid))[-2].message == "Error"
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("RBD-52")
@in_cloud()
async def test_a_record_that_is_gone_is_not_rebuilt(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["rebuild/prepare disks/do/before"] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert cloud.operation(uuid, "rebuild").state is not OperationState.SUCCEEDED


@pytest.mark.spec("RBD-62")
@pytest.mark.parametrize("entered", [VmState.ACTIVE, VmState.STOPPED, VmState.ERROR])
@pytest.mark.parametrize("place", [
    "prepare disks/do/before", "power off/do/before", "forget guest/do/answered", "replace disks/do/answered",
    "start guest/do/before", "drop old disks/do/before",
])
def test_a_rebuild_that_was_cut_off_goes_on(place: str, entered: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if entered is VmState.STOPPED else cloud.build())
        await cloud.change(uuid, vm_state=entered)
        cloud.at[f"rebuild/{place}"] = lambda _p: cloud.wire.spawn(cloud.restart("conductor0", "host0"))
        await rebuild(cloud, uuid)
        await cloud.rest(within=300.0)
        after = cloud.server(uuid)
        wanted = VmState.STOPPED if entered is VmState.STOPPED else VmState.ACTIVE
        assert (after.vm_state, after.task_state, after.image) == (wanted, None, OTHER)
        assert disks(cloud, uuid) == (FakeDisks(OTHER.id, 2), None, None)
        assert cloud.faults(uuid) == 0

    story()


@in_cloud(options=msgspec.structs.replace(OPTIONS, force_config_drive=True))
async def test_the_record_tells_of_a_config_drive(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.change(uuid, config_drive="")
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).config_drive == "True"
    assert cloud.guests_made[-1][2].config_drive


@pytest.mark.spec("RBD-26")
@in_cloud()
async def test_no_journal_keeps_the_secrets_of_a_rebuild(cloud: SmallCloud) -> None:
    file = InjectedFile("/etc/motd", "c2VjcmV0")
    for failing in (False, True):
        uuid = await cloud.build()
        if failing:
            cloud.fail("spawn", REFUSES)
        await rebuild(cloud, uuid, admin_password="pass-word", files=(file,))
        await cloud.rest(debts=True)
        journal = msgspec.json.encode(cloud.operations(uuid))
        assert b"pass-word" not in journal
        assert b"c2VjcmV0" not in journal
