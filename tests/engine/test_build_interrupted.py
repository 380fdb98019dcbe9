"""Build: deleted, reset, vanished or out of time before it is complete."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud

from kilonova.domain.errors import KilonovaError, ServiceUnavailable, TryElsewhere
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState


def limited(seconds: float) -> Any:
    return msgspec.structs.replace(OPTIONS, instance_build_timeout=seconds)


# --- the time limit -----------------------------------------------------------------------------------


@pytest.mark.spec("BLD-21")
@in_cloud(options=limited(0.0))
async def test_without_a_limit_a_build_takes_its_time(cloud: SmallCloud) -> None:
    cloud.net.fail["create_port"] = [ServiceUnavailable("no")] * 2
    cloud.hypervisors["host0"].faults.latency = 100.0
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE, within=4000.0)


async def slow_disks(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].faults.latency = 400.0


async def no_wiring(cloud: SmallCloud) -> None:
    cloud.net.wires = False


async def no_network(cloud: SmallCloud) -> None:
    cloud.net.fail["create_port"] = [ServiceUnavailable("no")] * 100


async def full_host(cloud: SmallCloud) -> None:
    """The host builds one server at a time, and one is being built."""
    cloud.hypervisors["host0"].faults.latency = 300.0
    await cloud.ask(cloud.new(networks=0))
    await cloud.until(lambda: cloud.calls("create_disks"))


@pytest.mark.spec("BLD-22", "BLD-23", "BLD-25", "BLD-26", "BLD-55", "BLD-118")
@pytest.mark.parametrize("obstacle", [slow_disks, no_wiring, no_network, full_host])
def test_a_build_that_takes_too_long_is_undone(obstacle: Any) -> None:
    settings = limited(60.0)
    if obstacle is no_network:
        settings = msgspec.structs.replace(settings, network_allocate_retries=100)
    if obstacle is no_wiring:
        settings = msgspec.structs.replace(settings, vif_plugging_timeout=1000.0)

    @in_cloud(hosts=1, options=settings, max_concurrent_builds=1)
    async def story(cloud: SmallCloud) -> None:
        await obstacle(cloud)
        asked = cloud.loop.time()
        uuid = await cloud.ask(cloud.new())
        await cloud.until(lambda: cloud.operations(uuid, "build") and (
            cloud.operation(uuid, "build").state is OperationState.UNDOING
            or cloud.server(uuid).vm_state is VmState.ERROR
        ), within=100.0)
        assert 58.0 < cloud.loop.time() - asked < 95.0
        cloud.heal()
        await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR, within=900.0)
        server = cloud.server(uuid)
        assert (server.task_state, server.host) == (None, None)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "The build was not complete in time."
        assert cloud.operation(uuid, "build").state is OperationState.FAILED
        assert (cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)) == (None, [], [])

    story()


@pytest.mark.spec("BLD-26")
@in_cloud(options=limited(60.0))
async def test_a_server_for_which_no_host_was_chosen_in_time_ends_in_error(cloud: SmallCloud) -> None:
    cloud.crash("scheduler")
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.loop.time() > 70.0)
    await cloud.boot("scheduler")
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ERROR
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "in time" in fault.message
    assert cloud.claims(uuid) == []


@pytest.mark.spec("BLD-24")
@in_cloud(options=limited(20.0))
async def test_a_server_that_was_built_in_time_is_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.until(lambda: cloud.loop.time() > 100.0)
    assert (cloud.server(uuid).vm_state, cloud.faults(uuid)) == (VmState.ACTIVE, 0)


@pytest.mark.spec("BLD-24")
@in_cloud(options=limited(60.0))
async def test_running_out_of_time_overwrites_no_other_state(cloud: SmallCloud) -> None:
    cloud.net.wires = False
    cloud.options = msgspec.structs.replace(cloud.options, vif_plugging_timeout=1000.0)
    await cloud.restart("scheduler")
    uuid = await cloud.ask(cloud.new())
    await cloud.task(uuid, TaskState.SPAWNING)
    await cloud.change(uuid, vm_state=VmState.STOPPED)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.faults(uuid)) == (VmState.STOPPED, 0)


# --- deleted ------------------------------------------------------------------------------------------


WAITING = "waiting for the interfaces, which nobody wires"
STAGES = {
    "scheduled": "place/let it build/do/before",
    "going to the host": "build/allocate networks/do/before",
    "networks made": "build/allocate networks/do/answered",
    "making disks": "build/create disks/do/before",
    "disks made": "create disks/do/effect",
    "disks recorded": "build/create disks/do/answered",
    "starting": "build/start guest/do/before",
    "started": "start guest/do/effect",
    WAITING: "build/start guest/do/committed",
    "resuming": "build/let guest run/do/before",
}


@pytest.mark.spec(
    "BLD-55", "BLD-75", "BLD-99", "BLD-105", "BLD-110", "BLD-118", "BLD-119", "DEL-44", "NET-06", "FND-38"
)
@pytest.mark.parametrize("stage", STAGES)
def test_a_delete_ends_a_build_wherever_it_is(stage: str) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid
        accepted: list[float] = []

        def delete(_process: str) -> None:
            async def ask() -> None:
                await cloud.delete(uuid)
                accepted.append(cloud.loop.time())

            cloud.wire.spawn(ask())

        cloud.net.wires = stage != WAITING
        cloud.at[STAGES[stage]] = delete
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        assert cloud.loop.time() - accepted[0] < 8.0
        await cloud.rest(debts=True)
        cloud.gone(uuid)
        assert cloud.faults(uuid) == 0
        tasks = [task for _, task in cloud.states(uuid)]
        assert set(tasks[tasks.index("deleting") :]) == {"deleting", None}
        assert tasks[tasks.index("deleting") : -1] == ["deleting"]
        assert "error" not in [vm for vm, _ in cloud.states(uuid)]
        assert cloud.operation(uuid, "build").state is OperationState.CANCELLED
        if stage == "scheduled":
            assert cloud.calls("create_port") == []

    story()


@pytest.mark.spec("BLD-68")
@pytest.mark.parametrize(
    "stage", ["start guest/undo/before", "allocate networks/undo/answered", "claim host/undo/before"]
)
def test_a_build_that_is_deleted_between_two_hosts_goes_to_no_other(stage: str) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid
        cloud.fail("spawn", TryElsewhere("no"))
        cloud.at[f"build/{stage}"] = lambda _process: cloud.wire.spawn(cloud.delete(uuid))
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        await cloud.rest(debts=True)
        cloud.gone(uuid)
        tasks = [task for _, task in cloud.states(uuid)]
        assert tasks[tasks.index("deleting") :] == ["deleting", None]
        assert len(cloud.calls("spawn")) == len(cloud.calls("create_disks")) == 1
        assert (cloud.faults(uuid), "error" in [vm for vm, _ in cloud.states(uuid)]) == (0, False)

    story()


@pytest.mark.spec("DEL-44", "NET-12")
@in_cloud(options=msgspec.structs.replace(OPTIONS, network_allocate_retries=100))
async def test_a_build_that_waits_for_the_network_service_gives_up_at_once(cloud: SmallCloud) -> None:
    cloud.net.fail["create_port"] = [ServiceUnavailable("no")] * 1000
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: len(cloud.calls("create_port")) == 6)
    asked = cloud.loop.time()
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert cloud.loop.time() - asked < 5.0
    assert len(cloud.calls("create_port")) == 6
    cloud.gone(uuid)


@pytest.mark.spec("DEL-44")
@in_cloud()
async def test_a_build_whose_disks_take_long_gives_up_quickly(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].faults.latency = 900.0
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.calls("create_disks"))
    asked = cloud.loop.time()
    await cloud.delete(uuid)
    cloud.heal()
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert cloud.loop.time() - asked < 8.0
    cloud.gone(uuid)


@pytest.mark.spec("BLD-119")
@in_cloud()
async def test_a_clean_up_that_fails_under_a_delete_writes_no_error(cloud: SmallCloud) -> None:
    cloud.net.wires = False
    uuid = await cloud.ask(cloud.new())
    await cloud.task(uuid, TaskState.SPAWNING)
    await cloud.until(lambda: cloud.calls("spawn"))
    cloud.fail("destroy", *[KilonovaError("the hypervisor hangs")] * 9)
    await cloud.delete(uuid)
    await cloud.rest(debts=True, within=600.0)
    assert "error" not in [vm for vm, _ in cloud.states(uuid)]
    assert cloud.faults(uuid) == 0
    cloud.gone(uuid)


# --- reset or vanished ----------------------------------------------------------------------------------


@pytest.mark.spec("BLD-55", "BLD-99", "BLD-118", "FND-38")
@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("stage", ["going to the host", "disks made", "started", WAITING])
def test_a_build_that_lost_its_server_to_a_reset_undoes_its_own_work_only(stage: str, active: bool) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid

        def reset(_process: str) -> None:
            async def ask() -> None:
                await cloud.compute.reset_state(CONTEXT, await cloud.located(uuid), active=active)

            cloud.wire.spawn(ask())

        cloud.net.wires = stage != WAITING
        cloud.at[STAGES[stage]] = reset
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: cloud.server(uuid).vm_state is not VmState.BUILDING)
        await cloud.rest()
        server = cloud.server(uuid)
        expected = VmState.ACTIVE if active else VmState.ERROR
        assert (server.vm_state, server.task_state, server.host) == (expected, None, None)
        assert cloud.faults(uuid) == 0
        assert (cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)) == (None, [], [])

    story()


@pytest.mark.spec("BLD-75", "BLD-79", "BLD-101", "BLD-105", "NET-30", "FND-12", "FND-37", "BLD-57", "BLD-102", "DEL-59")
@pytest.mark.parametrize("stage", STAGES)
def test_a_build_whose_record_vanishes_cleans_up_and_ends(stage: str) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid
        cloud.net.wires = stage != WAITING
        cloud.at[STAGES[stage]] = lambda _process: cloud.wire.spawn(cloud.erase(uuid))
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: cloud.operations(uuid, "build"))
        await cloud.rest(debts=True)
        assert cloud.operation(uuid, "build").state is OperationState.FAILED
        cloud.nothing_left(uuid)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("BLD-79")
@in_cloud()
async def test_a_record_that_is_gone_when_error_is_to_be_stored_is_no_error(cloud: SmallCloud) -> None:
    cloud.fail("spawn", KilonovaError("no"))
    uuid = cloud.new().instance.uuid
    cloud.at["build/start guest/undo/before"] = lambda _process: cloud.wire.spawn(cloud.erase(uuid))
    await cloud.ask(cloud.new(uuid=uuid))
    await cloud.until(lambda: cloud.operations(uuid, "build"))
    await cloud.rest()
    assert cloud.operation(uuid, "build").state is OperationState.FAILED
    cloud.nothing_left(uuid)


@pytest.mark.spec("BLD-104")
@in_cloud()
async def test_after_the_last_save_a_build_is_a_success_whatever_follows(cloud: SmallCloud) -> None:
    """What follows are its end in other processes and the counting; the host may die at once."""
    cloud.at["build/let guest run/do/committed"] = lambda _process: cloud.crash("host0")
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.operations(uuid, "build") and not cloud.active())
    assert cloud.operation(uuid, "build").state is OperationState.SUCCEEDED
    assert (cloud.server(uuid).vm_state, cloud.power(uuid)) == (VmState.ACTIVE, PowerState.RUNNING)
