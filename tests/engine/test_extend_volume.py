"""What a server makes of the news that one of its volumes is larger."""

from __future__ import annotations

import pytest
from small_cloud import SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import KilonovaError, Retryable, VolumeNotFound
from kilonova.domain.operation import OperationState
from kilonova.domain.states import VmState
from kilonova.operations.pause import PAUSE_SERVER, PauseServer

EXTENDED = "volume-extended"
GIB = 1 << 30
REFUSES = KilonovaError("the guest does not see it")


def seen(cloud: SmallCloud, uuid: str, volume: str) -> int:
    """The size that the guest sees, bytes."""
    guest = cloud.guest(uuid)
    assert guest is not None
    return guest.volumes[volume].size


async def grown(cloud: SmallCloud, uuid: str, *, waits: bool = False) -> str:
    """A server has a volume of 1 GiB, of which it is told that it has 3."""
    volume = await cloud.attach(uuid)
    cloud.volumes.extend(volume, 3, waits=waits)
    await cloud.tell(uuid, EXTENDED, volume)
    return volume


@pytest.mark.spec("XEV-04", "XEV-26", "EMV-28")
@in_cloud()
async def test_a_guest_sees_its_volume_grow(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await grown(cloud, uuid)
    await cloud.rest()
    assert seen(cloud, uuid, volume) == 3 * GIB
    assert cloud.devices(uuid)[0].volume_size == 3
    assert ("extend_completed", volume) not in cloud.volumes.calls
    action = (await cloud.actions(uuid))[-1]
    assert (action.action, action.user_id, action.project_id) == ("extend_volume", "user", "project")
    assert ("compute_extend_volume", "Success") in [(one.event, one.result) for one in action.events]


@pytest.mark.spec("XEV-26", "XEV-30")
@in_cloud()
async def test_of_two_events_at_once_the_larger_size_stays(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await grown(cloud, uuid)
    cloud.volumes.extend(volume, 5)
    await cloud.tell(uuid, EXTENDED, volume)
    await cloud.rest()
    assert (seen(cloud, uuid, volume), cloud.devices(uuid)[0].volume_size) == (5 * GIB, 5)


@pytest.mark.spec("XEV-24", "XEV-25")
@in_cloud()
async def test_volumes_that_the_guest_does_not_have_are_nothing_but_a_warning(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with capture_logs() as logs:
        await cloud.tell(uuid, EXTENDED, "absent")
    volume = await cloud.attach(uuid)
    (device,) = cloud.devices(uuid)
    await cloud.databases.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=cloud.now, was=tuple(AttachState), connection_info=None
    ))
    with capture_logs() as more:
        await cloud.tell(uuid, EXTENDED, volume)
    await cloud.rest()
    assert [one["volume"] for one in [*logs, *more] if one["log_level"] == "warning"] == ["absent", volume]
    assert cloud.operations(uuid, "extend-volume") == []
    assert (cloud.fault(uuid), cloud.calls("extend_volume")) == (None, [])


@pytest.mark.spec("XEV-28", "XEV-29", "XEV-30", "EMV-29")
@pytest.mark.parametrize("waits", [False, True])
def test_a_guest_that_does_not_see_it_leaves_the_record_as_it_was(waits: bool) -> None:
    """The next event repeats it. Only a volume service that waits is told, and only then the volume is in error."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.always_fail("extend_volume", REFUSES)
        volume = await grown(cloud, uuid, waits=waits)
        await cloud.rest(debts=True)
        assert cloud.devices(uuid)[0].volume_size is None
        assert seen(cloud, uuid, volume) == GIB
        fault = cloud.fault(uuid)
        assert fault is not None and fault.message == REFUSES.message
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
        events = (await cloud.actions(uuid))[-1].events
        assert ("compute_extend_volume", "Error") in [(one.event, one.result) for one in events]
        assert cloud.volumes.find(volume).status == ("error_extending" if waits else "in-use")
        cloud.heal()
        await cloud.tell(uuid, EXTENDED, volume)
        await cloud.rest()
        assert (seen(cloud, uuid, volume), cloud.devices(uuid)[0].volume_size) == (3 * GIB, 3)

    story()


@pytest.mark.spec("EMV-29")
@in_cloud()
async def test_a_service_that_waits_is_told_of_success(cloud: SmallCloud) -> None:
    """Also if it does not answer at once."""
    uuid = await cloud.build()
    cloud.volumes.fail["extend_completed"] = [Retryable("no answer")] * 10
    volume = await grown(cloud, uuid, waits=True)
    await cloud.rest(within=1000.0, debts=True)
    assert cloud.volumes.find(volume).status == "in-use"
    assert cloud.operation(uuid, "extend-volume").state is OperationState.SUCCEEDED


@pytest.mark.spec("XEV-27", "XEV-29")
@in_cloud()
async def test_a_host_that_cannot_says_so(cloud: SmallCloud) -> None:
    for hypervisor in cloud.hypervisors.values():
        hypervisor.traits = tuple(one for one in hypervisor.traits if one != "COMPUTE_VOLUME_EXTEND")
    uuid = await cloud.build()
    volume = await grown(cloud, uuid)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None and fault.code == 501 and volume in fault.message
    assert cloud.calls("extend_volume") == []
    assert cloud.volumes.find(volume).status == "in-use"


@pytest.mark.spec("XEV-09", "XEV-31")
@in_cloud()
async def test_a_busy_server_loses_no_news(cloud: SmallCloud) -> None:
    """Its guest sees the volume as soon as the host is done with what it does to it."""
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.hypervisors["host0"].faults.hang.add("pause")
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.until(lambda: cloud.calls("pause"))
    cloud.volumes.extend(volume, 3)
    assert await cloud.tell(uuid, EXTENDED, volume)
    assert cloud.operations(uuid, "extend-volume")
    assert seen(cloud, uuid, volume) == GIB
    cloud.hypervisors["host0"].faults.hang.clear()
    await cloud.rest()
    assert (seen(cloud, uuid, volume), cloud.server(uuid).vm_state) == (3 * GIB, VmState.PAUSED)


@pytest.mark.spec("XEV-31")
@in_cloud()
async def test_a_volume_that_was_detached_meanwhile_is_no_fault(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.always_fail("extend_volume", REFUSES)
    await grown(cloud, uuid)
    planned: list[Exception] = [Retryable("no answer")] * 3
    cloud.volumes.fail["volume"] = planned
    await cloud.until(lambda: len(planned) < 3)
    await cloud.databases.cell.write(lambda conn: block_devices.remove_all(conn, uuid))
    assert cloud.calls("extend_volume") == []
    await cloud.rest()
    assert cloud.calls("extend_volume")
    assert cloud.fault(uuid) is None


@pytest.mark.spec("XEV-32")
@in_cloud()
async def test_each_server_that_shares_a_volume_extends_its_own(cloud: SmallCloud) -> None:
    """What one cannot, does not hinder another."""
    for hypervisor in cloud.hypervisors.values():
        hypervisor.traits = (*hypervisor.traits, "COMPUTE_VOLUME_MULTI_ATTACH")
    one, other = await cloud.build(), await cloud.build()
    volume = cloud.volumes.add(multiattach=True)
    for uuid in (one, other):
        await cloud.attach(uuid, volume, multiattach=True)
    cloud.volumes.extend(volume, 3)
    cloud.fail("extend_volume", REFUSES)
    await cloud.tell(one, EXTENDED, volume)
    await cloud.rest()
    await cloud.tell(other, EXTENDED, volume)
    await cloud.rest()
    assert (cloud.devices(one)[0].volume_size, cloud.devices(other)[0].volume_size) == (None, 3)
    assert cloud.fault(one) is not None and cloud.fault(other) is None


@pytest.mark.spec("XEV-26", "XEV-30")
@pytest.mark.parametrize("place", [
    "read size/do/answered", "extend volume/do/effect", "extend volume/do/answered", "tell volume service/do/before",
])
def test_the_news_outlives_the_process_that_heard_it(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        died: list[str] = []

        def die(process: str) -> None:
            died.append(process)
            cloud.crash(process)

        cloud.at[place] = die
        volume = await grown(cloud, uuid)
        await cloud.until(lambda: died)
        await cloud.boot(died[0])
        await cloud.rest()
        assert (seen(cloud, uuid, volume), cloud.devices(uuid)[0].volume_size) == (3 * GIB, 3)

    story()


@in_cloud()
async def test_a_service_that_did_not_answer_hears_of_the_failure_nevertheless(cloud: SmallCloud) -> None:
    """Also if nobody knew that it waits; one that has lost the volume waits for nothing."""
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    cloud.volumes.extend(volume, 3, waits=True)
    cloud.volumes.fail["volume"] = [REFUSES]
    await cloud.tell(uuid, EXTENDED, volume)
    await cloud.rest(debts=True)
    assert cloud.volumes.find(volume).status == "error_extending"
    cloud.volumes.fail["volume"] = [VolumeNotFound(volume)] * 2
    await cloud.tell(uuid, EXTENDED, volume)
    await cloud.rest(debts=True)
    assert cloud.operation(uuid, "extend-volume").state is OperationState.FAILED
