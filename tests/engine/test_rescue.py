"""Rescue and unrescue."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from small_cloud import CONTEXT, IMAGE, OPTIONS, SmallCloud, in_cloud

from kilonova.domain.errors import InstanceInvalidState, InvalidInput, KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.fake import FakeGuest
from kilonova.operations.rescue import RESCUE, RescueServer
from kilonova.operations.unrescue import UNRESCUE, UnrescueServer

REFUSES = KilonovaError("the hypervisor refuses")
CORRUPT = InvalidInput("the image is corrupt")
RESCUE_IMAGE = Image(id="33333333-3333-4333-8333-333333333333")
V = VmState


async def rescue(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, RESCUE, RescueServer(image=RESCUE_IMAGE, admin_password="pass-word"))


async def unrescue(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, UNRESCUE, UnrescueServer())


async def built(cloud: SmallCloud, state: VmState = V.ACTIVE) -> str:
    """A server in one of the states in which it may be rescued."""
    uuid = await (cloud.stopped() if state is V.STOPPED else cloud.build())
    if state is V.ERROR:
        await cloud.change(uuid, vm_state=V.ERROR)
    return uuid


async def rescued(cloud: SmallCloud, state: VmState = V.ACTIVE) -> str:
    uuid = await built(cloud, state)
    await rescue(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.RESCUED
    cloud.history.clear()
    cloud.effects.clear()
    cloud.power_offs.clear()
    return uuid


def guest_of(cloud: SmallCloud, uuid: str) -> FakeGuest:
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest


def disk(cloud: SmallCloud, uuid: str) -> tuple[str | None, bool, PowerState]:
    """The image of the rescue disk, whether the guest was started from it, and its power state."""
    guest = guest_of(cloud, uuid)
    return guest.rescue, guest.rescued, guest.power_state


OWN_DISK = (None, False, PowerState.RUNNING)
FROM_RESCUE = (RESCUE_IMAGE.id, True, PowerState.RUNNING)


@pytest.mark.spec("RSC-01", "RSC-05", "RSC-10", "RSC-11", "RSC-13", "RSC-14")
@in_cloud()
async def test_a_server_runs_from_a_rescue_disk(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
    before = cloud.server(uuid)
    cloud.history.clear()
    cloud.effects.clear()
    await rescue(cloud, uuid)
    asked = cloud.now
    await cloud.rest()
    assert cloud.states(uuid) == [("active", "rescuing"), ("rescued", None)]
    after = cloud.server(uuid)
    assert (after.power_state, after.launched_at, after.image) == (PowerState.RUNNING, before.launched_at, IMAGE)
    assert after.rescue is not None
    assert (after.rescue.image, after.rescue.vm_state) == (RESCUE_IMAGE, V.ACTIVE)
    assert asked <= after.rescue.since < asked + 5.0
    assert [ip.address for ip in after.network_info[0].fixed_ips] == ["10.0.0.77"]
    host = [name for where, name in cloud.calls() if where == "host0"]
    assert host == ["prepare_rescue", "power_off", "plug", "power_on"]
    assert cloud.power_offs == [(20.0, 5.0)]
    made = cloud.guests_made[-1][2]
    assert (made.rescue, made.image, made.metadata.admin_password) == (RESCUE_IMAGE, IMAGE, "pass-word")
    assert disk(cloud, uuid) == FROM_RESCUE
    assert (await cloud.actions(uuid))[-1].action == "rescue"


@pytest.mark.spec("RSC-04")
@in_cloud()
async def test_no_journal_keeps_the_password(cloud: SmallCloud) -> None:
    for failing in (False, True):
        uuid = await cloud.build()
        if failing:
            cloud.fail("power_on", REFUSES)
        await rescue(cloud, uuid)
        await cloud.rest(debts=True)
        assert b"pass-word" not in msgspec.json.encode(cloud.operations(uuid))


@pytest.mark.spec("RSC-03")
@in_cloud()
async def test_states_in_which_a_server_is_neither_rescued_nor_unrescued(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for state in set(V) - {V.ACTIVE, V.STOPPED, V.ERROR, V.DELETED}:
        await cloud.change(uuid, vm_state=state)
        with pytest.raises(InstanceInvalidState, match="Cannot 'rescue'"):
            await rescue(cloud, uuid)
    for state in set(V) - {V.RESCUED, V.DELETED}:
        await cloud.change(uuid, vm_state=state)
        with pytest.raises(InstanceInvalidState, match="Cannot 'unrescue'"):
            await unrescue(cloud, uuid)


@pytest.mark.spec("RSC-03")
@in_cloud()
async def test_a_rescue_has_its_server_to_itself(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await rescue(cloud, uuid)
    await cloud.until(lambda: cloud.power_offs)
    for act in (cloud.stop, cloud.start, cloud.reboot):
        with pytest.raises(InstanceInvalidState):
            await act(uuid)
    with pytest.raises(InstanceInvalidState):
        await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.RESCUED


@in_cloud()
async def test_what_may_not_be_done_to_a_rescued_server(cloud: SmallCloud) -> None:
    uuid = await rescued(cloud)
    for act in (cloud.stop, cloud.start, cloud.reboot):
        with pytest.raises(InstanceInvalidState, match="vm_state rescued"):
            await act(uuid)
    with pytest.raises(InstanceInvalidState, match="vm_state rescued"):
        await cloud.reboot(uuid, hard=True)


@pytest.mark.spec("RSC-15", "RSC-02")
@in_cloud()
async def test_a_rescue_that_cannot_be_prepared_changes_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    cloud.net.fail["vifs"] = [KilonovaError("forbidden")]
    await rescue(cloud, uuid)
    await cloud.rest()
    after = cloud.server(uuid)
    assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "forbidden"
    assert (await cloud.actions(uuid))[-1].message == "Error"


@pytest.mark.spec("RSC-16", "RSC-17", "RSC-02")
@pytest.mark.parametrize("state", [V.ACTIVE, V.STOPPED])
@pytest.mark.parametrize("call", ["prepare_rescue", "power_off", "power_on"])
def test_a_rescue_that_fails_puts_everything_back(call: str, state: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await built(cloud, state)
        before = cloud.server(uuid)
        cloud.power_offs.clear()
        cloud.fail(call, CORRUPT)
        await rescue(cloud, uuid)
        await cloud.rest()
        after = cloud.server(uuid)
        assert (after.vm_state, after.task_state, after.rescue) == (state, None, None)
        assert after.power_state is before.power_state
        running = PowerState.RUNNING if state is V.ACTIVE else PowerState.SHUTDOWN
        assert disk(cloud, uuid) == (None, False, running)
        if call == "prepare_rescue":
            assert cloud.power_offs == []
            assert guest_of(cloud, uuid).starts == 1
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == f"Instance {uuid} cannot be rescued: the image is corrupt"
        assert cloud.faults(uuid) == 1

    story()


@pytest.mark.spec("RSC-16", "RSC-17")
@in_cloud()
async def test_a_guest_that_cannot_be_put_back_leaves_the_server_in_error(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.always_fail("power_on", REFUSES)
    await rescue(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=2000.0)
    assert cloud.server(uuid).vm_state is V.ERROR
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "the hypervisor refuses" in fault.message
    cloud.heal()
    await cloud.rest(within=2000.0, debts=True)
    assert disk(cloud, uuid) == OWN_DISK  # what is owed is done later


@pytest.mark.spec("RSC-18", "INI-107")
@pytest.mark.parametrize("place", [
    "prepare rescue disk/do/answered", "power off/do/answered", "start rescue guest/do/before",
    "start rescue guest/do/answered",
])
def test_a_delete_ends_a_rescue_and_leaves_nothing(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"rescue/{place}"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
        await rescue(cloud, uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        await cloud.rest(debts=True)
        cloud.gone(uuid)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("RSC-18")
@in_cloud()
async def test_a_delete_of_a_rescued_server_removes_its_rescue_disk(cloud: SmallCloud) -> None:
    uuid = await rescued(cloud)
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    cloud.gone(uuid)


@pytest.mark.spec("RSC-19", "RSC-21", "RSC-24", "RSC-02")
@pytest.mark.parametrize(("before", "after"), [
    (V.ACTIVE, V.ACTIVE), (V.STOPPED, V.STOPPED), (V.ERROR, V.ACTIVE),
])
def test_an_unrescued_server_is_what_it_was(before: VmState, after: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await rescued(cloud, before)
        launched = cloud.server(uuid).launched_at
        (port,) = cloud.ports(uuid)
        cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
        await unrescue(cloud, uuid)
        await cloud.rest()
        assert cloud.states(uuid) == [("rescued", "unrescuing"), (after.value, None)]
        server = cloud.server(uuid)
        assert (server.rescue, server.launched_at) == (None, launched)
        assert [ip.address for ip in server.network_info[0].fixed_ips] == ["10.0.0.77"]
        assert cloud.power_offs == [(0.0, 0.0)]
        if after is V.ACTIVE:
            assert disk(cloud, uuid) == OWN_DISK
            assert cloud.guests_made[-1][2].rescue is None
            assert server.power_state is PowerState.RUNNING
        else:
            assert guest_of(cloud, uuid).rescue is None
            assert server.power_state is PowerState.SHUTDOWN
            await cloud.start(uuid)
            await cloud.rest()
            assert disk(cloud, uuid) == OWN_DISK

    story()


@pytest.mark.spec("RSC-22", "RSC-23")
@pytest.mark.parametrize("call", ["vifs", "power_off", "drop_rescue", "power_on"])
def test_an_unrescue_that_fails(call: str) -> None:
    """Before the guest is touched the server stays rescued; later it is in ERROR, and a hard reboot helps."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await rescued(cloud)
        if call == "vifs":
            cloud.net.fail["vifs"] = [REFUSES]
        else:
            cloud.fail(call, REFUSES)
        await unrescue(cloud, uuid)
        await cloud.rest()
        server = cloud.server(uuid)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "the hypervisor refuses"
        if call == "vifs":
            assert (server.vm_state, server.task_state) == (V.RESCUED, None)
            assert disk(cloud, uuid) == FROM_RESCUE
            return
        wanted = V.ACTIVE if call == "drop_rescue" else V.ERROR
        assert (server.vm_state, server.task_state, server.rescue) == (wanted, None, None)
        if call == "power_off":
            assert disk(cloud, uuid) == FROM_RESCUE  # which no file may be taken from
        else:
            await cloud.rest(debts=True)
            assert disk(cloud, uuid)[0] is None
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is V.ACTIVE
        assert disk(cloud, uuid) == OWN_DISK

    story()


@pytest.mark.spec("RSC-25", "INI-107")
@pytest.mark.parametrize("place", [
    "rescue/prepare rescue disk/do/before", "rescue/power off/do/answered", "rescue/start rescue guest/do/before",
    "rescue/start rescue guest/do/answered", "unrescue/power off/do/before", "unrescue/power off/do/answered",
    "unrescue/start guest/do/before", "unrescue/start guest/do/answered",
])
def test_one_that_was_cut_off_goes_on(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        kind = place.partition("/")[0]
        uuid = await (cloud.build() if kind == "rescue" else rescued(cloud))
        cloud.at[place] = lambda _p: cloud.wire.spawn(cloud.restart("conductor0", "host0"))
        await (rescue if kind == "rescue" else unrescue)(cloud, uuid)
        await cloud.rest(within=300.0)
        server = cloud.server(uuid)
        wanted = V.RESCUED if kind == "rescue" else V.ACTIVE
        assert (server.vm_state, server.task_state, server.power_state) == (wanted, None, PowerState.RUNNING)
        assert disk(cloud, uuid) == (FROM_RESCUE if kind == "rescue" else OWN_DISK)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("INI-126")
@in_cloud(resume_guests=True)
async def test_a_rescued_server_is_started_from_its_rescue_disk_after_its_host_was_off(cloud: SmallCloud) -> None:
    uuid = await rescued(cloud)
    cloud.crash("host0")
    cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.SHUTDOWN
    await cloud.boot("host0")
    await cloud.until(lambda: cloud.calls("hard_reboot"))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.RESCUED
    assert disk(cloud, uuid) == FROM_RESCUE


# --- the time limit ---------------------------------------------------------------------------------


LIMITED = msgspec.structs.replace(OPTIONS, rescue_timeout=600.0)


@pytest.mark.spec("PER-31", "PER-32")
@pytest.mark.parametrize("limited", [True, False])
def test_a_server_is_not_rescued_for_ever_if_there_is_a_limit(limited: bool) -> None:
    @in_cloud(options=LIMITED if limited else OPTIONS)
    async def story(cloud: SmallCloud) -> None:
        uuid = await rescued(cloud)
        await asyncio.sleep(500.0)
        assert cloud.server(uuid).vm_state is V.RESCUED
        await asyncio.sleep(300.0)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is (V.ACTIVE if limited else V.RESCUED)
        assert disk(cloud, uuid) == (OWN_DISK if limited else FROM_RESCUE)
        if limited:
            action = (await cloud.actions(uuid))[-1]
            assert (action.action, action.project_id, action.user_id) == ("unrescue", "project", None)

    story()


@pytest.mark.spec("PER-33", "PER-34")
@in_cloud(options=LIMITED)
async def test_a_server_that_is_busy_or_has_no_time_holds_up_no_other(cloud: SmallCloud) -> None:
    timeless, busy, due = [await rescued(cloud) for _ in range(3)]
    await cloud.change(timeless, rescue=None)
    await cloud.change(busy, task_state=TaskState.UNRESCUING)
    await asyncio.sleep(800.0)
    await cloud.rest()
    assert cloud.server(due).vm_state is V.ACTIVE
    for left in (timeless, busy):
        assert cloud.server(left).vm_state is V.RESCUED
        assert cloud.operations(left, "unrescue") == []


@in_cloud()
async def test_a_state_that_was_reset_is_not_that_of_a_rescue(cloud: SmallCloud) -> None:
    """What the record keeps of a rescue counts only while the server is rescued."""
    uuid = await rescued(cloud)
    await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=True)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is V.ACTIVE
    assert disk(cloud, uuid)[1] is False
    assert cloud.server(uuid).rescue is None
    assert disk(cloud, uuid) == OWN_DISK
    assert cloud.operation(uuid, "hard-reboot").state is OperationState.SUCCEEDED
