"""Shares of servers: attached while the server is off, there when it starts."""

from __future__ import annotations

import msgspec
import pytest
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.domain.errors import Conflict, InstanceInvalidState, NotFound
from kilonova.domain.operation import TERMINAL
from kilonova.domain.share import ShareStatus
from kilonova.domain.states import PowerState, VmState
from kilonova.engine.operation import Operation
from kilonova.hypervisor.guest import GuestShare
from kilonova.operations.attach_share import ATTACH_SHARE, AttachShare
from kilonova.operations.detach_share import DETACH_SHARE, DetachShare

SHARE, OTHER = "70000000-7777-4777-8777-777777777777", "80000000-7777-4777-8777-777777777777"
PATH, OTHER_PATH = "/srv/one", "/srv/two"


async def attach(cloud: SmallCloud, uuid: str, share: str = SHARE, tag: str = "data", path: str = PATH) -> None:
    request = AttachShare(share_id=share, tag=tag, export_location=path)
    await cloud.compute.ask_and_wait(CONTEXT, await cloud.located(uuid), ATTACH_SHARE, request)


async def detach(cloud: SmallCloud, uuid: str, share: str = SHARE) -> None:
    await cloud.compute.ask_and_wait(CONTEXT, await cloud.located(uuid), DETACH_SHARE, DetachShare(share))


def shown(cloud: SmallCloud, uuid: str) -> dict[str, str]:
    """The shares of a server by tag, as users see them."""
    record = cloud.server(uuid)
    return {one.tag: one.shown_status(record.power_state).value for one in record.shares}


def mounted(cloud: SmallCloud, uuid: str) -> tuple[GuestShare, ...]:
    """What the guest was last started with."""
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest.shares


@pytest.mark.spec("API-185", "API-187", "API-472")
@in_cloud()
async def test_a_share_is_there_from_one_start_to_another(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.history.clear()
    await attach(cloud, uuid)
    assert [[one.status for one in record.shares] for record in cloud.history] == [
        [ShareStatus.ATTACHING], [ShareStatus.INACTIVE],
    ]
    assert shown(cloud, uuid) == {"data": "inactive"}
    await cloud.start(uuid)
    await cloud.rest()
    assert shown(cloud, uuid) == {"data": "active"}
    assert mounted(cloud, uuid) == (GuestShare("data", PATH),)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert mounted(cloud, uuid) == (GuestShare("data", PATH),)
    await cloud.stop(uuid)
    await cloud.rest()
    assert shown(cloud, uuid) == {"data": "inactive"}
    await detach(cloud, uuid)
    assert shown(cloud, uuid) == {}
    await cloud.start(uuid)
    await cloud.rest()
    assert mounted(cloud, uuid) == ()


@in_cloud()
async def test_a_host_is_not_asked_for_what_a_server_does_not_have(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.effects.clear()
    await cloud.start(uuid)
    await cloud.rest()
    assert "absent_shares" not in [name for _, name in cloud.calls()]


@pytest.mark.spec("API-185")
@in_cloud()
async def test_a_host_that_cannot_refuses_and_leaves_no_trace(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.hypervisors["host0"].faults.absent.add(PATH)
    with pytest.raises(Conflict, match="does not have the directory"):
        await attach(cloud, uuid)
    cloud.hypervisors["host0"].traits = ()
    with pytest.raises(Conflict, match="cannot give shares"):
        await attach(cloud, uuid, path=OTHER_PATH)
    assert cloud.server(uuid).shares == ()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.code, cloud.server(uuid).vm_state) == (409, VmState.STOPPED)


@pytest.mark.spec("API-185")
@in_cloud()
async def test_the_same_share_or_tag_is_refused(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await attach(cloud, uuid)
    for share, tag in ((SHARE, "more"), (OTHER, "data")):
        with pytest.raises(Conflict, match="already"):
            await attach(cloud, uuid, share, tag)
    with pytest.raises(NotFound, match=OTHER):
        await detach(cloud, uuid, OTHER)
    assert shown(cloud, uuid) == {"data": "inactive"}


@pytest.mark.spec("API-185", "API-187")
@in_cloud()
async def test_a_server_that_is_not_stopped_keeps_its_shares(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await attach(cloud, uuid)
    await cloud.start(uuid)
    await cloud.rest()
    with pytest.raises(InstanceInvalidState):
        await attach(cloud, uuid, OTHER, "more", OTHER_PATH)
    with pytest.raises(InstanceInvalidState):
        await detach(cloud, uuid)
    await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=False)
    with pytest.raises(Conflict, match="is on"):
        await detach(cloud, uuid)
    assert shown(cloud, uuid) == {"data": "active"}
    assert mounted(cloud, uuid) == (GuestShare("data", PATH),)


@in_cloud()
async def test_a_directory_that_has_vanished_keeps_the_server_from_starting_until_it_is_back(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await attach(cloud, uuid)
    await attach(cloud, uuid, OTHER, "more", OTHER_PATH)
    absent = cloud.hypervisors["host0"].faults.absent
    absent.add(PATH)
    await cloud.start(uuid)
    await cloud.rest()
    record, fault = cloud.server(uuid), cloud.fault(uuid)
    assert (record.vm_state, record.task_state, record.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)
    assert fault is not None
    assert SHARE in fault.message
    assert OTHER not in fault.message
    assert shown(cloud, uuid) == {"data": "error", "more": "inactive"}
    absent.clear()
    await cloud.start(uuid)
    await cloud.rest()
    assert shown(cloud, uuid) == {"data": "active", "more": "active"}


@pytest.mark.parametrize("hard", [True, False])
def test_a_reboot_without_its_directory_leaves_the_guest_running(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.stopped()
        await attach(cloud, uuid)
        await cloud.start(uuid)
        await cloud.rest()
        guest = cloud.guest(uuid)
        assert guest is not None
        cloud.hypervisors["host0"].faults.absent.add(PATH)
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        record, after = cloud.server(uuid), cloud.guest(uuid)
        assert (record.vm_state, record.task_state) == (VmState.ACTIVE, None)
        assert after is not None
        assert (after.power_state, after.starts) == (PowerState.RUNNING, guest.starts)
        assert shown(cloud, uuid) == {"data": "error"}
        fault = cloud.fault(uuid)
        assert fault is not None
        assert SHARE in fault.message

    story()


@in_cloud()
async def test_a_vanished_share_can_be_detached(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await attach(cloud, uuid)
    cloud.hypervisors["host0"].faults.absent.add(PATH)
    await cloud.start(uuid)
    await cloud.rest()
    await detach(cloud, uuid)
    await cloud.start(uuid)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, mounted(cloud, uuid)) == (VmState.ACTIVE, ())


@in_cloud()
async def test_a_deleted_server_has_no_shares(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    await attach(cloud, uuid)
    await cloud.delete(uuid)
    await cloud.rest()
    record = cloud.server(uuid)
    assert (record.vm_state, record.shares) == (VmState.DELETED, ())


@pytest.mark.parametrize(("definition", "request_", "meanwhile"), [
    (ATTACH_SHARE, AttachShare(share_id=OTHER, tag="more", export_location=OTHER_PATH),
     {"data": "inactive", "more": "attaching"}),
    (DETACH_SHARE, DetachShare(SHARE), {"data": "detaching"}),
])
def test_one_that_is_ended_leaves_what_was(
    definition: Operation, request_: msgspec.Struct, meanwhile: dict[str, str]
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.stopped()
        await attach(cloud, uuid)
        cloud.crash("host0")
        await cloud.act(uuid, definition, request_)
        assert shown(cloud, uuid) == meanwhile
        await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=False)
        await cloud.until(lambda: cloud.operations(uuid, definition.name)[-1].state in TERMINAL)
        assert shown(cloud, uuid) == {"data": "inactive"}

    story()
