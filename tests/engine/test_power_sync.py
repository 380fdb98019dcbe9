"""Hosts report their guests regularly, and what does not fit the records has consequences."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from small_cloud import OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.soft_delete import SOFT_DELETE, SoftDeleteServer

T, V, P = TaskState, VmState, PowerState
SWEEPS = 45.0
"""Virtual seconds in which a host reports several times, and what it saw has had its consequences."""
WARNING = "guest is not what it is to be"


def set_guest(cloud: SmallCloud, uuid: str, state: PowerState) -> None:
    """The guest changes, and nobody tells of it."""
    guests = cloud.hypervisors["host0"].guests
    gone = state is P.NOSTATE
    guests[uuid] = msgspec.structs.replace(guests[uuid], power_state=state, defined=not gone)


async def server_in(cloud: SmallCloud, vm_state: VmState) -> str:
    uuid = await (cloud.stopped() if vm_state is V.STOPPED else cloud.build())
    if vm_state is V.SOFT_DELETED:
        await cloud.act(uuid, SOFT_DELETE, SoftDeleteServer(grace=0.0, interval=1.0))
        await cloud.rest()
    else:
        await cloud.change(uuid, vm_state=vm_state)
    await asyncio.sleep(30.0)
    cloud.effects.clear()
    cloud.history.clear()
    return uuid


STOPPED = (V.STOPPED, P.SHUTDOWN)
ROWS = [
    *[pytest.param(vm, P.SHUTDOWN, (vm, P.SHUTDOWN), 0, 0, marks=pytest.mark.spec("PSY-17"))
      for vm in (V.RESCUED, V.RESIZED, V.ERROR)],
    pytest.param(V.SUSPENDED, P.RUNNING, (V.SUSPENDED, P.RUNNING), 0, 0, marks=pytest.mark.spec("PSY-17")),
    pytest.param(V.ACTIVE, P.SHUTDOWN, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-18")),
    pytest.param(V.ACTIVE, P.CRASHED, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-18")),
    pytest.param(V.ACTIVE, P.SUSPENDED, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-20")),
    pytest.param(V.ACTIVE, P.PAUSED, (V.ACTIVE, P.PAUSED), 0, 1, marks=pytest.mark.spec("PSY-21")),
    pytest.param(V.ACTIVE, P.NOSTATE, (V.ACTIVE, P.NOSTATE), 0, 1, marks=pytest.mark.spec("PSY-10", "PSY-22")),
    pytest.param(V.STOPPED, P.RUNNING, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-23")),
    pytest.param(V.STOPPED, P.PAUSED, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-23")),
    pytest.param(V.STOPPED, P.CRASHED, (V.STOPPED, P.CRASHED), 0, 0, marks=pytest.mark.spec("PSY-26")),
    pytest.param(V.STOPPED, P.NOSTATE, (V.STOPPED, P.NOSTATE), 0, 0, marks=pytest.mark.spec("PSY-10", "PSY-26")),
    pytest.param(V.PAUSED, P.SHUTDOWN, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-24")),
    pytest.param(V.PAUSED, P.CRASHED, STOPPED, 1, 1, marks=pytest.mark.spec("PSY-24")),
    pytest.param(V.PAUSED, P.RUNNING, (V.PAUSED, P.RUNNING), 0, 0, marks=pytest.mark.spec("PSY-26")),
    pytest.param(V.SHELVED, P.RUNNING, (V.SHELVED, P.RUNNING), 0, 0, marks=pytest.mark.spec("PSY-26")),
    pytest.param(V.SOFT_DELETED, P.RUNNING, (V.SOFT_DELETED, P.RUNNING), 0, 1, marks=pytest.mark.spec("PSY-25")),
    pytest.param(V.SOFT_DELETED, P.CRASHED, (V.SOFT_DELETED, P.CRASHED), 0, 1, marks=pytest.mark.spec("PSY-25")),
]


@pytest.mark.spec("PSY-14", "PSY-15")
@pytest.mark.parametrize(("before", "found", "after", "stops", "warnings"), ROWS)
def test_what_a_report_shows(
    before: VmState, found: PowerState, after: tuple[VmState, PowerState], stops: int, warnings: int
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await server_in(cloud, before)
        known = len(cloud.operations(uuid))
        set_guest(cloud, uuid, found)
        with capture_logs() as logs:
            await asyncio.sleep(SWEEPS)
            await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (after[0], None, after[1])
        first = next(i for i in cloud.history if i.uuid == uuid and i.power_state is found)
        assert (first.vm_state, first.task_state) == (before, None)
        assert [o.kind for o in cloud.operations(uuid)[known:]] == ["stop"] * stops
        assert cloud.fault(uuid) is None
        told = [line for line in logs if line["event"] == WARNING]
        assert [line["log_level"] for line in told] == ["warning"] * warnings
        if stops:
            assert cloud.power_offs[-1][0] == 0.0  # by force: a normal stop is not for guests like these
            assert (await cloud.actions(uuid))[-1].user_id is None

    story()


@pytest.mark.spec("PSY-18", "PSY-30")
@in_cloud()
async def test_a_state_that_is_seen_once_only_stops_no_server(cloud: SmallCloud) -> None:
    uuid = await server_in(cloud, V.ACTIVE)
    set_guest(cloud, uuid, P.SHUTDOWN)
    await cloud.until(lambda: cloud.server(uuid).power_state is P.SHUTDOWN)
    set_guest(cloud, uuid, P.RUNNING)
    await asyncio.sleep(SWEEPS)
    server = cloud.server(uuid)
    assert (server.vm_state, server.power_state) == (V.ACTIVE, P.RUNNING)
    assert cloud.operations(uuid, "stop") == []


@pytest.mark.spec("PSY-28")
@in_cloud()
async def test_a_guest_that_has_gone_at_the_second_look_stops_no_server(cloud: SmallCloud) -> None:
    uuid = await server_in(cloud, V.ACTIVE)
    set_guest(cloud, uuid, P.SHUTDOWN)
    await cloud.until(lambda: cloud.server(uuid).power_state is P.SHUTDOWN)
    set_guest(cloud, uuid, P.NOSTATE)
    await asyncio.sleep(SWEEPS)
    assert (cloud.server(uuid).vm_state, cloud.operations(uuid, "stop")) == (V.ACTIVE, [])


@pytest.mark.spec("PSY-09", "PSY-11", "PSY-12", "PSY-13", "PSY-16")
@pytest.mark.parametrize("changes", [
    {"host": "elsewhere"}, {"task_state": T.REBUILDING}, {"deleted_at": 1_700_000_000.0, "vm_state": V.DELETED},
])
def test_a_server_that_is_not_at_rest_here_is_not_touched(changes: dict[str, Any]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await server_in(cloud, V.ACTIVE)
        await cloud.change(uuid, **changes)
        before = cloud.server(uuid)
        set_guest(cloud, uuid, P.SHUTDOWN)
        await asyncio.sleep(SWEEPS)
        assert cloud.server(uuid) == before
        assert cloud.operations(uuid, "stop") == []

    story()


@pytest.mark.spec("PSY-06", "PSY-27", "PER-03")
@in_cloud()
async def test_a_stop_that_cannot_be_asked_for_is_asked_for_again_and_holds_up_no_other(cloud: SmallCloud) -> None:
    stuck, other = await server_in(cloud, V.ACTIVE), await server_in(cloud, V.ACTIVE)
    await cloud.change(stuck, vm_state=V.PAUSED)
    await asyncio.sleep(30.0)
    cloud.always_fail("power_off", KilonovaError("no"))
    for uuid in (stuck, other):
        set_guest(cloud, uuid, P.SHUTDOWN)
    await asyncio.sleep(SWEEPS)
    assert (cloud.server(stuck).vm_state, cloud.server(other).vm_state) == (V.PAUSED, V.ACTIVE)
    assert cloud.operations(other, "stop") != []
    cloud.heal()
    await asyncio.sleep(2 * SWEEPS)
    await cloud.rest()
    assert cloud.server(stuck).vm_state is cloud.server(other).vm_state is V.STOPPED
    assert len(cloud.operations(stuck, "stop")) > 1


@pytest.mark.spec("PSY-01", "RSU-01")
@in_cloud()
async def test_a_hypervisor_that_does_not_answer_changes_nothing_and_is_asked_again(cloud: SmallCloud) -> None:
    uuid = await server_in(cloud, V.ACTIVE)
    before = cloud.server(uuid)
    cloud.always_fail("guests", KilonovaError("not ready"))
    set_guest(cloud, uuid, P.SHUTDOWN)
    with capture_logs() as logs:
        await asyncio.sleep(SWEEPS)
    assert {line["log_level"] for line in logs if line["event"] == "host not reported"} == {"warning"}
    assert cloud.server(uuid) == before
    cloud.heal()
    await cloud.until(lambda: cloud.server(uuid).vm_state is V.STOPPED)


@pytest.mark.spec("PSY-02")
@in_cloud()
async def test_numbers_that_differ_are_told_once_and_the_servers_compared(cloud: SmallCloud) -> None:
    gone, uuid = await server_in(cloud, V.ACTIVE), await server_in(cloud, V.ACTIVE)
    with capture_logs() as logs:
        set_guest(cloud, gone, P.NOSTATE)
        set_guest(cloud, uuid, P.SHUTDOWN)
        await asyncio.sleep(SWEEPS)
    (line,) = [line for line in logs if line["event"] == "numbers of guests and of servers differ"]
    assert (line["log_level"], line["guests"], line["servers"]) == ("warning", 1, 2)
    assert cloud.server(uuid).vm_state is V.STOPPED


@pytest.mark.spec("PER-01")
@in_cloud(options=msgspec.structs.replace(OPTIONS, sync_power_state_interval=-1.0))
async def test_a_negative_interval_compares_never(cloud: SmallCloud) -> None:
    uuid = await server_in(cloud, V.ACTIVE)
    set_guest(cloud, uuid, P.SHUTDOWN)
    await asyncio.sleep(10_000.0)
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).power_state) == (V.ACTIVE, P.RUNNING)


@pytest.mark.spec("PER-01", "PER-02", "PSY-29")
@in_cloud(options=msgspec.structs.replace(OPTIONS, sync_power_state_interval=600.0))
async def test_comparisons_are_an_interval_apart_and_a_host_that_starts_is_compared_at_once(cloud: SmallCloud) -> None:
    uuid = await server_in(cloud, V.ACTIVE)
    set_guest(cloud, uuid, P.PAUSED)
    await asyncio.sleep(300.0)
    assert cloud.server(uuid).power_state is P.RUNNING
    await cloud.until(lambda: cloud.server(uuid).power_state is P.PAUSED, within=400.0)
    set_guest(cloud, uuid, P.RUNNING)
    await asyncio.sleep(30.0)
    await cloud.restart("host0")
    await cloud.until(lambda: cloud.server(uuid).power_state is P.RUNNING, within=20.0)
