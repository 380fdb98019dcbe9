"""Taking shelved servers from their hosts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import structlog
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud

from kilonova.db import instances
from kilonova.domain.errors import InstanceInvalidState, InstanceNotReady, KilonovaError, ServiceUnavailable
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.options import OperationOptions
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.start import START, StartServer

REFUSES = KilonovaError("the hypervisor refuses")
POLL = 70.0
"""Virtual seconds within which overdue work is looked for."""


def after(seconds: float) -> OperationOptions:
    return msgspec.structs.replace(OPTIONS, shelved_offload_time=seconds)


async def shelved(cloud: SmallCloud) -> str:
    uuid = await cloud.build()
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    return uuid


async def offload(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, SHELVE_OFFLOAD, OffloadServer())


async def offloaded(cloud: SmallCloud) -> str:
    uuid = await shelved(cloud)
    await offload(cloud, uuid)
    await cloud.rest()
    is_offloaded(cloud, uuid)
    return uuid


def is_offloaded(cloud: SmallCloud, uuid: str, power: PowerState = PowerState.SHUTDOWN) -> None:
    """Fail unless the server is on no host, with its ports and its image."""
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state) == (VmState.SHELVED_OFFLOADED, None)
    assert (server.host, server.node, server.launched_on, server.availability_zone) == (None,) * 4
    assert server.power_state is power
    assert cloud.guest(uuid) is None
    assert cloud.claims(uuid) == []
    assert [(port.device_id, port.binding_host) for port in cloud.net.of(uuid)] == [(uuid, "")]
    (image,) = cloud.images.kept()
    assert (server.system_metadata["shelved_image_id"], image.name, image.owner) == (image.id, "vm-shelved", "project")


@pytest.mark.spec("SHV-18", "SHV-22", "SHV-24", "FND-32")
@in_cloud()
async def test_an_offloaded_server_keeps_its_ports_and_its_image(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    addresses = [port.addresses for port in cloud.net.of(uuid)]
    cloud.history.clear()
    await offload(cloud, uuid)
    await cloud.rest()
    is_offloaded(cloud, uuid)
    assert [port.addresses for port in cloud.net.of(uuid)] == addresses
    assert cloud.states(uuid) == [("shelved", "shelving_offloading"), ("shelved_offloaded", None)]
    first = next(i for i in cloud.history if i.vm_state is VmState.SHELVED_OFFLOADED)
    assert first.host is None


@pytest.mark.spec("SHV-17", "SHV-21")
@in_cloud()
async def test_what_it_held_is_free_before_anybody_can_see_that_it_is_offloaded(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    seen: list[Any] = []

    def look(_process: str) -> None:
        server = cloud.server(uuid)
        seen.append((server.vm_state, server.host, cloud.guest(uuid), cloud.claims(uuid)))

    cloud.at["shelve-offload/release claim/do/before"] = look
    cloud.at["shelve-offload/release claim/do/answered"] = look
    await offload(cloud, uuid)
    await cloud.rest()
    assert seen == [(VmState.SHELVED, "host0", None, ["host0"]), (VmState.SHELVED, "host0", None, [])]


@pytest.mark.spec("SHV-02", "SHV-16")
@pytest.mark.parametrize("dies", [False, True])
def test_the_offload_takes_over_from_the_shelving(dies: bool) -> None:
    @in_cloud(options=after(0.0))
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.history.clear()
        if dies:
            def die(_process: str) -> None:
                cloud.crash("host0")
                cloud.crash("conductor0")

            cloud.at["shelve-offload/power off/do/before"] = die
        await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
        if dies:
            await cloud.until(lambda: not cloud.at)
            await cloud.restart("host0", "conductor0")
        await cloud.rest()
        is_offloaded(cloud, uuid)
        assert cloud.states(uuid)[-2:] == [("shelved", "shelving_offloading"), ("shelved_offloaded", None)]
        assert ("shelved", None) not in cloud.states(uuid)
        shelve, off = cloud.operation(uuid, "shelve"), cloud.operation(uuid, "shelve-offload")
        assert shelve.finished_at == off.created_at

    story()


@pytest.mark.spec("SHV-12", "SHV-13", "SHV-25")
@in_cloud(options=after(0.0))
async def test_an_offload_at_once_that_failed_is_tried_again_by_and_by(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["shelve-offload/power off/do/before"] = lambda _p: cloud.fail("power_state", REFUSES)
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.SHELVED, None, "host0")
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == REFUSES.message
    cloud.heal()
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.SHELVED_OFFLOADED, within=POLL)
    await cloud.rest()
    is_offloaded(cloud, uuid)


@pytest.mark.spec("SHV-13")
@in_cloud(options=after(-1.0))
async def test_a_server_may_stay_on_its_host_for_ever(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    await cloud.until(lambda: cloud.now > cloud.server(uuid).updated_at + 10 * POLL, within=11 * POLL)
    assert cloud.server(uuid).vm_state is VmState.SHELVED


@pytest.mark.spec("SHV-31", "PER-49", "PER-50", "PER-52", "PER-53", "PER-55", "SHV-14")
@in_cloud(options=after(100.0))
async def test_servers_are_offloaded_when_their_time_has_come(cloud: SmallCloud) -> None:
    unlabelled, refused, uuid = [await shelved(cloud) for _ in range(3)]
    await cloud.change(unlabelled, system_metadata={"shelved_at": "yesterday"})
    began = cloud.now
    cloud.history.clear()
    cloud.at["shelve-offload/power off/do/before"] = lambda _p: cloud.fail("power_state", REFUSES)
    with structlog.testing.capture_logs() as logs:
        await cloud.until(lambda: cloud.server(uuid).host is None, within=4 * POLL)
    assert cloud.now - began > 95.0
    assert cloud.states(uuid)[-2:] == [("shelved", "shelving_offloading"), ("shelved_offloaded", None)]
    await cloud.until(lambda: cloud.server(refused).host is None, within=2 * POLL)
    server = cloud.server(unlabelled)
    assert (server.vm_state, server.task_state, server.host) == (VmState.SHELVED, None, "host0")
    assert {e["instance"] for e in logs if e["event"] == "nobody knows since when a server is shelved"} == {unlabelled}


@pytest.mark.spec("SHV-26")
@in_cloud()
async def test_a_host_that_refuses_owes_the_removal(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    cloud.always_fail("delete_disks", REFUSES)
    await offload(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=300.0)
    server = cloud.server(uuid)
    assert (server.vm_state, server.host, cloud.claims(uuid)) == (VmState.SHELVED_OFFLOADED, None, [])
    assert cloud.faults(uuid) == 0
    cloud.heal()
    await cloud.rest(debts=True, within=900.0)
    is_offloaded(cloud, uuid)


@pytest.mark.spec("SHV-26")
@in_cloud()
async def test_services_that_are_away_keep_nothing_startable(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    cloud.net.fail["leave_host"] = [ServiceUnavailable("away")] * 20
    await offload(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=600.0)
    assert (cloud.server(uuid).vm_state, cloud.server(uuid).host) == (VmState.SHELVED_OFFLOADED, None)
    await cloud.rest(debts=True, within=3000.0)
    is_offloaded(cloud, uuid)


@pytest.mark.spec("SHV-26", "SHV-29")
@in_cloud()
async def test_a_host_that_is_away_gives_the_guest_up_when_it_returns(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    cloud.at["shelve-offload/remove guest/do/before"] = lambda _p: cloud.crash("host0")
    await offload(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).host is None, within=900.0)
    assert cloud.claims(uuid) == []
    assert cloud.guest(uuid) is not None
    await cloud.restart("host0")
    await cloud.rest(debts=True, within=900.0)
    is_offloaded(cloud, uuid)


@pytest.mark.spec("SHV-29", "SHV-30", "PER-57", "INI-108")
@pytest.mark.parametrize("step", ["power off", "remove guest", "unbind ports", "release claim"])
@pytest.mark.parametrize("moment", ["before", "answered"])
def test_an_offload_that_was_cut_off_goes_on(step: str, moment: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await shelved(cloud)

        def die(_process: str) -> None:
            cloud.crash("host0")
            cloud.crash("conductor0")

        cloud.at[f"shelve-offload/{step}/do/{moment}"] = die
        await offload(cloud, uuid)
        await cloud.until(lambda: not cloud.at)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        is_offloaded(cloud, uuid)

    story()


@pytest.mark.spec("SHV-20")
@in_cloud()
async def test_what_needs_a_host_is_refused_without_one(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    before = len(cloud.effects)
    with pytest.raises(InstanceNotReady):
        await cloud.act(uuid, START, StartServer())
    with pytest.raises(InstanceNotReady):
        await cloud.compute.console_output(CONTEXT, await cloud.located(uuid), None)
    with pytest.raises(InstanceInvalidState):
        await offload(cloud, uuid)
    assert len(cloud.effects) == before


@pytest.mark.spec("SHV-28")
@in_cloud()
async def test_no_console_is_left_open(cloud: SmallCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = await shelved(cloud)
    revoked: list[str] = []
    monkeypatch.setattr(instances.console_tokens, "revoke", lambda _conn, server: revoked.append(server))
    await offload(cloud, uuid)
    await cloud.rest()
    assert revoked == [uuid]


@in_cloud()
async def test_a_delete_leaves_nothing_of_an_offloaded_server(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.images.kept() == []


@in_cloud()
async def test_a_delete_waits_for_an_offload_that_has_begun(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    cloud.at["shelve-offload/remove guest/do/answered"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
    await offload(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.operation(uuid, "shelve-offload").state is OperationState.SUCCEEDED


@in_cloud()
async def test_only_what_is_on_its_shelf_can_be_offloaded(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with pytest.raises(InstanceInvalidState, match=r"Cannot 'shelveOffload' instance .* vm_state active"):
        await offload(cloud, uuid)
    await cloud.change(uuid, vm_state=VmState.SHELVED, task_state=TaskState.UNSHELVING)
    with pytest.raises(InstanceInvalidState, match="task_state unshelving"):
        await offload(cloud, uuid)
