"""Suspend and resume."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import InstanceInvalidState, KilonovaError, NotSupported
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.suspend import FORMER_STATE, RESUME_SERVER, SUSPEND_SERVER, ResumeServer, SuspendServer

P, T, V = PowerState, TaskState, VmState
REFUSES = KilonovaError("the hypervisor refuses")

both_ways = pytest.mark.parametrize("way", ["suspend", "resume"])
CALL = {"suspend": "suspend", "resume": "wake"}
TASK = {"suspend": T.SUSPENDING, "resume": T.RESUMING}
BEFORE = {"suspend": (V.ACTIVE, None, P.RUNNING, P.RUNNING), "resume": (V.SUSPENDED, None, P.SUSPENDED, P.SUSPENDED)}
AFTER = {"suspend": BEFORE["resume"], "resume": BEFORE["suspend"]}


async def ask(cloud: SmallCloud, uuid: str, way: str) -> None:
    if way == "suspend":
        await cloud.act(uuid, SUSPEND_SERVER, SuspendServer())
    else:
        await cloud.act(uuid, RESUME_SERVER, ResumeServer())


async def ready(cloud: SmallCloud, way: str, **fields: Any) -> str:
    """A server that can go this way."""
    uuid = await cloud.build(**fields)
    if way == "resume":
        await ask(cloud, uuid, "suspend")
        await cloud.rest()
    cloud.effects.clear()
    cloud.history.clear()
    return uuid


def states(cloud: SmallCloud, uuid: str) -> tuple[VmState, TaskState | None, PowerState, PowerState | None]:
    server = cloud.server(uuid)
    return server.vm_state, server.task_state, server.power_state, cloud.power(uuid)


@pytest.mark.spec("SUS-08", "SUS-11")
@in_cloud()
async def test_a_server_is_suspended_and_resumed(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "suspend", system_metadata={"image_kind": "x"})
    for way in ("suspend", "resume"):
        await ask(cloud, uuid, way)
        assert cloud.server(uuid).task_state is TASK[way]
        await cloud.rest()
        assert states(cloud, uuid) == AFTER[way]
        kept = {"image_kind": "x"} if way == "resume" else {"image_kind": "x", "old_vm_state": "active"}
        assert cloud.server(uuid).system_metadata == kept
        action = (await cloud.actions(uuid))[-1]
        assert (action.action, action.message) == (way, None)
        assert f"compute_{way}_instance" in [event.event for event in action.events]
    assert cloud.states(uuid) == [
        ("active", "suspending"), ("suspended", None), ("suspended", "resuming"), ("active", None),
    ]
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.starts == 1


@pytest.mark.spec("SUS-11")
@pytest.mark.parametrize(("stored", "after"), [("rescued", V.RESCUED), (None, V.ACTIVE)])
def test_a_resumed_server_is_what_it_was_before(stored: str | None, after: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "resume")
        await cloud.change(uuid, system_metadata={} if stored is None else {FORMER_STATE: stored})
        await ask(cloud, uuid, "resume")
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).system_metadata) == (after, {})

    story()


@in_cloud()
async def test_a_resumed_server_knows_its_network_anew(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "resume")
    (port,) = cloud.ports(uuid)
    cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
    await ask(cloud, uuid, "resume")
    await cloud.rest()
    assert [ip.address for ip in cloud.server(uuid).network_info[0].fixed_ips] == ["10.0.0.77"]


@in_cloud()
async def test_the_states_in_which_they_are_refused(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "suspend")
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'resume' instance .* vm_state active"):
        await ask(cloud, uuid, "resume")
    await ask(cloud, uuid, "suspend")
    await cloud.rest()
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'suspend' instance .* vm_state suspended"):
        await ask(cloud, uuid, "suspend")
    for act in (cloud.stop, cloud.start, cloud.reboot):
        with pytest.raises(InstanceInvalidState, match="vm_state suspended"):
            await act(uuid)


@pytest.mark.spec("SUS-09", "SUS-12", "SUS-16")
@pytest.mark.parametrize("error", [REFUSES, NotSupported("this guest cannot be saved")])
@both_ways
def test_a_hypervisor_that_fails_over_an_intact_guest_leaves_the_server_as_it_was(
    way: str, error: KilonovaError
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        kept = cloud.server(uuid).system_metadata
        cloud.fail(CALL[way], error)
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert states(cloud, uuid) == BEFORE[way]
        assert cloud.server(uuid).system_metadata == kept == ({} if way == "suspend" else {FORMER_STATE: "active"})
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.message, fault.code, cloud.faults(uuid)) == (error.message, error.status, 1)
        assert (await cloud.actions(uuid))[-1].message == "Error"
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert states(cloud, uuid) == AFTER[way]

    story()


@pytest.mark.spec("SUS-10", "SUS-13", "SUS-16")
@both_ways
def test_a_hypervisor_that_loses_the_guest_puts_the_server_in_error(way: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        kept = cloud.server(uuid).system_metadata
        cloud.hypervisors["host0"].guests[uuid].power_state = P.SHUTDOWN
        await ask(cloud, uuid, way)
        await cloud.rest()
        assert states(cloud, uuid) == (V.ERROR, None, P.SHUTDOWN, P.SHUTDOWN)
        assert cloud.server(uuid).system_metadata == kept
        assert cloud.faults(uuid) == 1
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert states(cloud, uuid) == BEFORE["suspend"]

    story()


@pytest.mark.spec("SUS-14")
@in_cloud()
async def test_a_resume_that_cannot_be_prepared_leaves_the_server_suspended(cloud: SmallCloud) -> None:
    uuid = await ready(cloud, "resume")
    cloud.net.fail["vifs"] = [KilonovaError("forbidden")]
    await ask(cloud, uuid, "resume")
    await cloud.rest()
    assert states(cloud, uuid) == BEFORE["resume"]
    assert cloud.calls("wake") == []
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "forbidden"
    assert (await cloud.actions(uuid))[-1].message == "Error"


@pytest.mark.spec("SUS-17")
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
        assert cloud.calls("suspend", "wake") == []
        vm_state, _, power_state, power = BEFORE[way]
        assert states(cloud, uuid) == (vm_state, T.REBUILDING, power_state, power)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("SUS-18", "INI-107")
@pytest.mark.parametrize("was_done", [True, False])
def test_a_suspend_that_was_cut_off(was_done: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "suspend")
        cloud.at["suspend guest/do/effect"] = lambda _p: _die(cloud)
        await ask(cloud, uuid, "suspend")
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state is T.SUSPENDING
        if not was_done:
            cloud.hypervisors["host0"].guests[uuid].power_state = P.RUNNING
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        assert states(cloud, uuid) == (AFTER if was_done else BEFORE)["suspend"]
        assert cloud.faults(uuid) == (not was_done)

    story()


@pytest.mark.spec("SUS-18", "INI-107")
@pytest.mark.parametrize("found", [P.SUSPENDED, P.RUNNING])
def test_a_resume_that_was_cut_off_goes_on(found: PowerState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "resume")
        cloud.at["resume guest/do/effect"] = lambda _p: _die(cloud)
        await ask(cloud, uuid, "resume")
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state is T.RESUMING
        cloud.hypervisors["host0"].guests[uuid].power_state = found
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        assert states(cloud, uuid) == AFTER["resume"]
        assert (cloud.faults(uuid), cloud.server(uuid).system_metadata) == (0, {})

    story()


def _die(cloud: SmallCloud) -> None:
    for name in ("host0", "conductor0"):
        cloud.crash(name)


@pytest.mark.spec("SUS-18", "INI-107")
@pytest.mark.parametrize("task", [T.SUSPENDING, T.RESUMING])
@pytest.mark.parametrize(("found", "vm"), [(P.RUNNING, V.ACTIVE), (P.SUSPENDED, V.SUSPENDED)])
def test_a_task_that_no_operation_has_is_settled_by_the_guest(
    task: TaskState, found: PowerState, vm: VmState
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.crash("host0")
        await cloud.change(uuid, vm_state=V.ACTIVE if task is T.SUSPENDING else V.SUSPENDED, task_state=task)
        cloud.hypervisors["host0"].guests[uuid].power_state = found
        await cloud.boot("host0")
        await cloud.rest()
        assert states(cloud, uuid) == (vm, None, found, found)
        assert cloud.faults(uuid) == 1

    story()


@both_ways
def test_a_hard_reboot_takes_over(way: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, way)
        cloud.hypervisors["host0"].faults.latency = 2.0
        await ask(cloud, uuid, way)
        await cloud.until(lambda: cloud.calls("suspend", "wake"))
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert states(cloud, uuid) == BEFORE["suspend"]
        assert cloud.operation(uuid, way).state is OperationState.CANCELLED
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.parametrize("end", ["delete", "reboot", "host restarts"])
def test_what_becomes_of_a_suspended_server(end: str) -> None:
    @in_cloud(resume_guests=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await ready(cloud, "resume")
        if end == "delete":
            await cloud.delete(uuid)
            await cloud.rest()
            cloud.gone(uuid)
        elif end == "reboot":
            await cloud.reboot(uuid, hard=True)
            await cloud.rest()
            assert states(cloud, uuid) == BEFORE["suspend"]
            guest = cloud.guest(uuid)
            assert guest is not None
            assert guest.starts == 2
        else:
            await cloud.restart("host0")
            await cloud.rest()
            assert states(cloud, uuid) == BEFORE["resume"]

    story()
