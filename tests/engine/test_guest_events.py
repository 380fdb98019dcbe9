"""Guests that change by themselves: what their hosts tell of it, and what is made of it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import structlog
from small_cloud import SmallCloud, in_cloud

from kilonova.conductor.power_states import REPORT_AGE
from kilonova.db import instances, services
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.guest import GuestEvent

T, V, P = TaskState, VmState, PowerState


async def quiet(cloud: SmallCloud) -> None:
    """Until no record has changed for so long that what a host has seen since cannot be older."""
    await asyncio.sleep(REPORT_AGE + 5.0)


async def tell(cloud: SmallCloud, uuid: str, transition: str, state: PowerState) -> None:
    """The guest changes, its host tells of it, and all that follows is done."""
    cloud.drivers["host0"].tell(uuid, transition, state)
    await asyncio.sleep(0.2)
    await cloud.rest()


@pytest.mark.spec("LCE-05", "LCE-08")
@pytest.mark.parametrize(("before", "transition", "state", "after", "stops"), [
    (V.ACTIVE, "stopped", P.SHUTDOWN, (V.STOPPED, P.SHUTDOWN), 1),
    (V.ACTIVE, "crashed", P.CRASHED, (V.STOPPED, P.SHUTDOWN), 1),
    (V.ACTIVE, "suspended", P.SUSPENDED, (V.STOPPED, P.SHUTDOWN), 1),
    (V.ACTIVE, "paused", P.PAUSED, (V.ACTIVE, P.PAUSED), 0),
    (V.STOPPED, "started", P.RUNNING, (V.STOPPED, P.SHUTDOWN), 1),
    (V.PAUSED, "stopped", P.SHUTDOWN, (V.STOPPED, P.SHUTDOWN), 1),
    (V.ERROR, "stopped", P.SHUTDOWN, (V.ERROR, P.SHUTDOWN), 0),
])
def test_a_guest_that_changed_by_itself(
    before: VmState, transition: str, state: PowerState, after: tuple[VmState, PowerState], stops: int
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if before is V.STOPPED else cloud.build())
        await cloud.change(uuid, vm_state=before)
        await quiet(cloud)
        cloud.effects.clear()
        cloud.history.clear()
        known = len(cloud.operations(uuid, "stop"))
        with structlog.testing.capture_logs() as logs:
            await tell(cloud, uuid, transition, state)
        (line,) = [e for e in logs if e["event"] == "guest changed by itself"]
        assert (line["log_level"], line["instance"], line["transition"]) == ("info", uuid, transition)
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.power_state) == (after[0], None, after[1])
        seen = next(i for i in cloud.history if i.uuid == uuid)
        assert (seen.power_state, seen.vm_state) == (state, before)
        assert len(cloud.operations(uuid, "stop")) == known + stops
        assert len(cloud.calls("power_off")) == stops
        if stops:
            action = (await cloud.actions(uuid))[-1]
            assert (action.action, action.message, action.user_id) == ("stop", None, None)

    story()


@pytest.mark.spec("LCE-08", "LCE-15", "LCE-20")
@pytest.mark.parametrize("changes", [
    {"host": "elsewhere"}, {"task_state": T.REBUILDING}, {"deleted_at": 1_700_000_000.0, "vm_state": V.DELETED},
])
def test_a_server_that_is_not_at_rest_here_is_not_changed(changes: dict[str, Any]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, **changes)
        await quiet(cloud)
        before = cloud.server(uuid)
        with structlog.testing.capture_logs() as logs:
            await tell(cloud, uuid, "stopped", P.SHUTDOWN)
        assert cloud.server(uuid) == before
        assert cloud.operations(uuid, "stop") == []
        (line,) = [e for e in logs if e["event"] == "a guest changed whose server is not at rest here"]
        assert (line["log_level"], line["instance"]) == ("debug", uuid)

    story()


@pytest.mark.spec("LCE-15", "PSY-16", "PSY-31", "PSY-32")
@pytest.mark.parametrize("change", [{"task_state": T.REBUILDING}, {"deleted_at": 1_700_000_000.0}])
def test_a_server_that_was_taken_meanwhile_is_not_changed(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await quiet(cloud)
        at_rest = cloud.cell(lambda conn: instances.power_states(conn, "host0"))
        monkeypatch.setattr(instances, "power_states", lambda _conn, _host: at_rest)
        await cloud.change(uuid, **change)
        before = cloud.server(uuid)
        await tell(cloud, uuid, "stopped", P.SHUTDOWN)
        assert cloud.server(uuid) == before
        assert cloud.operations(uuid, "stop") == []

    story()


@pytest.mark.spec("LCE-09")
@in_cloud()
async def test_a_guest_without_a_record_is_no_error(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.erase(uuid)
    with structlog.testing.capture_logs() as logs:
        await tell(cloud, uuid, "stopped", P.SHUTDOWN)
    (line,) = [e for e in logs if e["event"] == "a guest changed whose server is not at rest here"]
    assert (line["log_level"], line["instance"]) == ("debug", uuid)
    assert [e for e in logs if e["log_level"] in ("warning", "error")] == []
    assert cloud.wire.defects == []


@pytest.mark.spec("LCE-07")
@in_cloud()
async def test_an_event_that_comes_late_changes_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await quiet(cloud)
    before = cloud.server(uuid)
    with structlog.testing.capture_logs() as logs:
        cloud.drivers["host0"]._on_event(GuestEvent(uuid=uuid, transition="stopped", power_state=P.SHUTDOWN))
        await cloud.until(lambda: [e for e in logs if e["event"] == "guest changed by itself"])
        await asyncio.sleep(1.0)
    assert cloud.server(uuid) == before
    assert cloud.operations(uuid, "stop") == []


@pytest.mark.spec("LCE-17")
@in_cloud()
async def test_events_are_queued_and_told_in_order(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 1.0
    order = ["stopped", "started", "paused", "resumed"]
    with structlog.testing.capture_logs() as logs:
        before = cloud.loop.time()
        for transition in order:
            cloud.drivers["host0"]._on_event(GuestEvent(uuid=uuid, transition=transition, power_state=P.RUNNING))
        assert cloud.loop.time() == before  # whoever tells of an event waits for nothing
        assert logs == []
        told = lambda: [e["transition"] for e in logs if e["event"] == "guest changed by itself"]  # noqa: E731
        await cloud.until(lambda: len(told()) == len(order))
    assert told() == order
    assert cloud.loop.time() - before > 3.0  # each after what the one before needed


def last_report(cloud: SmallCloud) -> float:
    """When the host last reported."""
    with cloud.databases.cell.engine.connect() as conn:
        (service,) = services.all_services(conn, host="host0")
    return service.seen_at


@pytest.mark.spec("PSY-30", "PER-04")
@in_cloud()
async def test_what_a_host_saw_before_the_last_change_stops_no_server(cloud: SmallCloud) -> None:
    """A report that was under way while the server was started may still tell that its guest is off."""
    uuid = await cloud.stopped()
    await cloud.start(uuid)
    await cloud.rest()
    guest = cloud.hypervisors["host0"].guests[uuid]
    cloud.hypervisors["host0"].guests[uuid] = msgspec.structs.replace(guest, power_state=P.SHUTDOWN)
    last = last_report(cloud)
    await cloud.until(lambda: last_report(cloud) > last, within=8.0)
    assert cloud.server(uuid).power_state is P.RUNNING
    cloud.hypervisors["host0"].guests[uuid] = guest
    await asyncio.sleep(60.0)
    server = cloud.server(uuid)
    assert (server.vm_state, server.power_state) == (V.ACTIVE, P.RUNNING)
