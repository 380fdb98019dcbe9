"""What becomes of servers when the service of their host, or everything, was stopped and starts again."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import structlog
from small_cloud import Always, SmallCloud, in_cloud

from kilonova.agent.agent import Agent
from kilonova.bus.subjects import to_host
from kilonova.conductor.hosts import HostReports
from kilonova.db import instances
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState

T, V, P = TaskState, VmState, PowerState
REFUSES = KilonovaError("the hypervisor refuses")
BOTH = ("conductor0", "host0")


async def come_back(cloud: SmallCloud, uuid: str, *, power: PowerState | None = None, **changes: Any) -> None:
    """The service of the host stops, the record and the guest change meanwhile, and it starts again."""
    cloud.crash("host0")
    await cloud.change(uuid, **changes)
    if power is not None:
        cloud.hypervisors["host0"].guests[uuid].power_state = power
    cloud.effects.clear()
    await cloud.boot("host0")
    await cloud.rest()


def states(cloud: SmallCloud, uuid: str) -> tuple[VmState, TaskState | None, PowerState]:
    server = cloud.server(uuid)
    return server.vm_state, server.task_state, server.power_state


# --- servers that no operation works on ----------------------------------------------------------------------


@pytest.mark.spec("INI-074", "INI-075", "INI-095", "INI-099", "INI-101", "INI-105", "INI-111", "INI-144")
@pytest.mark.parametrize(("vm", "task", "after"), [
    (V.BUILDING, None, V.ERROR), (V.BUILDING, T.SPAWNING, V.ERROR),
    (V.ACTIVE, T.SCHEDULING, V.ERROR), (V.ACTIVE, T.BLOCK_DEVICE_MAPPING, V.ERROR), (V.ACTIVE, T.NETWORKING, V.ERROR),
    (V.STOPPED, T.SPAWNING, V.ERROR),
    (V.ERROR, T.REBUILDING, V.ERROR), (V.ERROR, T.REBOOTING_HARD, V.ERROR),
    (V.ACTIVE, T.REBOOTING, V.ACTIVE), (V.STOPPED, T.REBOOT_PENDING, V.STOPPED),
    (V.PAUSED, T.REBOOT_PENDING, V.PAUSED), (V.SOFT_DELETED, T.RESTORING, V.SOFT_DELETED),
])
def test_a_task_that_nobody_will_end_is_cleared(vm: VmState, task: TaskState | None, after: VmState) -> None:
    @in_cloud(resume_guests=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        with structlog.testing.capture_logs() as logs:
            await come_back(cloud, uuid, vm_state=vm, task_state=task)
        assert states(cloud, uuid)[:2] == (after, None)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (cloud.faults(uuid), fault.message) == (1, f"The service stopped during {(task or vm).value}.")
        assert [e["log_level"] for e in logs if e.get("reason") == fault.message] == ["warning"]
        assert cloud.effects == []

    story()


@pytest.mark.spec("INI-071", "INI-072", "INI-126")
@pytest.mark.parametrize("vm", [V.SOFT_DELETED, V.ERROR, V.STOPPED, V.PAUSED, V.SUSPENDED])
def test_a_guest_that_is_not_meant_to_run_is_left_as_it_is(vm: VmState) -> None:
    @in_cloud(resume_guests=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        done = len(cloud.operations(uuid))
        await come_back(cloud, uuid, power=P.SHUTDOWN, vm_state=vm, power_state=P.RUNNING)
        assert states(cloud, uuid)[:2] == (vm, None)
        assert (cloud.effects, cloud.faults(uuid), len(cloud.operations(uuid))) == ([], 0, done)

    story()


@pytest.mark.spec("INI-097", "INI-098", "INI-095", "INI-117")
@pytest.mark.parametrize("vm", [V.BUILDING, V.SOFT_DELETED, V.ERROR, V.ACTIVE])
def test_a_delete_is_begun_again_whatever_the_state(vm: VmState) -> None:
    @in_cloud(resume_guests=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await come_back(cloud, uuid, power=P.SHUTDOWN, vm_state=vm, task_state=T.DELETING)
        cloud.gone(uuid)
        assert cloud.faults(uuid) == 0
        action = (await cloud.actions(uuid))[-1]
        assert (action.action, action.message, action.project_id) == ("delete", None, "project")
        assert action.request_id.startswith("req-")

    story()


@pytest.mark.spec("INI-112")
@in_cloud()
async def test_a_delete_removes_what_a_lost_build_has_left(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await come_back(cloud, uuid, vm_state=V.BUILDING, task_state=T.SPAWNING)
    assert cloud.server(uuid).vm_state is V.ERROR
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "The service stopped during spawning."
    assert cloud.guest(uuid) is not None
    assert cloud.ports(uuid)
    assert cloud.claims(uuid) == ["host0"]
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


# --- guests that ran when their host went down -----------------------------------------------------------------


@pytest.mark.spec("INI-093", "INI-117", "INI-169", "INI-174")
@pytest.mark.parametrize("found", [P.SHUTDOWN, P.CRASHED, P.NOSTATE])
def test_a_guest_that_ran_is_started_again(found: PowerState) -> None:
    @in_cloud(resume_guests=True)
    async def story(cloud: SmallCloud) -> None:
        uuid, other = await cloud.build(), await cloud.stopped()
        with structlog.testing.capture_logs() as logs:
            await come_back(cloud, uuid, power=found)
        assert states(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)
        assert cloud.power(uuid) is P.RUNNING
        assert [name for _, name in cloud.calls("soft_reboot", "hard_reboot", "power_on")] == ["hard_reboot"]
        assert [vif.id for vif in cloud.guests_made[-1][2].vifs] == cloud.ports(uuid)
        (line,) = [e for e in logs if e["event"] == "guest is started again"]
        assert (line["log_level"], line["instance"]) == ("info", uuid)
        action = (await cloud.actions(uuid))[-1]
        assert (action.action, action.message) == ("reboot", None)
        assert states(cloud, other) == (V.STOPPED, None, P.SHUTDOWN)

    story()


@pytest.mark.spec("INI-094")
@in_cloud()
async def test_without_the_option_nothing_is_started(cloud: SmallCloud) -> None:
    uuid, running = await cloud.build(), await cloud.build()
    before = cloud.server(running)
    await come_back(cloud, uuid, power=P.SHUTDOWN)
    assert states(cloud, uuid) == (V.ACTIVE, None, P.SHUTDOWN)
    assert cloud.effects == []
    assert cloud.server(running) == before
    await cloud.until(lambda: cloud.server(uuid).vm_state is V.STOPPED, within=60.0)  # told by a later report
    assert [name for _, name in cloud.calls() if name != "power_off"] == []


@pytest.mark.spec("INI-171", "INI-173")
@in_cloud(resume_guests=True)
async def test_a_guest_that_cannot_be_started_again_puts_its_server_in_error(cloud: SmallCloud) -> None:
    uuids = [await cloud.build() for _ in range(3)]
    cloud.crash("host0")
    for uuid in uuids:
        cloud.hypervisors["host0"].guests[uuid].power_state = P.SHUTDOWN
    cloud.fail("hard_reboot", REFUSES)
    with structlog.testing.capture_logs() as logs:
        await cloud.boot("host0")
        await cloud.rest()
    (broken,) = [uuid for uuid in uuids if cloud.server(uuid).vm_state is V.ERROR]
    assert states(cloud, broken) == (V.ERROR, None, P.SHUTDOWN)
    fault = cloud.fault(broken)
    assert fault is not None
    assert fault.message == REFUSES.message
    (line,) = [e for e in logs if e["event"] == "guest not rebooted"]
    assert (line["instance"], line["exc_info"]) == (broken, REFUSES)
    assert all(states(cloud, uuid) == (V.ACTIVE, None, P.RUNNING) for uuid in uuids if uuid != broken)


# --- recovery itself ----------------------------------------------------------------------------------------------


@pytest.mark.spec("INI-007", "INI-009")
@in_cloud(hosts=2)
async def test_all_servers_of_the_host_are_recovered_and_no_others(cloud: SmallCloud) -> None:
    uuids = [await cloud.build() for _ in range(6)]
    where = {uuid: cloud.server(uuid).host for uuid in uuids}
    assert set(where.values()) == {"host0", "host1"}
    for uuid in uuids:
        await cloud.change(uuid, task_state=T.REBOOTING)
    await cloud.restart("host0")
    await cloud.rest()
    for uuid in uuids:
        here = where[uuid] == "host0"
        assert cloud.server(uuid).task_state is (None if here else T.REBOOTING)
        assert cloud.faults(uuid) == int(here)


@pytest.mark.spec("INI-013")
def test_a_server_that_cannot_be_recovered_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = HostReports._settle

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuids = [await cloud.build() for _ in range(3)]

        def fails(self: HostReports, tx: Any, instance: Any, found: PowerState) -> None:
            if instance.uuid == uuids[1]:
                raise ValueError("a defect")
            settle(self, tx, instance, found)

        monkeypatch.setattr(HostReports, "_settle", fails)
        for uuid in uuids:
            await cloud.change(uuid, task_state=T.REBOOTING)
        with structlog.testing.capture_logs() as logs:
            await cloud.restart("host0")
            await cloud.rest()
        assert [states(cloud, uuid)[:2] for uuid in uuids] == [(V.ACTIVE, None), (V.ERROR, None), (V.ACTIVE, None)]
        fault = cloud.fault(uuids[1])
        assert fault is not None
        assert fault.message == "The server could not be recovered: Unexpected error: ValueError."
        (line,) = [e for e in logs if e["event"] == "server not recovered"]
        assert (line["log_level"], line["instance"]) == ("error", uuids[1])

    story()


@pytest.mark.spec("INI-017")
@pytest.mark.parametrize("meanwhile", [{"host": "host9"}, {"deleted_at": 1.0}, None])
def test_a_record_is_read_again_before_it_is_recovered(
    meanwhile: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[Any] = []

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, task_state=T.REBOOTING)
        listed.append(cloud.server(uuid))
        monkeypatch.setattr(instances, "on_host", lambda _conn, _host: listed)
        if meanwhile is None:
            await cloud.erase(uuid)
        else:
            await cloud.change(uuid, **meanwhile)
        await cloud.restart("host0")
        await cloud.rest()
        assert cloud.wire.defects == []
        assert cloud.faults(uuid) == 0
        assert cloud.calls("hard_reboot", "remove") == []
        if meanwhile is not None:
            assert states(cloud, uuid)[:2] == (V.ACTIVE, T.REBOOTING)

    story()


@pytest.mark.spec("INI-070")
@in_cloud(hosts=2)
async def test_a_guest_whose_server_is_elsewhere_is_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    host = cloud.server(uuid).host
    assert host is not None
    other = "host1" if host == "host0" else "host0"
    twin = msgspec.structs.replace(cloud.hypervisors[host].guests[uuid], power_state=P.SHUTDOWN)
    cloud.hypervisors[other].guests[uuid] = twin
    before = cloud.server(uuid)
    cloud.effects.clear()
    with structlog.testing.capture_logs() as logs:
        await cloud.restart(other)
        await cloud.rest()
    (line,) = [e for e in logs if e["event"] == "guest of a server that is recorded elsewhere"]
    assert (line["log_level"], line["instance"], line["host"]) == ("warning", uuid, host)
    assert cloud.server(uuid) == before
    assert cloud.effects == []
    assert cloud.hypervisors[other].guests[uuid] == twin


@pytest.mark.spec("INI-016", "INI-020", "LCE-22")
@in_cloud()
async def test_a_host_takes_no_command_and_tells_no_event_before_recovery(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.crash("conductor0")
    with structlog.testing.capture_logs() as logs:
        await cloud.restart("host0")
        cloud.drivers["host0"].tell(uuid, "stopped", P.SHUTDOWN)
        await asyncio.sleep(30.0)
        assert cloud.wire.receivers(to_host("host0", "command")) == []
        assert [e for e in logs if e["event"] == "guest changed by itself"] == []
        await cloud.boot("conductor0")
        await cloud.until(lambda: [e for e in logs if e["event"] == "guest changed by itself"])
    assert cloud.wire.receivers(to_host("host0", "command"))
    await cloud.until(lambda: states(cloud, uuid) == (V.STOPPED, None, P.SHUTDOWN))


# --- operations that were cut off -----------------------------------------------------------------------------------


async def crash_at(cloud: SmallCloud, boundary: str, *names: str) -> None:
    """Wait until that boundary is reached; then the processes of these names die."""
    reached: list[str] = []

    def die(process: str) -> None:
        reached.append(process)
        for name in names:
            cloud.crash(name)

    cloud.at[boundary] = die
    await cloud.until(lambda: reached)


@pytest.mark.spec("INI-087", "INI-119", "INI-120", "INI-193")
@pytest.mark.parametrize("boundary", ["power off/do/before", "power off/do/effect", "power off/do/answered"])
@pytest.mark.parametrize("clean", [True, False])
def test_a_stop_goes_on_as_it_was_asked_for(clean: bool, boundary: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        dying = asyncio.ensure_future(crash_at(cloud, boundary, *BOTH))
        await asyncio.sleep(0)
        await cloud.stop(uuid, clean=clean)
        await dying
        assert cloud.server(uuid).task_state is T.POWERING_OFF
        await cloud.restart(*BOTH)
        await cloud.rest()
        assert states(cloud, uuid) == (V.STOPPED, None, P.SHUTDOWN)
        assert set(cloud.power_offs) == {(20.0 if clean else 0.0, 5.0)}
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("INI-088", "INI-118", "INI-120")
@pytest.mark.parametrize("boundary", ["power on/do/before", "power on/do/effect", "power on/do/answered"])
def test_a_start_goes_on_and_cycles_no_power_twice(boundary: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.stopped()
        dying = asyncio.ensure_future(crash_at(cloud, boundary, *BOTH))
        await asyncio.sleep(0)
        await cloud.start(uuid)
        await dying
        assert cloud.server(uuid).task_state is T.POWERING_ON
        await cloud.restart(*BOTH)
        await cloud.rest()
        assert states(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)
        guest = cloud.guest(uuid)
        assert guest is not None
        assert guest.starts == 2
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("INI-116", "INI-125")
@in_cloud()
async def test_a_task_that_was_accepted_and_never_begun_is_left_to_its_operation(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.crash("conductor0")
    await cloud.stop(uuid)
    await cloud.restart(*BOTH)
    await cloud.rest()
    assert states(cloud, uuid) == (V.STOPPED, None, P.SHUTDOWN)
    assert (cloud.faults(uuid), len(cloud.calls("power_off"))) == (0, 1)


@pytest.mark.spec("INI-080", "INI-082", "INI-141", "INI-142")
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_reboot_that_waited_goes_on_as_it_was_asked_for(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        dying = asyncio.ensure_future(crash_at(cloud, "describe guest/do/before", *BOTH))
        await asyncio.sleep(0)
        await cloud.reboot(uuid, hard=hard)
        await dying
        assert cloud.server(uuid).task_state is (T.REBOOT_PENDING_HARD if hard else T.REBOOT_PENDING)
        await cloud.restart(*BOTH)
        await cloud.rest()
        assert states(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)
        kind = "hard_reboot" if hard else "soft_reboot"
        assert [name for _, name in cloud.calls("soft_reboot", "hard_reboot")] == [kind]

    story()


async def die_while_off(cloud: SmallCloud, uuid: str, call: str) -> None:
    """The services die in the middle of a reboot, when the guest is off."""
    known = len(cloud.calls(call))
    await cloud.until(lambda: len(cloud.calls(call)) > known)
    for name in BOTH:
        cloud.crash(name)
    cloud.hypervisors["host0"].guests[uuid].power_state = P.SHUTDOWN


@pytest.mark.spec("INI-083", "INI-084", "INI-143", "INI-147", "INI-148")
@pytest.mark.parametrize("vm", [V.ACTIVE, V.RESCUED])
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_guest_that_a_reboot_left_off_is_started_by_a_hard_one(hard: bool, vm: VmState) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].faults.latency = 3.0
        await cloud.reboot(uuid, hard=hard)
        await die_while_off(cloud, uuid, "hard_reboot" if hard else "soft_reboot")
        assert cloud.server(uuid).task_state is (T.REBOOT_STARTED_HARD if hard else T.REBOOT_STARTED)
        await cloud.change(uuid, vm_state=vm)
        cloud.effects.clear()
        await cloud.restart(*BOTH)
        await die_while_off(cloud, uuid, "hard_reboot")  # and once more
        await cloud.restart(*BOTH)
        await cloud.rest()
        assert states(cloud, uuid) == (vm, None, P.RUNNING)
        assert {name for _, name in cloud.calls("soft_reboot", "hard_reboot")} == {"hard_reboot"}
        assert (cloud.power(uuid), cloud.faults(uuid)) == (P.RUNNING, 0)

    story()


@pytest.mark.spec("INI-085", "INI-121", "INI-143")
@pytest.mark.parametrize("hard", [False, True], ids=["soft", "hard"])
def test_a_guest_that_arrived_is_not_rebooted_again(hard: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if hard else cloud.build())
        dying = asyncio.ensure_future(crash_at(cloud, "reboot guest/do/effect", *BOTH))
        await asyncio.sleep(0)
        await cloud.reboot(uuid, hard=hard)
        await dying
        guest = cloud.guest(uuid)
        assert guest is not None
        starts = guest.starts
        cloud.history.clear()
        with structlog.testing.capture_logs() as logs:
            await cloud.restart(*BOTH)
            await cloud.rest()
        guest = cloud.guest(uuid)
        assert guest is not None
        assert guest.starts == starts
        (line,) = [e for e in logs if e["event"] == "reboot was cut off, and the guest runs"]
        assert (line["log_level"], line["instance"]) == ("warning", uuid)
        settled = [(i.vm_state, i.power_state) for i in cloud.history if i.uuid == uuid and i.task_state is None]
        assert set(settled) == {(V.ACTIVE, P.RUNNING)}  # in one write

    story()


@pytest.mark.spec("INI-122")
@pytest.mark.parametrize("off", [True, False])
def test_a_reboot_that_fails_when_it_is_repeated_ends_as_ever(off: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.hypervisors["host0"].faults.latency = 3.0
        if off:
            await cloud.reboot(uuid)
            await die_while_off(cloud, uuid, "soft_reboot")
        else:
            dying = asyncio.ensure_future(crash_at(cloud, "describe guest/do/before", *BOTH))
            await asyncio.sleep(0)
            await cloud.reboot(uuid)
            await dying
        cloud.heal()
        cloud.fail("hard_reboot" if off else "soft_reboot", REFUSES)
        await cloud.restart(*BOTH)
        await cloud.rest()
        assert states(cloud, uuid) == ((V.ERROR, None, P.SHUTDOWN) if off else (V.ACTIVE, None, P.RUNNING))
        fault = cloud.fault(uuid)
        assert fault is not None
        assert (fault.message, cloud.faults(uuid)) == (REFUSES.message, 1)
        await cloud.build()  # the host serves

    story()


@pytest.mark.spec("INI-150")
@in_cloud()
async def test_a_reboot_that_takes_its_service_down_again_and_again_is_given_up(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    reached: list[str] = []

    def die(process: str) -> None:
        reached.append(process)
        cloud.crash(process)

    cloud.at["reboot guest/do/effect"] = die
    await cloud.reboot(uuid)
    for _ in range(20):
        known = len(reached)
        await cloud.until(lambda before=known: len(reached) > before or not cloud.active(), within=300.0)
        if not cloud.active():
            break
        cloud.at["reboot guest/do/effect"] = die
        await cloud.boot("host0")
    assert 3 <= len(reached) <= 10
    cloud.at.clear()
    await cloud.rest()
    assert states(cloud, uuid)[:2] == (V.ERROR, None)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "times during guest.soft_reboot" in fault.message


@pytest.mark.spec("INI-193")
@in_cloud()
async def test_what_was_being_done_at_an_orderly_exit_goes_on(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.stop(uuid)
    await cloud.until(lambda: cloud.power_offs)
    agent = [role for role in cloud._ever if isinstance(role, Agent)][-1]
    await cloud.conductors["conductor0"].close()
    await agent.close()
    assert states(cloud, uuid)[:2] == (V.ACTIVE, T.POWERING_OFF)
    await cloud.restart(*BOTH)
    await cloud.rest()
    assert states(cloud, uuid) == (V.STOPPED, None, P.SHUTDOWN)
    assert cloud.operation(uuid, "stop").state is OperationState.SUCCEEDED


@pytest.mark.spec("INI-132")
@in_cloud()
async def test_a_delete_tries_all_it_has_to_release_and_keeps_what_failed(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.net.fail["release"] = Always([REFUSES])
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert cloud.claims(uuid) == []
    assert cloud.guest(uuid) is None
    await cloud.until(lambda: [o for o in cloud.active() if o.entries and o.entries[-1].failure is not None])
    (owed,) = cloud.active()
    assert owed.kind == "debt"
    failure = owed.entries[-1].failure
    assert failure is not None
    assert (owed.entries[-1].step, failure.message) == ("release networks", REFUSES.message)
    cloud.heal()
    await cloud.rest(debts=True, within=600.0)
    cloud.gone(uuid)
