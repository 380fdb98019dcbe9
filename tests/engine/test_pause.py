"""Pause and unpause."""

from __future__ import annotations

import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import InstanceInvalidState, KilonovaError, NotSupported
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer, UnpauseServer

P, T, V = PowerState, TaskState, VmState
REFUSES = KilonovaError("the hypervisor refuses")

both_ways = pytest.mark.parametrize("way", ["pause", "unpause"])


async def ask(cloud: SmallCloud, uuid: str, way: str) -> None:
    if way == "pause":
        await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    else:
        await cloud.act(uuid, UNPAUSE_SERVER, UnpauseServer())


async def ready(cloud: SmallCloud, way: str) -> str:
    """A server that can go this way."""
    uuid = await cloud.build()
    if way == "unpause":
        await ask(cloud, uuid, "pause")
        await cloud.rest()
    cloud.effects.clear()
    cloud.history.clear()
    return uuid


def states(cloud: SmallCloud, uuid: str) -> tuple[VmState, TaskState | None, PowerState, PowerState | None]:
    server = cloud.server(uuid)
    return server.vm_state, server.task_state, server.power_state, cloud.power(uuid)


BEFORE = {"pause": (V.ACTIVE, None, P.RUNNING, P.RUNNING), "unpause": (V.PAUSED, None, P.PAUSED, P.PAUSED)}
AFTER = {"pause": BEFORE["unpause"], "unpause": BEFORE["pause"]}


@pytest.mark.spec("SUS-01", "SUS-02")
@in_cloud()
async def test_a_server_is_paused_and_goes_on(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "pause")
    for way, task in (("pause", "pausing"), ("unpause", "unpausing")):
        await ask(cloud, uuid, way)
        assert cloud.server(uuid).task_state == task
        await cloud.rest()
        assert states(cloud, uuid) == AFTER[way]
        action = (await cloud.actions(uuid))[-1]
        assert (action.action, action.message) == (way, None)
        assert f"compute_{way}_instance" in [event.event for event in action.events]
    assert cloud.states(uuid) == [
        ("active", "pausing"), ("paused", None), ("paused", "unpausing"), ("active", None),
    ]
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.starts == 1


@in_cloud()
async def test_the_states_in_which_they_are_refused(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "pause")
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'unpause' instance .* vm_state active"):
        await ask(cloud, uuid, "unpause")
    cloud.crash("conductor0")
    await ask(cloud, uuid, "pause")
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'unpause' instance .* task_state pausing"):
        await ask(cloud, uuid, "unpause")
    await cloud.boot("conductor0")
    await cloud.rest()
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'pause' instance .* vm_state paused"):
        await ask(cloud, uuid, "pause")


@pytest.mark.spec("SUS-03")
@pytest.mark.parametrize("error", [REFUSES, NotSupported("no such thing")])
@both_ways
def test_a_hypervisor_that_fails_leaves_the_server_as_it_was(way: str, error: KilonovaError) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        cloud.fail("pause" if way == "pause" else "resume", error)
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert states(cloud, uuid) == BEFORE[way]
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.message, fault.code) == (error.message, error.status)
        assert (await cloud.actions(uuid))[-1].message == "Error"
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert states(cloud, uuid) == AFTER[way]

    story()


@pytest.mark.spec("SUS-04")
@both_ways
def test_a_server_that_was_taken_meanwhile_is_not_touched(way: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        cloud.at[f"{way}/(begin)/do/before"] = lambda _p: cloud.wire.spawn(
            cloud.change(uuid, task_state=T.REBUILDING)
        )
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert cloud.calls("pause", "resume") == []
        vm_state, _, power_state, power = BEFORE[way]
        assert states(cloud, uuid) == (vm_state, T.REBUILDING, power_state, power)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("SUS-04")
@both_ways
def test_a_guest_whose_server_was_taken_after_all_is_put_back(way: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        cloud.at[f"{way} guest/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=T.REBUILDING))
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert len(cloud.calls("pause", "resume")) == 2
        vm_state, _, power_state, power = BEFORE[way]
        assert states(cloud, uuid) == (vm_state, T.REBUILDING, power_state, power)

    story()


@in_cloud()
async def test_a_guest_that_is_off_is_not_paused(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "pause")
    cloud.hypervisors["host0"].guests[uuid].power_state = P.SHUTDOWN
    await ask(cloud, uuid, "pause")
    await cloud.rest()
    assert states(cloud, uuid) == (V.ACTIVE, None, P.SHUTDOWN, P.SHUTDOWN)
    assert cloud.faults(uuid) == 1


def _die(cloud: SmallCloud) -> None:
    for name in ("host0", "conductor0"):
        cloud.crash(name)


@pytest.mark.spec("SUS-05", "SUS-07", "INI-085", "INI-103")
@pytest.mark.parametrize("was_done", [True, False])
def test_a_pause_that_was_cut_off(was_done: bool) -> None:
    """One that had its effect is complete; one that was lost is not repeated."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "pause")
        cloud.at["pause guest/do/effect"] = lambda _p: _die(cloud)
        await ask(cloud, uuid, "pause")
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state is T.PAUSING
        if not was_done:
            cloud.hypervisors["host0"].guests[uuid].power_state = P.RUNNING
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        assert len(cloud.calls("pause")) == 1
        if was_done:
            assert states(cloud, uuid) == AFTER["pause"]
            assert cloud.faults(uuid) == 0
        else:
            assert states(cloud, uuid) == BEFORE["pause"]
            fault = cloud.fault(uuid)
            assert fault is not None
            assert "stopped while the guest was being paused" in fault.message

    story()


@pytest.mark.spec("SUS-05", "SUS-06", "INI-086", "INI-085", "INI-122")
@pytest.mark.parametrize(("found", "fails"), [(P.PAUSED, False), (P.PAUSED, True), (P.RUNNING, False)])
def test_an_unpause_that_was_cut_off_is_run_again(found: PowerState, fails: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "unpause")
        other = await cloud.build()
        cloud.at["unpause guest/do/effect"] = lambda _p: _die(cloud)
        await ask(cloud, uuid, "unpause")
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state is T.UNPAUSING
        cloud.hypervisors["host0"].guests[uuid].power_state = found
        cloud.effects.clear()
        if fails:
            cloud.fail("resume", REFUSES)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        assert cloud.calls("resume")
        assert states(cloud, uuid) == (BEFORE if fails else AFTER)["unpause"]
        assert cloud.faults(uuid) == fails
        await ask(cloud, other, "pause")  # the host serves
        await cloud.rest()
        assert states(cloud, other) == AFTER["pause"]

    story()


@pytest.mark.spec("SUS-05", "SUS-07", "INI-103")
@pytest.mark.parametrize("task", [T.PAUSING, T.UNPAUSING])
@pytest.mark.parametrize(("found", "vm"), [(P.RUNNING, V.ACTIVE), (P.PAUSED, V.PAUSED)])
@pytest.mark.parametrize("recorded", [V.ACTIVE, V.PAUSED])
def test_a_task_that_no_operation_has_is_settled_by_the_guest(
    task: TaskState, found: PowerState, vm: VmState, recorded: VmState
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.crash("host0")
        await cloud.change(uuid, vm_state=recorded, task_state=task)
        cloud.hypervisors["host0"].guests[uuid].power_state = found
        await cloud.boot("host0")
        await cloud.rest()
        assert states(cloud, uuid) == (vm, None, found, found)

    story()


@pytest.mark.parametrize("way", ["pause", "unpause"])
def test_a_hard_reboot_takes_over(way: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        cloud.hypervisors["host0"].faults.latency = 2.0
        await ask(cloud, uuid, way)
        await cloud.until(lambda: cloud.calls("pause", "resume"))
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert states(cloud, uuid) == BEFORE["pause"]
        assert cloud.operation(uuid, way).state is OperationState.CANCELLED
        assert cloud.operation(uuid, "hard-reboot").state is OperationState.SUCCEEDED
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.parametrize("end", ["delete", "reboot", "lost"])
def test_what_becomes_of_a_paused_server(end: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "unpause")
        if end == "delete":
            await cloud.delete(uuid)
            await cloud.rest()
            cloud.gone(uuid)
        elif end == "reboot":
            await cloud.reboot(uuid, hard=True)
            await cloud.rest()
            assert states(cloud, uuid) == BEFORE["pause"]
        else:  # its host went down, and the guest with it
            cloud.crash("host0")
            cloud.hypervisors["host0"].guests[uuid].power_state = P.SHUTDOWN
            await cloud.boot("host0")
            await cloud.until(lambda: cloud.server(uuid).vm_state is V.STOPPED)
            await cloud.rest()
            await cloud.start(uuid)
            await cloud.rest()
            assert states(cloud, uuid) == BEFORE["pause"]

    story()
