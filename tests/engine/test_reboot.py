"""Soft and hard reboot."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.errors import InstanceInvalidState, KilonovaError, ServiceUnavailable
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState

REFUSES = KilonovaError("the hypervisor refuses")

both_kinds = pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])


@pytest.mark.spec("RBT-04", "RBT-05", "RBT-11", "RBT-12", "RBT-13", "RBT-02")
@both_kinds
def test_a_server_is_rebooted(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        (port,) = cloud.ports(uuid)
        cloud.net.ports[port] = msgspec.structs.replace(cloud.net.ports[port], addresses=("10.0.0.77",))
        cloud.history.clear()
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        suffix = "_hard" if hard else ""
        assert cloud.states(uuid) == [
            ("active", f"rebooting{suffix}"), ("active", f"reboot_pending{suffix}"),
            ("active", f"reboot_started{suffix}"), ("active", None),
        ]
        after = cloud.server(uuid)
        assert (after.power_state, after.launched_at) == (PowerState.RUNNING, before.launched_at)
        assert [ip.address for ip in after.network_info[0].fixed_ips] == ["10.0.0.77"]
        kind = "hard_reboot" if hard else "soft_reboot"
        assert cloud.calls("soft_reboot", "hard_reboot") == [("host0", kind)]
        if hard:
            assert [ip.address for ip in cloud.guests_made[-1][2].vifs[0].fixed_ips] == ["10.0.0.77"]
        guest = cloud.guest(uuid)
        assert guest is not None
        assert guest.starts == 2

    story()


@pytest.mark.spec("RBT-01")
@in_cloud()
async def test_a_reboot_has_its_server_to_itself(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.reboot(uuid)
    for act in (cloud.stop, cloud.start):
        with pytest.raises(InstanceInvalidState):
            await act(uuid)
    await cloud.until(lambda: cloud.calls("soft_reboot"))
    for act in (cloud.stop, cloud.start):
        with pytest.raises(InstanceInvalidState):
            await act(uuid)
    await cloud.rest()
    assert cloud.calls("power_off", "power_on") == []


@pytest.mark.spec("RBT-04", "RBT-05")
@in_cloud()
async def test_a_hard_reboot_takes_over_from_a_soft_one_that_the_guest_does_not_obey(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.reboot(uuid)
    await cloud.until(lambda: cloud.calls("soft_reboot"))
    asked = cloud.loop.time()
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert cloud.loop.time() - asked < 10.0
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
    assert [o.state for o in cloud.operations(uuid)][1:] == [OperationState.CANCELLED, OperationState.SUCCEEDED]
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("RBT-06")
@both_kinds
def test_a_reboot_that_cannot_be_prepared_leaves_the_server_as_it_was(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before = cloud.server(uuid)
        cloud.net.fail["vifs"] = [KilonovaError("forbidden")]
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        after = cloud.server(uuid)
        assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
        assert cloud.calls("soft_reboot", "hard_reboot") == []
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "forbidden"

    story()


@pytest.mark.spec("RBT-08")
@both_kinds
def test_the_power_state_is_stored_anew_before_anything_is_done(hard: bool) -> None:
    pending = TaskState.REBOOT_PENDING_HARD if hard else TaskState.REBOOT_PENDING

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.CRASHED  # and nobody was told
        await cloud.reboot(uuid, hard=hard)
        await cloud.until(lambda: cloud.server(uuid).task_state is pending)
        seen = next(i for i in cloud.history if i.task_state is pending)
        assert (seen.vm_state, seen.power_state) == (VmState.ACTIVE, PowerState.CRASHED)
        assert cloud.calls("soft_reboot", "hard_reboot") == []
        await cloud.rest()
        assert cloud.server(uuid).power_state is PowerState.RUNNING
        cloud.history.clear()
        kind = "hard-reboot" if hard else "soft-reboot"
        cloud.at[f"{kind}/look at guest/do/before"] = lambda _p: cloud.wire.spawn(
            cloud.change(uuid, task_state=TaskState.REBUILDING)
        )
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        assert pending not in [i.task_state for i in cloud.history]
        assert cloud.server(uuid).task_state is TaskState.REBUILDING
        assert len(cloud.calls("soft_reboot", "hard_reboot")) == 1

    story()


@pytest.mark.spec("RBT-06")
@in_cloud()
async def test_a_network_service_that_is_away_for_a_moment_is_asked_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.net.fail["vifs"] = [ServiceUnavailable("no")] * 2
    await cloud.reboot(uuid)
    await cloud.rest()
    assert cloud.faults(uuid) == 0
    assert len(cloud.calls("soft_reboot")) == 1


@pytest.mark.spec("RBT-09", "RBT-24", "INI-081", "INI-139")
@pytest.mark.parametrize("state", [s for s in PowerState if s is not PowerState.RUNNING])
def test_a_guest_that_does_not_run_is_rebooted_hard_with_a_warning(state: PowerState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].guests[uuid].power_state = state
        with structlog.testing.capture_logs() as logs:
            await cloud.reboot(uuid)
            await cloud.rest()
        warnings = [e for e in logs if e["event"] == "guest to be rebooted does not run"]
        assert [e["log_level"] for e in warnings] == ["warning"]
        assert cloud.calls("soft_reboot", "hard_reboot") == [("host0", "hard_reboot")]
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
        assert "did not run" in (await told(cloud, uuid))

    story()


async def told(cloud: SmallCloud, uuid: str) -> str:
    """What the history says of the step that rebooted."""
    action = [a for a in await cloud.actions(uuid) if a.action == "reboot"][-1]
    (event,) = [e for e in action.events if e.event.endswith("reboot.reboot_guest")]
    return event.details or ""


@pytest.mark.spec("INI-140")
@in_cloud()
async def test_a_guest_that_runs_is_rebooted_as_asked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.reboot(uuid)
    await cloud.rest()
    assert await told(cloud, uuid) == ""
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert [name for _, name in cloud.calls("soft_reboot", "hard_reboot")] == ["soft_reboot", "hard_reboot"]


@in_cloud()
async def test_a_guest_that_does_not_obey_is_rebooted_hard_and_the_history_says_so(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.reboot(uuid)
    await cloud.rest()
    assert [name for _, name in cloud.calls("soft_reboot", "hard_reboot")] == ["soft_reboot", "hard_reboot"]
    assert "did not shut down within 15 s; it was rebooted hard" in await told(cloud, uuid)


@pytest.mark.spec("RBT-10", "RBT-25", "INI-104")
@both_kinds
def test_a_rescued_server_stays_rescued(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at["reboot guest/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, vm_state=VmState.RESCUED))
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.RESCUED, None)

    story()


@pytest.mark.spec("RBT-14")
@in_cloud()
async def test_a_record_that_vanished_is_worth_a_warning(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["reboot guest/do/effect"] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
    with structlog.testing.capture_logs() as logs:
        await cloud.reboot(uuid)
        await cloud.rest()
    assert cloud.operation(uuid, "soft-reboot").state is OperationState.SUCCEEDED
    assert [e["log_level"] for e in logs if e["event"] == "server gone when its reboot ended"] == ["warning"]
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("RBT-15", "RBT-17")
@both_kinds
def test_a_driver_that_fails_over_a_guest_that_runs(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.fail("hard_reboot" if hard else "soft_reboot", REFUSES)
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
        await failed(cloud, uuid)

    story()


@pytest.mark.spec("RBT-16", "RBT-17", "FND-39")
@both_kinds
def test_a_driver_that_fails_and_leaves_the_guest_off(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        if hard:
            cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.SHUTDOWN
        cloud.fail("hard_reboot" if hard else "soft_reboot.off", REFUSES)
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (VmState.ERROR, None, PowerState.SHUTDOWN)
        await failed(cloud, uuid)
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.power(uuid)) == (VmState.ACTIVE, PowerState.RUNNING)

    story()


async def failed(cloud: SmallCloud, uuid: str) -> None:
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.message, cloud.faults(uuid)) == (REFUSES.message, 1)
    action = (await cloud.actions(uuid))[-1]
    assert (action.action, action.message) == ("reboot", "Error")
    whole = next(e for e in action.events if e.event == "compute_reboot_instance")
    assert (whole.result, whole.details) == ("Error", REFUSES.message)


@pytest.mark.spec("RBT-18")
@both_kinds
def test_a_reboot_whose_task_was_taken_does_not_touch_the_guest(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        kind = "hard-reboot" if hard else "soft-reboot"
        cloud.at[f"{kind}/describe guest/do/before"] = lambda _p: cloud.wire.spawn(
            cloud.change(uuid, task_state=TaskState.DELETING)
        )
        await cloud.reboot(uuid, hard=hard)
        await cloud.rest()
        assert cloud.calls("soft_reboot", "hard_reboot") == []
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state) == (VmState.ACTIVE, TaskState.DELETING)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("RBT-19")
@pytest.mark.parametrize("task", [TaskState.DELETING, TaskState.REBOOT_STARTED, TaskState.REBOOT_STARTED_HARD])
@both_kinds
def test_a_reboot_ends_only_the_task_of_its_own_kind(hard: bool, task: TaskState) -> None:
    own = TaskState.REBOOT_STARTED_HARD if hard else TaskState.REBOOT_STARTED

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at["reboot guest/do/effect"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=task))
        await cloud.reboot(uuid, hard=hard)
        await cloud.until(lambda: not cloud.active())
        assert cloud.server(uuid).task_state is (None if task is own else task)
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("RBT-26", "INI-106")
@both_kinds
def test_a_reboot_whose_message_was_lost_is_done_all_the_same(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.crash("conductor0")
        await cloud.reboot(uuid, hard=hard)  # nobody hears the message
        await asyncio.sleep(60.0)
        assert cloud.server(uuid).task_state in (TaskState.REBOOTING, TaskState.REBOOTING_HARD)
        await cloud.restart("host0")
        await cloud.boot("conductor0")
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
        assert len(cloud.calls("soft_reboot", "hard_reboot")) == 1

    story()


@pytest.mark.spec("RBT-24", "RBT-25")
@pytest.mark.parametrize("rescued", [False, True])
@both_kinds
def test_a_reboot_that_was_cut_off_when_the_guest_had_come_back_is_complete(hard: bool, rescued: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()

        def die(_process: str) -> None:
            for name in ("host0", "conductor0"):
                cloud.crash(name)

        cloud.at["reboot guest/do/effect"] = die
        await cloud.reboot(uuid, hard=hard)
        await cloud.until(lambda: not cloud.at)
        assert cloud.server(uuid).task_state in (TaskState.REBOOT_STARTED, TaskState.REBOOT_STARTED_HARD)
        if rescued:
            await cloud.change(uuid, vm_state=VmState.RESCUED)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state) == (VmState.RESCUED if rescued else VmState.ACTIVE, None)
        assert len(cloud.calls("soft_reboot", "hard_reboot")) == 1
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("RBT-24")
@both_kinds
def test_a_reboot_that_was_cut_off_before_it_began_is_done_as_the_guest_is_found(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        for running in (True, False):
            uuid = await cloud.build()
            before = len(cloud.effects)
            kind = "hard-reboot" if hard else "soft-reboot"

            def die(_process: str) -> None:
                for name in ("host0", "conductor0"):
                    cloud.crash(name)

            cloud.at[f"{kind}/describe guest/do/before"] = die
            await cloud.reboot(uuid, hard=hard)
            await cloud.until(lambda: not cloud.at)
            assert cloud.server(uuid).task_state in (TaskState.REBOOT_PENDING, TaskState.REBOOT_PENDING_HARD)
            if not running:
                cloud.hypervisors["host0"].guests[uuid].power_state = PowerState.SHUTDOWN
            await cloud.restart("host0", "conductor0")
            await cloud.rest()
            assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
            done = [e.name for e in cloud.effects[before:] if e.name in ("soft_reboot", "hard_reboot")]
            assert done == ["soft_reboot" if running and not hard else "hard_reboot"]

    story()
