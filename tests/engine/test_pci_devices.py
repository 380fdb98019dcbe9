"""Servers with PCI devices of their host: chosen under the claim, kept, and given back with everything else."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from host_cells import TWO_CELLS
from host_devices import CARD, FUNCTIONS, GPU_CLASS, GPUS, OTHER, with_devices
from simulation.process import SimBus, SimClock
from small_cloud import CONTEXT, FLAVOR, SmallCloud, in_cloud
from test_interfaces import attach, detach
from test_rebuild import rebuild
from test_resize import confirm, resize, revert
from test_shelve_offload import offload
from test_unshelve_offloaded import unshelve

from kilonova.audit.compare import compare
from kilonova.audit.differences import Kind
from kilonova.audit.look import Looker
from kilonova.db.placement.layouts import layout_of
from kilonova.domain.errors import KilonovaError, TryElsewhere
from kilonova.domain.states import VmState
from kilonova.hypervisor.guest import HostDevice

GPU = with_devices(FLAVOR, "gpu:1")
TWO = msgspec.structs.replace(with_devices(FLAVOR, "gpu:2"), flavor_id="2", name="two")
NEAR = msgspec.structs.replace(with_devices(FLAVOR, "near:2", **{"hw:numa_nodes": "1"}), flavor_id="4", name="near")


def held(cloud: SmallCloud, consumer: str) -> set[str]:
    """Addresses of the devices that belong to a server or migration."""
    layout = cloud.api(lambda conn: layout_of(conn, consumer))
    return {device.address for device in layout.devices} if layout is not None else set()


def devices(cloud: SmallCloud, uuid: str) -> set[str]:
    """Those that the guest was started with, which must be those that are claimed."""
    guest = cloud.guest(uuid)
    assert guest is not None
    found = {device.address for device in guest.host_devices}
    assert found == held(cloud, uuid)
    return found


async def refused(cloud: SmallCloud, why: str, **fields: object) -> None:
    uuid = await cloud.ask(cloud.new(**fields))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert why in fault.message
    assert cloud.claims(uuid) == []
    assert held(cloud, uuid) == set()


@in_cloud(devices=(*GPUS[:2], OTHER))
async def test_a_device_belongs_to_one_server_until_it_is_deleted(cloud: SmallCloud) -> None:
    first, second = await cloud.build(flavor=GPU), await cloud.build(flavor=GPU)
    assert devices(cloud, first) | devices(cloud, second) == {device.address for device in GPUS[:2]}
    assert cloud.held(first)[first][GPU_CLASS] == 1
    await refused(cloud, "0 PCI devices left that gpu means, the guest needs 1", flavor=GPU)
    freed = devices(cloud, first)
    await cloud.delete(first)
    await cloud.rest()
    cloud.gone(first)
    assert devices(cloud, await cloud.build(flavor=GPU)) == freed


@in_cloud(hosts=2, devices=GPUS)
async def test_a_host_with_a_device_left_is_chosen(cloud: SmallCloud) -> None:
    servers = [await cloud.build(flavor=TWO) for _ in range(2)]
    assert {cloud.server(uuid).host for uuid in servers} == {"host0", "host1"}
    await refused(cloud, "1 PCI devices left", flavor=TWO)


@in_cloud(devices=GPUS[:1])
async def test_servers_asked_for_at_once_do_not_get_the_same_device(cloud: SmallCloud) -> None:
    servers = [await cloud.ask(cloud.new(flavor=GPU)) for _ in range(3)]
    await cloud.until(lambda: all(
        cloud.server(uuid).vm_state in (VmState.ACTIVE, VmState.ERROR) for uuid in servers
    ))
    await cloud.rest()
    assert sorted(cloud.server(uuid).vm_state.value for uuid in servers) == ["active", "error", "error"]


@in_cloud(devices=(OTHER,))
async def test_no_host_offers_devices_and_the_fault_says_so(cloud: SmallCloud) -> None:
    await refused(cloud, "No host offers PCI devices (pci_passthrough:alias = gpu:1).", flavor=GPU)


@in_cloud(devices=(*FUNCTIONS, CARD))
async def test_a_card_goes_as_a_whole_or_in_its_parts(cloud: SmallCloud) -> None:
    part = await cloud.build(flavor=with_devices(FLAVOR, "nic:1"))
    assert devices(cloud, part) == {FUNCTIONS[0].address}
    await refused(cloud, "0 PCI devices left that card means", flavor=with_devices(FLAVOR, "card:1"))
    await cloud.delete(part)
    await cloud.rest()
    assert devices(cloud, await cloud.build(flavor=with_devices(FLAVOR, "card:1"))) == {CARD.address}
    await refused(cloud, "0 PCI devices left that nic means", flavor=with_devices(FLAVOR, "nic:1"))


@in_cloud(devices=(GPUS[0], *FUNCTIONS[:1]))
async def test_an_alias_of_several_kinds_leaves_those_to_others_that_they_need(cloud: SmallCloud) -> None:
    assert devices(cloud, await cloud.build(flavor=with_devices(FLAVOR, "either:1,gpu:1"))) == {
        GPUS[0].address, FUNCTIONS[0].address
    }


@in_cloud(devices=GPUS, topology=TWO_CELLS)
async def test_devices_near_the_cells_of_the_guest(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=NEAR)
    assert devices(cloud, uuid) == {GPUS[1].address, GPUS[2].address}
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.layout is not None
    assert [place.host_cell for place in guest.layout.places] == [1]
    await refused(cloud, "left that near means", flavor=NEAR)


@in_cloud(devices=GPUS)
async def test_stopped_started_and_rebooted_servers_keep_their_device(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped(flavor=GPU)
    mine = held(cloud, uuid)
    other = await cloud.build(flavor=GPU)
    await cloud.start(uuid)
    await cloud.rest()
    assert devices(cloud, uuid) == mine
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert devices(cloud, uuid) == mine
    assert not mine & devices(cloud, other)


@pytest.mark.spec("IFC-16")
@in_cloud(devices=GPUS)
async def test_an_ordinary_port_takes_no_device(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    mine, before = devices(cloud, uuid), cloud.held(uuid)
    port = await attach(cloud, uuid)
    for _ in range(2):
        assert devices(cloud, uuid) == mine
        assert cloud.held(uuid) == before
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert devices(cloud, uuid) == mine
        if port in cloud.ports(uuid):
            await detach(cloud, uuid, port)
            await cloud.rest()
    assert port not in cloud.ports(uuid)


@in_cloud(devices=GPUS)
async def test_a_rebuilt_server_keeps_its_device(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    mine = devices(cloud, uuid)
    await rebuild(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert devices(cloud, uuid) == mine


@in_cloud(devices=GPUS)
async def test_a_resize_holds_the_old_device_until_it_is_decided(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    old = devices(cloud, uuid)
    await resize(cloud, uuid, TWO)
    await cloud.rest()
    (migration,) = cloud.migrations(uuid)
    assert held(cloud, migration.uuid) == old
    new = devices(cloud, uuid)
    assert len(new) == 2
    assert not new & old
    await refused(cloud, "0 PCI devices left", flavor=GPU)
    await revert(cloud, uuid)
    await cloud.rest()
    assert devices(cloud, uuid) == old
    assert held(cloud, migration.uuid) == set()
    await resize(cloud, uuid, TWO)
    await cloud.rest()
    await confirm(cloud, uuid)
    await cloud.rest()
    assert devices(cloud, uuid) == new
    assert devices(cloud, await cloud.build(flavor=GPU)) == old


@in_cloud(devices=GPUS)
async def test_a_resize_to_a_flavor_without_devices_gives_them_back(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=TWO)
    await resize(cloud, uuid, msgspec.structs.replace(FLAVOR, flavor_id="9", name="plain"))
    await cloud.rest()
    assert devices(cloud, uuid) == set()
    await refused(cloud, "1 PCI devices left", flavor=TWO)
    await confirm(cloud, uuid)
    await cloud.rest()
    assert len(devices(cloud, await cloud.build(flavor=TWO))) == 2


@in_cloud(devices=GPUS)
async def test_a_resize_that_fails_gives_the_new_device_back(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    old = devices(cloud, uuid)
    cloud.always_fail("resize_disks", KilonovaError("no"))
    await resize(cloud, uuid, TWO)
    await cloud.rest()
    cloud.heal()
    assert devices(cloud, uuid) == old
    assert len(devices(cloud, await cloud.build(flavor=TWO))) == 2


@in_cloud(devices=GPUS[:1])
async def test_a_shelved_server_has_no_device(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    assert held(cloud, uuid) == {GPUS[0].address}
    await offload(cloud, uuid)
    await cloud.rest()
    assert held(cloud, uuid) == set()
    other = await cloud.build(flavor=GPU)
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.SHELVED_OFFLOADED
    assert held(cloud, uuid) == set()
    await cloud.delete(other)
    await cloud.rest()
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert devices(cloud, uuid) == {GPUS[0].address}


@in_cloud(hosts=2, devices=GPUS[:1])
async def test_a_build_that_fails_on_one_host_has_the_device_of_the_next(cloud: SmallCloud) -> None:
    cloud.fail("spawn", TryElsewhere("no"))
    uuid = await cloud.build(flavor=GPU)
    assert devices(cloud, uuid) == {GPUS[0].address}
    assert len(devices(cloud, await cloud.build(flavor=GPU))) == 1


@in_cloud(devices=GPUS[:2])
async def test_a_device_that_is_offered_no_more_stays_with_its_server(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    mine = devices(cloud, uuid)
    cloud.hypervisors["host0"].devices = ()
    await asyncio.sleep(15)
    await refused(cloud, "No host offers PCI devices", flavor=GPU)
    assert held(cloud, uuid) == mine
    assert cloud.held(uuid)[uuid][GPU_CLASS] == 1
    cloud.hypervisors["host0"].devices = GPUS[:2]
    await asyncio.sleep(15)
    assert not devices(cloud, await cloud.build(flavor=GPU)) & mine
    await cloud.delete(uuid)
    await cloud.rest()
    assert held(cloud, uuid) == set()


@in_cloud(devices=GPUS)
async def test_an_audit_finds_devices_that_are_not_the_servers(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=GPU)
    assert await differences(cloud) == {}
    guest = cloud.guest(uuid)
    assert guest is not None
    mine, strange = guest.host_devices[0].address, GPUS[2].address
    cloud.hypervisors["host0"].keep(msgspec.structs.replace(guest, host_devices=(HostDevice(strange),)))
    assert await differences(cloud) == {
        Kind.DEVICE_NOT_ITS_OWN: f"{uuid}/{strange}", Kind.DEVICE_MISSING: f"{uuid}/{mine}",
    }
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert await differences(cloud) == {}


async def differences(cloud: SmallCloud) -> dict[Kind, str]:
    """What an audit finds about devices, by kind."""
    bus = SimBus(cloud.wire, cloud.processes["conductor0"])
    look = await Looker(cloud.cells, bus, SimClock(cloud.loop), retention=3600.0).look()
    kinds = (Kind.DEVICE_NOT_ITS_OWN, Kind.DEVICE_MISSING, Kind.ALLOCATION_DIFFERS)
    return {one.kind: one.object for one in compare(look) if one.kind in kinds}
