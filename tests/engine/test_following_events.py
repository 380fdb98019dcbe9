"""What becomes of events that mean something although no operation waits for them."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from small_cloud import OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import ExternalEvent
from kilonova.domain.states import PowerState, TaskState, VmState

V, P = VmState, PowerState
DELETED, POWER = "network-vif-deleted", "power-update"
HEALING = msgspec.structs.replace(OPTIONS, heal_instance_info_cache_interval=60.0)


async def tell(cloud: SmallCloud, uuid: str, name: str, tag: str = "") -> None:
    await cloud.compute.tell(await cloud.located(uuid), ExternalEvent(subject=uuid, name=name, tag=tag))


def interfaces(cloud: SmallCloud, uuid: str) -> list[str]:
    return [vif.id for vif in cloud.server(uuid).network_info]


# --- ports -------------------------------------------------------------------------------------------


@pytest.mark.spec("XEV-03", "XEV-16")
@in_cloud()
async def test_the_interface_of_a_port_that_was_deleted_leaves_record_and_guest(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=2)
    gone, stays = cloud.ports(uuid)
    del cloud.net.ports[gone]
    await tell(cloud, uuid, DELETED, gone)
    await cloud.rest()
    assert interfaces(cloud, uuid) == cloud.ports(uuid) == [stays]
    assert cloud.hypervisors["host0"].guests[uuid].devnames == (f"tap{stays[:11]}",)
    assert (cloud.server(uuid).vm_state, cloud.fault(uuid)) == (V.ACTIVE, None)
    action = (await cloud.actions(uuid))[-1]
    assert (action.action, action.user_id) == ("detach_interface", "user")


@pytest.mark.spec("XEV-15")
@in_cloud()
async def test_a_deleted_port_that_the_record_does_not_name_is_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    with capture_logs() as logs:
        await tell(cloud, uuid, DELETED, "another")
        await cloud.rest()
    assert cloud.server(uuid) == before
    assert cloud.operations(uuid, "detach-interface") == []
    assert [line for line in logs if line["log_level"] != "debug"] == []


@pytest.mark.spec("XEV-18", "XEV-19", "XEV-23", "PER-18")
@in_cloud(options=HEALING)
async def test_a_guest_that_does_not_let_go_is_asked_again(cloud: SmallCloud) -> None:
    """The interface stays in the record as long as the guest has it."""
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)
    del cloud.net.ports[port]
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await tell(cloud, uuid, DELETED, port)
    await cloud.rest(within=600.0)
    assert interfaces(cloud, uuid) == [port]
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (V.ACTIVE, None)
    cloud.heal()
    await cloud.until(lambda: interfaces(cloud, uuid) == [], within=600.0)


@pytest.mark.spec("XEV-11", "XEV-14", "XEV-21")
@in_cloud(options=HEALING)
async def test_a_busy_server_waits_for_nobody_and_its_port_is_dealt_with_later(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=2)
    gone, _ = cloud.ports(uuid)
    cloud.hypervisors["host0"].faults.latency = 20.0
    await cloud.stop(uuid)
    del cloud.net.ports[gone]
    told = cloud.loop.time()
    await tell(cloud, uuid, DELETED, gone)
    assert cloud.loop.time() - told < 1.0
    assert cloud.operations(uuid, "detach-interface") == []
    cloud.heal()
    await cloud.until(lambda: gone not in interfaces(cloud, uuid), within=600.0)
    assert cloud.server(uuid).vm_state is V.STOPPED


@pytest.mark.spec("XEV-07", "XEV-08", "XEV-13")
@in_cloud()
async def test_what_nobody_waits_for_is_warned_of_only_if_it_is_odd(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    (port,) = cloud.ports(uuid)

    async def warned(name: str, tag: str) -> list[str]:
        with capture_logs() as logs:
            await tell(cloud, uuid, name, tag)
        assert "nobody waits for an event" in {line["event"] for line in logs}
        return [f"{line['event_key']} {line['vm_state']} {line['task_state']}" for line in logs
                if line["log_level"] == "warning"]

    assert await warned("network-vif-unplugged", port) == [f"network-vif-unplugged:{port} active None"]
    assert await warned("network-vif-plugged", port) == [f"network-vif-plugged:{port} active None"]
    assert await warned("network-vif-unplugged", "another") == []
    assert await warned("network-changed", port) == []
    await cloud.change(uuid, task_state=TaskState.DELETING)
    assert await warned("network-vif-unplugged", port) == []
    assert cloud.events(uuid) == []


# --- power -------------------------------------------------------------------------------------------


@pytest.mark.spec("XEV-05", "XEV-34", "XEV-36", "XEV-38", "XEV-42", "XEV-43")
@in_cloud()
async def test_the_power_of_a_server_follows(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    seen = await cloud.located(uuid)
    await tell(cloud, uuid, POWER, "POWER_OFF")
    assert cloud.server(uuid).task_state is TaskState.POWERING_OFF
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (V.STOPPED, None, P.SHUTDOWN)
    # Whoever sends it may have seen the server before: the record is what counts.
    await cloud.compute.tell(seen, ExternalEvent(subject=uuid, name=POWER, tag="POWER_ON"))
    assert cloud.server(uuid).task_state is TaskState.POWERING_ON
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (V.ACTIVE, None, P.RUNNING)
    assert [name for _, name in cloud.calls("power_off", "power_on")] == ["power_off", "power_on"]
    assert [action.action for action in await cloud.actions(uuid)][1:] == ["stop", "start"]


@pytest.mark.spec("XEV-35", "XEV-40")
@pytest.mark.parametrize(("target", "changes"), [
    ("POWER_ON", {}), ("POWER_OFF", {"vm_state": V.PAUSED}), ("POWER_OFF", {"task_state": TaskState.REBOOTING}),
    ("POWER_OFF", {"power_state": P.SHUTDOWN}), ("POWER_ON", {"vm_state": V.STOPPED}), ("SOFT", {}),
])
def test_what_does_not_fit_is_one_line_in_the_log(target: str, changes: dict[str, object]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, **changes)
        before = cloud.server(uuid)
        with capture_logs() as logs:
            await tell(cloud, uuid, POWER, target)
        assert [line["log_level"] for line in logs if line["log_level"] != "debug"] == ["info"]
        assert cloud.server(uuid) == before
        assert cloud.fault(uuid) is None
        assert len(cloud.operations(uuid)) == 1

    story()


@pytest.mark.spec("XEV-33", "XEV-40")
@in_cloud()
async def test_a_server_that_another_operation_has_is_left_to_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 5.0
    await cloud.reboot(uuid, hard=True)
    await tell(cloud, uuid, POWER, "POWER_OFF")
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.fault(uuid)) == (V.ACTIVE, None)
    assert cloud.operations(uuid, "stop") == []


@pytest.mark.spec("XEV-41")
@in_cloud()
async def test_a_power_update_that_fails_leaves_a_fault_and_no_task(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.always_fail("power_off", KilonovaError("no"))
    await tell(cloud, uuid, POWER, "POWER_OFF")
    await cloud.rest()
    server, fault = cloud.server(uuid), cloud.fault(uuid)
    assert (server.vm_state, server.task_state) == (V.ACTIVE, None)
    assert fault is not None
    assert (await cloud.actions(uuid))[-1].message == "Error"


@pytest.mark.spec("XEV-45", "XEV-14")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
def test_a_power_update_that_is_cut_off_is_done(who: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()

        def kill(_process: str) -> None:
            cloud.crash(who)
            cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(who)))

        cloud.at["power off/do/effect"] = kill
        await tell(cloud, uuid, POWER, "POWER_OFF")
        await cloud.rest()
        assert not cloud.at
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (V.STOPPED, None)

    story()


# --- healing -----------------------------------------------------------------------------------------


@pytest.mark.spec("PER-10", "PER-17", "PER-18", "PER-24")
@in_cloud(options=HEALING)
async def test_every_server_has_its_turn_before_one_has_a_second(cloud: SmallCloud) -> None:
    uuids = [await cloud.build() for _ in range(3)]
    healed: list[str] = []
    for _ in range(6):
        for uuid in uuids:
            for port in cloud.net.of(uuid):
                cloud.net.ports[port.id] = msgspec.structs.replace(port, addresses=(f"10.0.0.{len(healed) + 20}",))
        before = {uuid: cloud.server(uuid).network_info for uuid in uuids}
        await asyncio.sleep(60.0)
        changed = [uuid for uuid in uuids if cloud.server(uuid).network_info != before[uuid]]
        assert len(changed) == 1
        healed += changed
    assert sorted(healed[:3]) == sorted(healed[3:]) == sorted(uuids)
    assert [(o.kind, cloud.fault(uuid)) for uuid in uuids for o in cloud.operations(uuid)] == [("build", None)] * 3


@pytest.mark.spec("PER-10", "PER-11", "PER-12", "PER-13", "PER-19", "PER-20", "PER-21")
@in_cloud(options=HEALING)
async def test_servers_that_cannot_be_healed_are_passed_over(cloud: SmallCloud) -> None:
    building, leaving, erased = await cloud.build(), await cloud.build(), await cloud.build()
    cloud.net.calls.clear()
    await cloud.change(building, vm_state=V.BUILDING)
    await cloud.change(leaving, task_state=TaskState.DELETING)
    await cloud.erase(erased)
    await asyncio.sleep(300.0)
    assert cloud.net.calls == []
    await cloud.change(building, vm_state=V.ACTIVE)
    cloud.net.fail["vifs"] = [KilonovaError("broken")]
    with capture_logs() as logs:
        await asyncio.sleep(90.0)
    assert [line["log_level"] for line in logs if line["event"] == "interfaces of a server not healed"] == ["warning"]
    await cloud.restart("conductor0")
    await asyncio.sleep(150.0)
    assert cloud.net.calls.count("vifs") >= 2


@pytest.mark.spec("PER-09")
@in_cloud()
async def test_without_an_interval_nothing_is_asked(cloud: SmallCloud) -> None:
    await cloud.build()
    cloud.net.calls.clear()
    await asyncio.sleep(1000.0)
    assert cloud.net.calls == []
