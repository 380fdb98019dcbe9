"""Delete: everything goes, whatever the server is doing and whoever does not answer."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import msgspec
import pytest
from simulation.network import NETWORK
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.db import build_requests
from kilonova.domain.errors import InstanceNotFound, KilonovaError, PortNotFound, ServiceUnavailable
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.scheduler.placing import Placing
from kilonova.services.network import PortSummary

DOWN = ServiceUnavailable("It does not answer.")


@pytest.mark.spec("DEL-02", "DEL-35", "INI-131", "NET-21", "DEL-23")
@in_cloud()
async def test_a_server_is_deleted(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    left: list[tuple[Any, ...]] = []
    look = cloud._look

    def note() -> None:
        look()
        if cloud.server(uuid).deleted_at is not None and not left:
            left.append((cloud.guest(uuid), cloud.ports(uuid), cloud.claims(uuid)))

    cloud._look = note  # type: ignore[method-assign]
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    server = cloud.server(uuid)
    assert server.terminated_at == server.deleted_at == pytest.approx(cloud.now, abs=5.0)
    assert server.power_state is PowerState.NOSTATE
    assert cloud.calls("destroy", "unplug", "delete_disks", "release") == [
        ("host0", "destroy"), ("host0", "unplug"), ("host0", "delete_disks"), ("network", "release"),
    ]
    assert left == [(None, [], [])]  # all was gone when the record was marked


@pytest.mark.spec("NET-21")
@in_cloud()
async def test_a_port_that_the_user_brought_is_kept(cloud: SmallCloud) -> None:
    brought = "55555555-5555-4555-8555-555555555555"
    cloud.net.ports[brought] = PortSummary(id=brought, network_id=NETWORK, project_id="project")
    cloud.net.order.append(brought)
    uuid = await cloud.build(ports=(brought,))
    assert cloud.ports(uuid)[0] == brought
    made = cloud.ports(uuid)[1]
    await cloud.change(uuid, network_info=tuple(
        msgspec.structs.replace(vif, preserve_on_delete=vif.id == brought) for vif in cloud.server(uuid).network_info
    ))
    await cloud.delete(uuid)
    await cloud.rest()
    assert made not in cloud.net.ports
    assert (cloud.net.ports[brought].device_id, cloud.net.ports[brought].binding_host) == ("", "")


@pytest.mark.spec("DEL-01", "NET-09")
@in_cloud()
async def test_interfaces_that_the_record_does_not_know_are_unplugged_all_the_same(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.change(uuid, network_info=())
    plugged: list[tuple[str, ...]] = []
    driver = cloud.drivers["host0"]
    unplug = driver.unplug

    async def watched(uuid_: str, devnames: tuple[str, ...]) -> None:
        plugged.append(devnames)
        await unplug(uuid_, devnames)

    driver.unplug = watched  # type: ignore[method-assign]
    await cloud.delete(uuid)
    await cloud.rest()
    assert [len(names) for names in plugged] == [1]
    cloud.gone(uuid)


@pytest.mark.spec("DEL-01", "DEL-08", "NET-31")
@in_cloud()
async def test_a_network_service_that_is_away_does_not_keep_the_guest(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.change(uuid, network_info=())
    cloud.net.fail = {"vifs": [DOWN] * 1000, "release": [DOWN] * 1000}
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert (cloud.guest(uuid), cloud.claims(uuid)) == (None, [])
    assert "error" not in [vm for vm, _ in cloud.states(uuid)]
    cloud.heal()
    await cloud.rest(debts=True)
    cloud.gone(uuid)


@pytest.mark.spec("NET-22", "NET-25", "DEL-08", "DEL-31")
@in_cloud()
async def test_the_release_of_networks_is_tried_again_with_growing_pauses(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.net.fail["release"] = [DOWN] * 4
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    times = cloud.times("release")
    assert len(times) == 4
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == [pytest.approx(2.0, abs=1.2), pytest.approx(4.0, abs=1.2), pytest.approx(6.0, abs=1.2)]
    assert cloud.claims(uuid) == []
    assert "error" not in [vm for vm, _ in cloud.states(uuid)]
    await cloud.rest(debts=True)
    cloud.gone(uuid)


@pytest.mark.spec("NET-23", "NET-31")
@in_cloud()
async def test_any_other_error_of_the_release_is_owed_without_another_attempt(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.net.fail["release"] = [KilonovaError("forbidden")]
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    assert len(cloud.calls("release")) == 1
    await cloud.rest(debts=True)
    cloud.gone(uuid)


@pytest.mark.spec("DEL-11", "DEL-43", "INI-133", "BLD-130", "DEL-30")
@in_cloud()
async def test_what_is_gone_already_is_no_error(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].guests.clear()
    cloud.net.ports.clear()
    await cloud._placing(cloud.processes["api"]).release(uuid)
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("DEL-03", "DEL-40", "BLD-82", "INI-138")
@in_cloud()
async def test_a_guest_that_cannot_be_removed_puts_its_server_in_error(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("destroy", KilonovaError("the guest cannot be powered off"))
    await cloud.delete(uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host, server.deleted_at) == (VmState.ERROR, None, "host0", None)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "the guest cannot be powered off"
    assert cloud.calls("release") == []  # the guest may still use its addresses
    assert len(cloud.ports(uuid)) == 1
    assert cloud.claims(uuid) == ["host0"]
    assert [a.message for a in await cloud.actions(uuid)] == [None, "Error"]
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("DEL-26", "DEL-31", "INI-128")
def test_the_record_stays_until_its_allocations_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    away = [True]
    real = Placing.forget

    async def forget(self: Placing, consumer: str) -> None:
        if away[0]:
            raise DOWN if len(asked) % 2 else KilonovaError("conflict")
        await real(self, consumer)

    asked: list[str] = []

    async def counted(self: Placing, consumer: str) -> None:
        asked.append(consumer)
        await forget(self, consumer)

    monkeypatch.setattr(Placing, "forget", counted)

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.delete(uuid)
        await cloud.until(lambda: len(asked) > 5)
        server = cloud.server(uuid)
        assert (server.deleted_at, server.task_state) == (None, TaskState.DELETING)
        assert cloud.guest(uuid) is None
        away[0] = False
        await cloud.rest()
        cloud.gone(uuid)

    story()


@pytest.mark.spec("DEL-25")
@in_cloud()
async def test_the_end_does_not_depend_on_the_task_state(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["delete/release networks/do/before"] = lambda _p: cloud.wire.spawn(
        cloud.change(uuid, vm_state=VmState.ACTIVE, task_state=None)
    )
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("DEL-39", "DEL-43", "INI-136")
@pytest.mark.parametrize("boundary", ["delete/(begin)/do/before", "delete/release networks/do/before"])
def test_a_record_that_vanishes_ends_the_delete_well_and_frees_what_belongs_to_it(boundary: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        host, guests = cloud.server(uuid).host, cloud.hypervisors["host0"].guests
        assert host == "host0"
        cloud.at[boundary] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
        await cloud.delete(uuid)
        await cloud.rest()
        assert cloud.operation(uuid, "delete").state is OperationState.SUCCEEDED
        assert (cloud.ports(uuid), cloud.claims(uuid), cloud.faults(uuid)) == ([], [], 0)
        if boundary == "delete/release networks/do/before":
            assert uuid not in guests

    story()


@pytest.mark.spec("DEL-62", "DEL-65")
@in_cloud()
async def test_a_second_delete_joins_the_first(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    server = await cloud.located(uuid)
    for _ in range(3):
        await cloud.compute.delete(CONTEXT, server)
    await cloud.rest()
    assert len(cloud.operations(uuid, "delete")) == 1
    cloud.gone(uuid)
    with pytest.raises(InstanceNotFound):
        await cloud.compute.delete(CONTEXT, server)
    assert cloud.faults(uuid) == 0
    assert len([a for a in await cloud.actions(uuid) if a.action == "delete"]) == 1


@pytest.mark.spec("DEL-42", "DEL-60")
@in_cloud(hosts=2)
async def test_a_delete_goes_where_the_server_is_when_its_turn_comes(cloud: SmallCloud) -> None:
    """Accepted while one host was recorded; that build is undone, so that there is none any more."""
    cloud.net.wires = False
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.calls("spawn"))
    here = cloud.server(uuid).host
    assert here is not None
    alive: list[bool] = []
    look = cloud._look

    def note() -> None:
        look()
        if cloud.server(uuid).host is None:
            alive.append(cloud.guest(uuid) is not None)

    cloud._look = note  # type: ignore[method-assign]
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert alive
    assert not any(alive)  # the host was taken off the record only after the guest was gone
    assert cloud.operation(uuid, "delete").host is None
    moved = await cloud.build(networks=0)
    there = cloud.server(moved).host
    cloud.at["delete/(begin)/do/before"] = lambda _p: cloud.wire.spawn(move(cloud, moved))
    await cloud.delete(moved)
    await cloud.rest()
    assert cloud.guest(moved) is None
    assert cloud.operation(moved, "delete").host != there


async def move(cloud: SmallCloud, uuid: str) -> None:
    """As if it had been moved to the other host while the delete waited."""
    here = cloud.server(uuid).host
    assert here is not None
    there = "host1" if here == "host0" else "host0"
    cloud.hypervisors[there].guests[uuid] = cloud.hypervisors[here].guests.pop(uuid)
    await cloud.change(uuid, host=there, node=there)


# --- before there is a host ----------------------------------------------------------------------------


@pytest.mark.spec("DEL-46")
@in_cloud()
async def test_a_server_that_no_cell_has_yet_is_gone_at_once(cloud: SmallCloud) -> None:
    cloud.crash("scheduler")
    uuid = await cloud.ask(cloud.new())
    await cloud.delete(uuid)
    with pytest.raises(InstanceNotFound):
        await cloud.located(uuid)
    await cloud.boot("scheduler")
    await cloud.rest()
    with pytest.raises(InstanceNotFound):
        cloud.server(uuid)
    cloud.nothing_left(uuid)


@pytest.mark.spec("DEL-50", "DEL-51")
@pytest.mark.parametrize("moment", ["choose host/do/before", "record in cell/do/before", "record in cell/do/answered"])
def test_a_server_that_is_deleted_while_it_is_placed_is_not_built_and_does_not_return(moment: str) -> None:
    """Whoever places it dies at that moment; what it had made already goes when it is back."""

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = cloud.new().instance.uuid
        cloud.at[f"place/{moment}"] = cloud.crash
        await cloud.ask(cloud.new(uuid=uuid))
        await cloud.until(lambda: not cloud.at)
        await cloud.delete(uuid)
        await cloud.boot("scheduler")
        while cloud.active():
            with pytest.raises(InstanceNotFound):
                await cloud.located(uuid)
            await asyncio.sleep(0.01)
        with pytest.raises(InstanceNotFound):
            cloud.server(uuid)
        cloud.nothing_left(uuid)
        assert cloud.calls() == []

    story()


@pytest.mark.spec("DEL-47", "DEL-48")
@in_cloud()
async def test_a_delete_that_lost_the_race_with_the_hand_over_is_a_normal_delete(cloud: SmallCloud) -> None:
    request = cloud.new()
    uuid = await cloud.ask(request)
    unplaced = await cloud.located(uuid)
    assert unplaced.cell is None
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    await cloud.compute.delete(CONTEXT, unplaced)
    await cloud.rest()
    cloud.gone(uuid)
    with pytest.raises(InstanceNotFound):
        await cloud.compute.delete(CONTEXT, unplaced)


@pytest.mark.spec("DEL-49", "DEL-51")
@in_cloud()
async def test_the_build_request_is_gone_before_the_record_names_a_host(cloud: SmallCloud) -> None:
    waiting: list[tuple[bool, str | None]] = []
    look = cloud._look

    def note() -> None:
        look()
        if cloud.history:
            last = cloud.history[-1]
            request = cloud.api(lambda conn: build_requests.get(conn, last.uuid))
            waiting.append((request is not None, last.host))

    cloud._look = note  # type: ignore[method-assign]
    await cloud.build()
    assert (True, None) in waiting  # the record was there before the request was consumed
    assert (False, "host0") in waiting
    assert (True, "host0") not in waiting


@pytest.mark.spec("DEL-54", "INI-182", "BLD-52")
@in_cloud()
async def test_a_server_without_host_is_deleted_without_one(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", KilonovaError("no"))
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.host) == (VmState.ERROR, None)
    assert cloud.fault(uuid) is not None
    cloud.crash("host0")
    before = len(cloud.effects)
    await cloud.delete(uuid)
    await cloud.rest(within=20.0)
    cloud.gone(uuid)
    assert cloud.calls()[before:] == [("network", "release")]


# --- hosts and messages that do not answer -----------------------------------------------------------------


@pytest.mark.spec("DEL-55", "DEL-58")
@in_cloud(hosts=2)
async def test_a_dead_host_keeps_no_server_and_is_cleaned_when_it_returns(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    here = cloud.server(uuid).host
    assert here is not None
    cloud.crash(here)
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None, within=60.0)
    assert (cloud.claims(uuid), cloud.ports(uuid)) == ([], [])
    assert cloud.power(uuid) is PowerState.RUNNING  # nobody could tell the host
    await asyncio.sleep(300.0)
    assert cloud.power(uuid) is PowerState.RUNNING
    await cloud.boot(here)
    await cloud.rest(debts=True, within=30.0)
    cloud.gone(uuid)


@pytest.mark.spec("DEL-58")
@in_cloud()
async def test_what_is_owed_to_a_host_is_paid_before_it_gets_new_work_for_the_same_server(cloud: SmallCloud) -> None:
    cloud.at["start guest/do/effect"] = cloud.crash
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.calls("spawn"))
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None, within=900.0)
    await cloud.boot("host0")
    await cloud.rest(debts=True, within=120.0)
    cloud.gone(uuid)
    assert len(cloud.calls("spawn")) == 1


@pytest.mark.spec("DEL-63", "DEL-64")
@in_cloud()
async def test_a_wake_message_that_is_lost_delays_a_delete_but_no_more(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud._publish = lambda _subject, _cancelled: None  # type: ignore[method-assign]
    await cloud.delete(uuid)
    await cloud.rest(within=10.0)
    cloud.gone(uuid)


@pytest.mark.spec("DEL-33", "DEL-37", "INI-079", "INI-135", "BLD-128", "DEL-30", "DEL-59")
@pytest.mark.parametrize(
    "state", [VmState.ACTIVE, VmState.BUILDING, VmState.ERROR, VmState.STOPPED, VmState.SOFT_DELETED]
)
def test_a_delete_that_is_cut_off_anywhere_goes_on_in_any_state(state: VmState) -> None:
    boundaries = crossed_by_a_delete()
    assert len(boundaries) > 10

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        for number, boundary in enumerate(boundaries):
            uuid = await cloud.build()
            await cloud.change(uuid, vm_state=state)
            process = "host0" if boundary.count("/") == 2 else "conductor0"

            def kill(_process: str, name: str = process) -> None:
                cloud.crash(name)
                cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(name)))

            cloud.at[boundary] = kill
            await cloud.delete(uuid)
            await cloud.until(lambda: boundary not in cloud.at)  # noqa: B023
            await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)  # noqa: B023
            await cloud.rest(debts=True)
            cloud.gone(uuid)
            assert cloud.faults(uuid) == 0, number

    story()


def crossed_by_a_delete() -> list[str]:
    """All journal boundaries of a delete, on the conductor and on the host."""
    found: list[str] = []

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.boundaries.clear()
        await cloud.delete(uuid)
        await cloud.rest()
        found.extend(dict.fromkeys(cloud.boundaries))

    story()
    return found


@pytest.mark.spec("DEL-28", "EVT-16")
@in_cloud()
async def test_who_waits_for_an_event_is_told_of_the_delete(cloud: SmallCloud) -> None:
    cloud.net.wires = False
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.calls("spawn"))
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.operation(uuid, "build").state is OperationState.CANCELLED, within=10.0)
    failure = cloud.operation(uuid, "build").failure
    assert failure is not None
    assert "pre-empted by delete" in failure.message
    wait = next(e for e in cloud.operation(uuid, "build").entries if e.step == "wait for wiring")
    assert wait.failure == failure
    await cloud.rest()
    cloud.gone(uuid)


def test_ports_are_asked_for_honestly() -> None:
    """The network service of these tests refuses what the real one refuses."""

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        with pytest.raises(PortNotFound):
            cloud.net.bind("66666666-6666-4666-8666-666666666666", "x", "host0")

    story()
