"""Stop and start."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from small_cloud import CONTEXT, FLAVOR, IMAGE, OPTIONS, SmallCloud, in_cloud

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import POWER_OFF, PowerOffArgs
from kilonova.db import instances
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import (
    InstanceInvalidState,
    InstanceNotFound,
    InstanceNotReady,
    KilonovaError,
    ServiceUnavailable,
)
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.operations.stop import grace_of

REFUSES = KilonovaError("the hypervisor refuses")


# --- grace ----------------------------------------------------------------------------------------------


@pytest.mark.spec("PWR-04", "PWR-07")
@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [
        (None, 60.0), ("180", 180.0), ("0", 0.0), ("-5", 60.0), ("soon", 60.0), ("", 60.0), ("1.5", 60.0),
        ("9999", 600.0),
    ],
)
def test_the_time_for_a_clean_shutdown(wanted: str | None, seconds: float) -> None:
    options = msgspec.structs.replace(OPTIONS, shutdown_timeout=60.0, shutdown_timeout_max=600.0)
    properties = {} if wanted is None else {"os_shutdown_timeout": wanted}
    image = msgspec.structs.replace(IMAGE, properties=properties)
    instance = Instance(uuid="u", project_id="p", user_id="u", flavor=FLAVOR, image=image)
    assert grace_of(instance, options) == seconds
    assert grace_of(msgspec.structs.replace(instance, image=None), options) == 60.0


@pytest.mark.spec("PWR-04", "PWR-05", "PWR-06")
@pytest.mark.parametrize(("clean", "given"), [(True, (20.0, 5.0)), (False, (0.0, 5.0))])
def test_the_driver_is_given_grace_and_interval(clean: bool, given: tuple[float, float]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].faults.disobedient = {uuid}
        asked = cloud.loop.time()
        await cloud.stop(uuid, clean=clean)
        await cloud.rest()
        assert cloud.power_offs == [given]
        assert cloud.server(uuid).vm_state is VmState.STOPPED
        assert (cloud.loop.time() - asked > 20.0) == clean

    story()


@pytest.mark.spec("PWR-07")
@in_cloud(options=msgspec.structs.replace(OPTIONS, shutdown_timeout=500.0))
async def test_a_delete_cuts_the_wait_for_a_shutdown_short(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.stop(uuid)
    await cloud.until(lambda: cloud.power_offs)
    asked = cloud.loop.time()
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert cloud.loop.time() - asked < 10.0
    cloud.gone(uuid)


# --- stop -------------------------------------------------------------------------------------------------


@pytest.mark.spec("PWR-08")
@in_cloud()
async def test_a_server_is_stopped(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.stop(uuid)
    assert cloud.server(uuid).task_state is TaskState.POWERING_OFF
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)
    assert cloud.power(uuid) is PowerState.SHUTDOWN
    (action,) = [a for a in await cloud.actions(uuid) if a.action == "stop"]
    assert (action.message, action.request_id, action.user_id) == (None, CONTEXT.request_id, CONTEXT.user_id)


@pytest.mark.spec("PWR-09")
@in_cloud()
async def test_a_guest_that_is_off_is_switched_off_all_the_same(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.SHUTDOWN
    cloud.at["power off/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=None))
    await cloud.stop(uuid)
    await cloud.rest()
    assert len(cloud.calls("power_off")) == 1
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)


@pytest.mark.spec("PWR-10", "PWR-14", "FND-15")
@pytest.mark.parametrize("task", [None, TaskState.REBUILDING])
def test_a_stop_whose_task_was_taken_stores_what_it_saw_and_no_more(task: TaskState | None) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at["power off/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=task))
        await cloud.stop(uuid)
        await cloud.until(lambda: cloud.operation(uuid, "stop").finished_at)
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (
            VmState.ACTIVE, task, PowerState.SHUTDOWN
        )
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("PWR-11", "FND-14", "FND-16", "FND-18", "FND-36", "FND-02")
@in_cloud()
async def test_a_stop_that_fails_clears_its_task_and_says_why(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    cloud.fail("power_off", REFUSES)
    seen: list[tuple[Any, ...]] = []
    look = cloud._look

    def note() -> None:
        look()
        server = cloud.server(uuid)
        done = cloud.operation(uuid, "stop").state is OperationState.FAILED if cloud.operations(uuid, "stop") else False
        seen.append((server.task_state, cloud.faults(uuid), done))

    cloud._look = note  # type: ignore[method-assign]
    await cloud.stop(uuid)
    await cloud.rest()
    after = cloud.server(uuid)
    assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.code, fault.message) == (500, REFUSES.message)
    (action,) = [a for a in await cloud.actions(uuid) if a.action == "stop"]
    assert action.message == "Error"
    assert {e.event: e.result for e in action.events} == {
        "stop.power_off": "Error", "compute_stop_instance": "Error"
    }
    assert set(seen) <= {(None, 0, False), (TaskState.POWERING_OFF, 0, False), (None, 1, True)}  # all in one write
    await cloud.stop(uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.STOPPED


@pytest.mark.spec("PWR-11", "FND-12", "FND-19", "FND-37")
@in_cloud()
async def test_a_server_that_is_gone_gets_no_fault(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("power_off", REFUSES)
    cloud.at["stop/power off/do/before"] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
    await cloud.stop(uuid)
    await cloud.rest()
    assert cloud.operation(uuid, "stop").state is OperationState.FAILED
    assert cloud.faults(uuid) == 0
    with pytest.raises(InstanceNotFound):
        cloud.server(uuid)


@pytest.mark.spec("FND-21")
@in_cloud()
async def test_an_operation_stores_one_fault_however_often_it_tries(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for _ in range(3):
        await cloud.databases.cell.write(
            lambda conn: instances.add_fault(conn, uuid, uuid, Fault(code=500, message="why", created_at=cloud.now))
        )
    assert cloud.faults(uuid) == 1


@pytest.mark.spec("FND-09", "FND-13")
@in_cloud()
async def test_a_failure_that_cannot_be_written_down_is_not_replaced(cloud: SmallCloud) -> None:
    """The database goes away when the failure is to be stored; whoever goes on later stores the same failure."""
    uuid = await cloud.build()
    cloud.fail("power_off", REFUSES)
    refused: list[int] = []
    write = cloud.databases.cell.write

    async def away(fn: Any) -> Any:
        if len(refused) < 6:
            refused.append(1)
            raise ServiceUnavailable("The database does not answer.")
        return await write(fn)

    def go_away(_process: str) -> None:
        cloud.databases.cell.write = away  # type: ignore[method-assign]

    cloud.at["power off/do/effect"] = go_away
    await cloud.stop(uuid)
    await cloud.until(lambda: cloud.fault(uuid))
    assert len(refused) == 6
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == REFUSES.message
    assert cloud.server(uuid).task_state is None


@pytest.mark.spec("PWR-12")
@in_cloud()
async def test_an_observation_during_a_stop_changes_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.stop(uuid)
    await cloud.until(lambda: cloud.power_offs)
    cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.PAUSED
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.STOPPED)
    stopping = [i.power_state for i in cloud.history if i.task_state is TaskState.POWERING_OFF]
    assert set(stopping) == {PowerState.RUNNING}


@pytest.mark.spec("PWR-16")
@in_cloud()
async def test_a_guest_that_is_missing_counts_as_stopped(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].guests.clear()
    await cloud.stop(uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.NOSTATE)


@pytest.mark.spec("PWR-01", "PWR-02", "PWR-03", "FND-40", "FND-41", "FND-42")
async def test_the_power_state_is_the_drivers_answer() -> None:
    hypervisor = FakeHypervisor("host0")
    driver = FakeDriver(hypervisor, SystemClock())
    environment = HostEnvironment("host0", driver, SystemClock())
    args = PowerOffArgs(uuid="77777777-7777-4777-8777-777777777777", grace=0.0, interval=0.0)
    asked: list[PowerState] = []
    answers = [PowerState.RUNNING, PowerState.CRASHED]

    async def power_state(uuid: str) -> PowerState:
        asked.append(answers[0])
        return answers.pop(0)

    async def power_off(uuid: str, *, grace: float, interval: float) -> None:
        return None

    assert (await POWER_OFF.do(environment, args)).power_state is PowerState.NOSTATE  # type: ignore[union-attr]
    driver.power_off = power_off  # type: ignore[method-assign]
    driver.power_state = power_state  # type: ignore[method-assign]
    off = await POWER_OFF.do(environment, args)
    assert off.power_state is PowerState.CRASHED  # type: ignore[union-attr]
    assert asked == [PowerState.RUNNING, PowerState.CRASHED]  # read anew each time

    async def broken(uuid: str) -> PowerState:
        raise REFUSES

    driver.power_state = broken  # type: ignore[method-assign]
    with pytest.raises(KilonovaError, match="refuses"):
        await POWER_OFF.do(environment, args)


# --- start ---------------------------------------------------------------------------------------------------


@pytest.mark.spec("PWR-17", "PWR-19")
@in_cloud()
async def test_a_server_is_started_with_its_networks_read_anew(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    (port,) = cloud.ports(uuid)
    cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
    await cloud.start(uuid)
    assert cloud.server(uuid).task_state is TaskState.POWERING_ON
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
    assert cloud.power(uuid) is PowerState.RUNNING
    _, call, guest = cloud.guests_made[-1]
    assert call == "power_on"
    assert [ip.address for ip in guest.vifs[0].fixed_ips] == ["10.0.0.77"]
    assert server.network_info == guest.vifs


@pytest.mark.spec("PWR-22", "FND-14", "FND-18")
@pytest.mark.parametrize("where", ["power_on", "vifs"])
def test_a_start_that_fails_leaves_the_server_stopped(where: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.stopped()
        if where == "vifs":
            cloud.net.fail["vifs"] = [REFUSES]
        else:
            cloud.fail("power_on", REFUSES)
        await cloud.start(uuid)
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == REFUSES.message
        await cloud.start(uuid)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is VmState.ACTIVE

    story()


@pytest.mark.spec("PWR-18")
@in_cloud()
async def test_a_guest_without_its_disks_is_not_started(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.hypervisors["host0"].guests[uuid].disks = False
    await cloud.start(uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.STOPPED, None, PowerState.SHUTDOWN)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "has no disks" in fault.message
    assert cloud.power(uuid) is PowerState.SHUTDOWN


@pytest.mark.spec("PWR-14")
@in_cloud()
async def test_a_start_whose_task_was_taken_stores_what_it_saw(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.at["power on/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=TaskState.REBUILDING))
    await cloud.start(uuid)
    await cloud.until(lambda: cloud.operation(uuid, "start").finished_at)
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (
        VmState.STOPPED, TaskState.REBUILDING, PowerState.RUNNING
    )


@pytest.mark.spec("PWR-24")
@in_cloud()
async def test_start_and_stop_cannot_interleave(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.hypervisors["host0"].faults.latency = 2.0
    await cloud.start(uuid)
    with pytest.raises(InstanceInvalidState):
        await cloud.stop(uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    await cloud.stop(uuid)
    with pytest.raises(InstanceInvalidState):
        await cloud.start(uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.STOPPED
    assert [name for _, name in cloud.calls("power_on", "power_off")] == ["power_off", "power_on", "power_off"]


@in_cloud()
async def test_a_server_without_host_is_not_ready(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", REFUSES)
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    with pytest.raises(InstanceNotReady):
        await cloud.stop(uuid)
    assert cloud.server(uuid).task_state is None


@pytest.mark.spec("PWR-13", "PWR-23")
@pytest.mark.parametrize("moment", ["{op}/{step}/do/before", "{step}/do/effect", "{op}/{step}/do/answered"])
@pytest.mark.parametrize("starting", [False, True], ids=["stop", "start"])
def test_a_start_or_stop_that_is_cut_off_is_done_after_the_restart(starting: bool, moment: str) -> None:
    operation, step = ("start", "power on") if starting else ("stop", "power off")

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if starting else cloud.build())
        cloud.power_offs.clear()

        def die(_process: str) -> None:
            for name in ("host0", "conductor0"):
                cloud.crash(name)

        cloud.at[moment.format(op=operation, step=step)] = die
        await (cloud.start(uuid) if starting else cloud.stop(uuid))
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state is (TaskState.POWERING_ON if starting else TaskState.POWERING_OFF)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        server = cloud.server(uuid)
        expected = (VmState.ACTIVE, PowerState.RUNNING) if starting else (VmState.STOPPED, PowerState.SHUTDOWN)
        assert (server.vm_state, server.power_state, server.task_state) == (*expected, None)
        assert cloud.power(uuid) is expected[1]
        assert set(cloud.power_offs) == (set() if starting else {(20.0, 5.0)})  # clean, however often
        assert cloud.faults(uuid) == 0

    story()
