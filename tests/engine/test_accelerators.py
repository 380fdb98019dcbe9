"""Servers with accelerators: requests at the accelerator service, and devices of guests."""

from __future__ import annotations

import uuid as uuids

import msgspec
import pytest
import sqlalchemy as sa
from accelerated import asks_for, offer_devices
from cyborg import FPGA
from small_cloud import CONTEXT, FLAVOR, OPTIONS, SmallCloud, in_cloud
from test_shelve_offload import is_offloaded, offload

from kilonova.db import placement
from kilonova.db.placement import Inventory
from kilonova.domain.errors import KilonovaError, ServiceUnavailable, TryElsewhere
from kilonova.domain.instance import BuildRequest
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded

REFUSES = KilonovaError("the hypervisor refuses")
DOWN = ServiceUnavailable("The accelerator service does not answer.")
MANY = 50


async def prepare(cloud: SmallCloud) -> None:
    """Placement knows the devices of every host."""
    await cloud.databases.api.write(offer_devices)


def wanted(cloud: SmallCloud, profile: str = "fpga") -> BuildRequest:
    shown, asked = asks_for(FLAVOR, profile)
    request = cloud.new(flavor=shown)
    return msgspec.structs.replace(request, spec=msgspec.structs.replace(request.spec, flavor=asked))


async def ask(cloud: SmallCloud, profile: str = "fpga") -> str:
    await prepare(cloud)
    return await cloud.ask(wanted(cloud, profile))


async def accelerated(cloud: SmallCloud, profile: str = "fpga") -> str:
    """A server with accelerators that runs."""
    uuid = await ask(cloud, profile)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    await cloud.rest()
    return uuid


def devices(cloud: SmallCloud, uuid: str) -> list[str]:
    guest = cloud.guest(uuid)
    return [device.address for device in guest.host_devices] if guest is not None else []


def has_its_own(cloud: SmallCloud, uuid: str, number: int = 1) -> None:
    """Fail unless server, service and guest agree on its accelerators."""
    arqs = cloud.accelerators.of(uuid)
    assert len(arqs) == number
    assert {arq["state"] for arq in arqs} == {"Bound"}
    assert set(cloud.server(uuid).accelerators) == {arq["uuid"] for arq in arqs}
    assert {arq["hostname"] for arq in arqs} == {cloud.server(uuid).node}
    host = cloud.server(uuid).host
    assert host is not None
    assert {arq["device_rp_uuid"] for arq in arqs} == {cloud.provider(host)}
    found = {"{domain}:{bus}:{device}.{function}".format(**arq["attach_handle_info"]) for arq in arqs}
    assert set(devices(cloud, uuid)) == found
    assert cloud.held(uuid)[uuid][FPGA] == number


def calls(cloud: SmallCloud, method: str) -> list[str]:
    return [call for call in cloud.accelerators.calls if call.startswith(method)]


def failed(cloud: SmallCloud, uuid: str) -> str:
    """What the fault of a server in ERROR says; nothing of it is left."""
    assert cloud.server(uuid).vm_state is VmState.ERROR
    assert (cloud.server(uuid).host, cloud.server(uuid).accelerators) == (None, ())
    cloud_fault = cloud.fault(uuid)
    assert cloud_fault is not None
    assert cloud.claims(uuid) == []
    assert cloud.guest(uuid) is None
    return cloud_fault.message


@pytest.mark.spec("BLD-120", "BLD-124", "EMP-09")
@pytest.mark.parametrize(("profile", "number"), [("fpga", 1), ("pair", 2)])
@in_cloud()
async def test_a_guest_has_the_devices_that_were_bound_for_it(cloud: SmallCloud, profile: str, number: int) -> None:
    uuid = await accelerated(cloud, profile)
    has_its_own(cloud, uuid, number)
    assert len(cloud.accelerators.arqs) == number
    assert cloud.events(uuid) == []
    assert [made.host_devices for _, name, made in cloud.guests_made if name == "create_disks"] == [()]


@in_cloud()
async def test_devices_are_bound_at_the_provider_below_the_host_that_serves_them(cloud: SmallCloud) -> None:
    below, root = str(uuids.uuid4()), cloud.provider("host0")

    def offer(conn: sa.Connection) -> None:
        placement.create_provider(conn, below, "card", parent=root, now=1.0)
        placement.set_inventories(conn, below, {FPGA: Inventory(total=1)})

    await cloud.databases.api.write(offer)
    uuid = await cloud.ask(wanted(cloud))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    (arq,) = cloud.accelerators.of(uuid)
    assert (arq["state"], arq["device_rp_uuid"]) == ("Bound", below)
    assert len(devices(cloud, uuid)) == 1


@pytest.mark.spec("RBD-50", "SHV-23", "PER-56")
@in_cloud()
async def test_the_service_is_not_asked_about_servers_without_accelerators(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    instance = cloud.server(uuid)
    origin = Origin.of(instance)
    await cloud.act(uuid, REBUILD, RebuildServer(before=origin, after=origin))
    await cloud.rest()
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    await offload(cloud, uuid)
    await cloud.rest()
    await cloud.act(uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.accelerators.calls == []


@pytest.mark.spec("BLD-120", "BLD-123")
@in_cloud()
async def test_what_is_bound_already_is_not_waited_for(cloud: SmallCloud) -> None:
    cloud.accelerators.at_once = True
    uuid = await ask(cloud)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE, within=10.0)
    has_its_own(cloud, uuid)
    assert len(calls(cloud, f"GET /v2/accelerator_requests instance={uuid}")) == 2  # before and after binding


@pytest.mark.spec("BLD-121", "BLD-112", "BLD-116", "BLD-125")
@in_cloud(options=msgspec.structs.replace(OPTIONS, arq_binding_timeout=40.0))
async def test_a_build_waits_no_longer_than_it_may(cloud: SmallCloud) -> None:
    cloud.accelerators.binds = False
    uuid = await ask(cloud)
    begun = cloud.loop.time()
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert 40.0 < cloud.loop.time() - begun < 50.0
    assert "Timed out waiting for accelerator-request-bound" in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}
    assert cloud.events(uuid) == []
    assert cloud.operation(uuid, "build").round == 0


@pytest.mark.spec("BLD-122", "BLD-112", "BLD-125")
@in_cloud()
async def test_a_request_that_cannot_be_bound_fails_the_build(cloud: SmallCloud) -> None:
    cloud.accelerators.binds = False
    uuid = await ask(cloud, "pair")
    await cloud.until(lambda: cloud.accelerators.of(uuid))
    first, _ = cloud.accelerators.resolve(uuid, "BindFailed")
    await cloud.tell(uuid, "accelerator-request-bound", first, status="failed")
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert first in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}
    assert cloud.events(uuid) == []


@pytest.mark.spec("BLD-124")
@in_cloud()
async def test_an_event_alone_does_not_make_a_request_bound(cloud: SmallCloud) -> None:
    cloud.accelerators.binds = False
    uuid = await ask(cloud)
    await cloud.until(lambda: cloud.accelerators.of(uuid))
    (id_,) = cloud.accelerators.resolve(uuid, "BindFailed")
    await cloud.tell(uuid, "accelerator-request-bound", id_)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert "is not bound: BindFailed" in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}


@pytest.mark.spec("BLD-124")
@in_cloud()
async def test_a_profile_that_was_changed_meanwhile_fails_the_build(cloud: SmallCloud) -> None:
    await prepare(cloud)
    request = wanted(cloud)
    cloud.accelerators.profiles["fpga"] = [{f"resources:{FPGA}": "2"}]
    uuid = await cloud.ask(request)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert "2 requests in place of 1" in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}


@in_cloud()
async def test_a_mediated_device_is_refused(cloud: SmallCloud) -> None:
    cloud.accelerators.handle_type = "MDEV"
    uuid = await ask(cloud)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert "of the type MDEV" in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}


@in_cloud()
async def test_simulated_devices_of_the_service_stay_outside(cloud: SmallCloud) -> None:
    cloud.accelerators.handle_type = "TEST_PCI"
    uuid = await accelerated(cloud)
    assert devices(cloud, uuid) == []
    assert len(cloud.accelerators.of(uuid)) == 1


@pytest.mark.spec("BLD-71")
@in_cloud(hosts=2)
async def test_another_host_gets_other_requests(cloud: SmallCloud) -> None:
    cloud.fail("spawn", TryElsewhere("no"))
    uuid = await accelerated(cloud)
    assert cloud.operation(uuid, "build").round == 1
    has_its_own(cloud, uuid)
    assert len(cloud.accelerators.arqs) == 1
    assert len(calls(cloud, "POST")) == 2
    assert len(calls(cloud, "DELETE")) == 1


@pytest.mark.spec("BLD-71")
@in_cloud(hosts=2)
async def test_what_an_earlier_host_has_left_does_not_stop_the_next(cloud: SmallCloud) -> None:
    cloud.fail("spawn", TryElsewhere("no"))
    cloud.accelerators.fail["DELETE"] = [KilonovaError("not now")] * MANY
    cloud.at["build/claim host/do/before"] = lambda _process: cloud.accelerators.fail.clear()
    uuid = await accelerated(cloud)
    await cloud.rest(debts=True, within=600.0)
    has_its_own(cloud, uuid)
    assert len(cloud.accelerators.arqs) == 1


@pytest.mark.spec("BLD-116", "DEL-50", "BLD-77")
@in_cloud()
async def test_a_build_that_fails_leaves_no_requests(cloud: SmallCloud) -> None:
    cloud.fail("spawn", REFUSES)
    uuid = await ask(cloud)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert "refuses" in failed(cloud, uuid)
    assert cloud.accelerators.arqs == {}


@pytest.mark.spec("BLD-77", "DEL-23")
@pytest.mark.parametrize("disks", [False, True])
@in_cloud()
async def test_a_delete_takes_the_requests_of_a_build_with_it(cloud: SmallCloud, disks: bool) -> None:
    cloud.accelerators.binds = False
    uuid = await ask(cloud)
    await cloud.until(lambda: (cloud.guest(uuid) if disks else cloud.server(uuid).accelerators))
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.accelerators.arqs == {}


@pytest.mark.spec("DEL-23", "DEL-55", "BLD-130")
@in_cloud()
async def test_a_delete_takes_the_accelerators_with_it(cloud: SmallCloud) -> None:
    uuid = await accelerated(cloud, "pair")
    cloud.accelerators.arqs.pop(cloud.server(uuid).accelerators[0])  # somebody was faster
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.accelerators.arqs == {}
    assert cloud.server(uuid).accelerators == ()


@pytest.mark.spec("DEL-29")
@in_cloud()
async def test_a_delete_does_not_wait_for_the_accelerator_service(cloud: SmallCloud) -> None:
    uuid = await accelerated(cloud)
    cloud.accelerators.fail["GET"] = [DOWN] * MANY
    await cloud.delete(uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
    await cloud.rest()
    cloud.gone(uuid)
    assert len(cloud.accelerators.arqs) == 1
    assert [debt.state for debt in cloud.operations(uuid, "debt")] == [OperationState.RUNNING]
    cloud.accelerators.fail.clear()
    await cloud.rest(debts=True, within=600.0)
    assert cloud.accelerators.arqs == {}


@pytest.mark.spec("PWR-17", "PWR-19", "RBT-06", "RBT-12")
@in_cloud()
async def test_every_start_has_the_devices_as_the_service_tells_them(cloud: SmallCloud) -> None:
    uuid = await accelerated(cloud)
    (arq,) = cloud.accelerators.of(uuid)
    arq["attach_handle_info"] = {"domain": "0000", "bus": "5e", "device": "6", "function": "0"}
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert devices(cloud, uuid) == ["0000:5e:06.0"]
    arq["attach_handle_info"] = {"domain": "0000", "bus": "5E", "device": "07", "function": "0"}
    await cloud.stop(uuid)
    await cloud.rest()
    await cloud.start(uuid)
    await cloud.rest()
    assert devices(cloud, uuid) == ["0000:5e:07.0"]
    assert cloud.power(uuid) is PowerState.RUNNING


@pytest.mark.spec("RBD-47", "RBD-49")
@in_cloud()
async def test_a_rebuild_keeps_the_accelerators(cloud: SmallCloud) -> None:
    uuid = await accelerated(cloud)
    before = cloud.server(uuid).accelerators
    origin = Origin.of(cloud.server(uuid))
    await cloud.act(uuid, REBUILD, RebuildServer(before=origin, after=origin))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert cloud.server(uuid).accelerators == before
    has_its_own(cloud, uuid)
    assert len(calls(cloud, "POST")) == 1


@pytest.mark.spec("RBD-47")
@in_cloud()
async def test_a_rebuild_touches_nothing_while_the_service_is_away(cloud: SmallCloud) -> None:
    uuid = await accelerated(cloud)
    origin = Origin.of(cloud.server(uuid))
    cloud.accelerators.fail["GET"] = [DOWN] * MANY
    cloud.effects.clear()
    await cloud.act(uuid, REBUILD, RebuildServer(before=origin, after=origin))
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, cloud.power(uuid)) == (VmState.ACTIVE, None, PowerState.RUNNING)
    assert cloud.operation(uuid, "rebuild").state is OperationState.FAILED
    assert [effect for effect in cloud.effects if effect.where == "host0"] == []


async def shelved(cloud: SmallCloud) -> str:
    uuid = await accelerated(cloud)
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    assert len(cloud.accelerators.of(uuid)) == 1
    return uuid


@pytest.mark.spec("SHV-17", "SHV-40", "PER-51")
@in_cloud()
async def test_the_accelerators_go_with_the_host_and_come_anew(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    before = cloud.server(uuid).accelerators
    await offload(cloud, uuid)
    await cloud.rest()
    is_offloaded(cloud, uuid)
    assert (cloud.accelerators.arqs, cloud.server(uuid).accelerators) == ({}, ())
    await cloud.act(uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    has_its_own(cloud, uuid)
    assert not set(before) & set(cloud.server(uuid).accelerators)


@pytest.mark.spec("SHV-26")
@in_cloud()
async def test_a_debt_to_the_service_does_not_take_what_came_later(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    cloud.accelerators.fail["DELETE"] = [DOWN] * 14
    await offload(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.SHELVED_OFFLOADED)
    await cloud.rest()
    assert len(cloud.accelerators.arqs) == 1
    cloud.accelerators.fail.clear()
    await cloud.act(uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded(wiring_timeout=30.0))
    await cloud.rest(debts=True, within=600.0)
    has_its_own(cloud, uuid)
    assert len(cloud.accelerators.arqs) == 1


@pytest.mark.spec("SHV-41", "SHV-45", "SHV-47")
@in_cloud()
async def test_an_unshelving_that_waits_in_vain_leaves_the_server_on_its_shelf(cloud: SmallCloud) -> None:
    uuid = await shelved(cloud)
    await offload(cloud, uuid)
    await cloud.rest()
    cloud.accelerators.binds = False
    request = UnshelveOffloaded(wiring_timeout=30.0, binding_timeout=20.0)
    await cloud.act(uuid, UNSHELVE_OFFLOADED, request)
    await cloud.rest()
    is_offloaded(cloud, uuid)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "Timed out waiting for accelerator-request-bound" in fault.message
    assert cloud.accelerators.arqs == {}
    assert (cloud.guest(uuid), cloud.claims(uuid)) == (None, [])


@pytest.mark.spec("BLD-81", "BLD-82")
@in_cloud()
async def test_devices_stay_where_a_guest_may_be_left(cloud: SmallCloud) -> None:
    cloud.fail("spawn", REFUSES)
    cloud.always_fail("destroy", KilonovaError("no answer"))
    uuid = await ask(cloud)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    assert cloud.server(uuid).host == "host0"
    assert [arq["uuid"] for arq in cloud.accelerators.of(uuid)] == list(cloud.server(uuid).accelerators)
    cloud.heal()
    await cloud.delete(uuid)
    await cloud.rest(debts=True, within=600.0)
    cloud.gone(uuid)
    assert cloud.accelerators.arqs == {}


@in_cloud()
async def test_a_conductor_that_dies_goes_on_with_what_it_has_asked_for(cloud: SmallCloud) -> None:
    for place in ("make accelerator requests/do/committed", "bind accelerator requests/do/answered"):
        cloud.at[place] = lambda process: cloud.loop.call_soon(cloud.crash, process)
    uuid = await ask(cloud)
    for _ in range(2):
        await cloud.until(lambda: not cloud.processes["conductor0"].alive)
        await cloud.boot("conductor0")
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    await cloud.rest()
    has_its_own(cloud, uuid)
    assert len(cloud.accelerators.arqs) == 1
