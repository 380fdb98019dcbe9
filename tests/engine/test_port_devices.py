"""Servers with ports that are PCI devices: claimed with everything else, named by the bindings, given back with the
port."""

from __future__ import annotations

import uuid as uuids
from typing import Any

import pytest
from host_cells import TWO_CELLS
from host_devices import GPUS, PORT_CARD, PORT_CLASS, PORT_FUNCTIONS, with_devices
from simulation.network import NETWORK
from simulation.process import SimBus, SimClock
from small_cloud import CONTEXT, FLAVOR, SmallCloud, in_cloud
from test_interfaces import detach
from test_rebuild import rebuild
from test_resize import confirm, resize, revert

from kilonova.audit.compare import compare
from kilonova.audit.differences import Difference, Kind
from kilonova.audit.heal import Healer
from kilonova.audit.look import Looker
from kilonova.db import instances
from kilonova.db.placement import find_provider
from kilonova.db.placement.layouts import layout_of
from kilonova.db.placement.port_devices import drop_device
from kilonova.db.placement.providers import traits_of
from kilonova.domain.errors import KilonovaError, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.network import DeviceVnic, PortDevice, PortNeed, RequestedNetwork
from kilonova.domain.pci import NumaPolicy
from kilonova.domain.states import VmState
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface
from kilonova.operations.bind_ports import BIND_PORTS, BindPorts
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.network import PortSummary

BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=1024, root_gib=2)
CELLED = Flavor(flavor_id="3", name="celled", vcpus=2, memory_mib=512, root_gib=1, extra_specs={"hw:numa_nodes": "1"})


def bring(
    cloud: SmallCloud, vnic_type: DeviceVnic = "direct", *, physical: str = "physnet1", policy: NumaPolicy | None = None
) -> PortSummary:
    """A port of the user's that is to be a device."""
    id_ = str(uuids.uuid4())
    device = PortDevice(vnic_type=vnic_type, physical_network=physical, numa_policy=policy)
    port = PortSummary(id=id_, network_id=NETWORK, project_id="project", mac="fa:16:3e:00:00:09",
                       addresses=("10.0.0.9",), need=PortNeed(port_id=id_, device=device))
    cloud.net.ports[id_] = port
    cloud.net.order.append(id_)
    return port


def held(cloud: SmallCloud, consumer: str) -> dict[str, str]:
    """Addresses of the devices that belong to a server or migration, by what they were asked for by."""
    layout = cloud.api(lambda conn: layout_of(conn, consumer))
    return {device.alias: device.address for device in layout.devices} if layout is not None else {}


def device(cloud: SmallCloud, uuid: str, port: PortSummary) -> str:
    """The address of the device that a port is: claim, binding, record and guest agree on it."""
    address = held(cloud, uuid)[f"port:{port.id}"]
    assert cloud.net.devices[port.id].address == address
    (vif,) = [vif for vif in cloud.server(uuid).network_info if vif.id == port.id]
    assert vif.profile == {
        "pci_slot": address, "pci_vendor_info": "8086:1572" if address == PORT_CARD.address else "8086:154c",
        "physical_network": "physnet1",
    }
    guest = cloud.guest(uuid)
    assert guest is not None
    assert address in [one.address for one in guest.host_devices]
    return address


async def lose(cloud: SmallCloud, uuid: str, port: PortSummary) -> None:
    """The device of a port is claimed no more, though the server has the port."""
    await cloud.databases.api.write(lambda conn: drop_device(conn, uuid, f"port:{port.id}"))


def all_held(cloud: SmallCloud, uuid: str) -> int:
    return cloud.held(uuid)[uuid].get(PORT_CLASS, 0)


async def act(cloud: SmallCloud, uuid: str, *what: Any) -> None:
    await cloud.act(uuid, *what)
    await cloud.rest()


async def attach(cloud: SmallCloud, uuid: str, port: PortSummary) -> None:
    await act(cloud, uuid, ATTACH_INTERFACE, AttachInterface(RequestedNetwork(port_id=port.id, need=port.need)))


async def refused(cloud: SmallCloud, why: str, *ports: PortSummary, **fields: object) -> None:
    uuid = await cloud.ask(cloud.new(ports=tuple(port.id for port in ports), **fields))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert why in fault.message
    assert (cloud.claims(uuid), held(cloud, uuid)) == ([], {})


@in_cloud(devices=PORT_FUNCTIONS[:1])
async def test_a_port_is_a_device_from_the_build_to_the_delete(cloud: SmallCloud) -> None:
    port, second = bring(cloud), bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    assert device(cloud, uuid, port) == PORT_FUNCTIONS[0].address
    assert all_held(cloud, uuid) == 1
    await refused(cloud, f"0 PCI devices left on physical network physnet1 for port {second.id}", second)
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.net.devices == {}
    cloud.nothing_left(uuid)
    assert device(cloud, await cloud.build(ports=(second.id,)), second) == PORT_FUNCTIONS[0].address


@in_cloud(devices=(*PORT_FUNCTIONS, PORT_CARD))
async def test_types_of_ports_are_types_of_devices(cloud: SmallCloud) -> None:
    """A function goes, and the card that it is a part of does not."""
    whole = bring(cloud, "direct-physical")
    uuid = await cloud.build(ports=(whole.id,))
    assert device(cloud, uuid, whole) == PORT_CARD.address
    await refused(cloud, "0 PCI devices left on physical network physnet1", bring(cloud, "macvtap"))
    await cloud.delete(uuid)
    await cloud.rest()
    parts = [bring(cloud, "direct"), bring(cloud, "macvtap")]
    uuid = await cloud.build(ports=tuple(port.id for port in parts))
    assert {device(cloud, uuid, port) for port in parts} < {one.address for one in PORT_FUNCTIONS}
    await refused(cloud, "0 PCI devices left on physical network physnet1", bring(cloud, "direct-physical"))


@in_cloud(devices=(*GPUS[:1], *PORT_FUNCTIONS))
async def test_devices_of_ports_are_not_for_flavors_nor_the_other_way_round(cloud: SmallCloud) -> None:
    await refused(cloud, "1 PCI devices left that either means", flavor=with_devices(FLAVOR, "either:2"))
    await refused(cloud, "0 PCI devices left on physical network physnet2", bring(cloud, physical="physnet2"))
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,), flavor=with_devices(FLAVOR, "gpu:1"))
    assert sorted(held(cloud, uuid)) == ["gpu", f"port:{port.id}"]
    guest = cloud.guest(uuid)
    assert guest is not None
    assert {one.address for one in guest.host_devices} == {GPUS[0].address, device(cloud, uuid, port)}


@in_cloud(devices=(*GPUS[:1],))
async def test_without_any_such_device_the_fault_says_so(cloud: SmallCloud) -> None:
    await refused(cloud, "0 PCI devices left on physical network physnet1", bring(cloud))


@in_cloud(devices=PORT_FUNCTIONS)
async def test_placement_tells_which_physical_networks_a_host_reaches(cloud: SmallCloud) -> None:
    root = cloud.provider("host0")
    assert "CUSTOM_PHYSNET_PHYSNET1" in cloud.api(lambda conn: traits_of(conn, find_provider(conn, root).id))


@in_cloud(hosts=2, devices=PORT_FUNCTIONS)
async def test_a_build_that_goes_to_another_host_takes_a_device_there(cloud: SmallCloud) -> None:
    port = bring(cloud)
    cloud.always_fail("spawn", TryElsewhere("no"), host="host0")
    uuid = await cloud.build(ports=(port.id,))
    assert (cloud.server(uuid).host, cloud.claims(uuid)) == ("host1", ["host1"])
    assert device(cloud, uuid, port)


@in_cloud(devices=PORT_FUNCTIONS)
async def test_a_build_that_fails_gives_the_device_back(cloud: SmallCloud) -> None:
    cloud.always_fail("spawn", KilonovaError("no"))
    await refused(cloud, "no", bring(cloud))
    assert cloud.net.devices == {}


@in_cloud(devices=PORT_FUNCTIONS[:2])
async def test_nobody_waits_for_a_device_to_be_wired(cloud: SmallCloud) -> None:
    cloud.net.wires = False
    uuid = await cloud.build(ports=(bring(cloud).id,), networks=0)
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@in_cloud(devices=PORT_FUNCTIONS)
async def test_a_server_keeps_its_device_whatever_is_done_to_it(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    mine = device(cloud, uuid, port)
    await cloud.stop(uuid)
    await cloud.rest()
    await cloud.build(ports=(bring(cloud).id,))
    await cloud.start(uuid)
    await cloud.rest()
    assert device(cloud, uuid, port) == mine
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    await rebuild(cloud, uuid)
    await cloud.rest()
    await act(cloud, uuid, BIND_PORTS, BindPorts("host0"))
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert device(cloud, uuid, port) == mine


@pytest.mark.spec("IFC-15", "IFC-17", "IFC-26", "IFC-28", "IFC-31", "IFC-44", "XEV-22")
@in_cloud(devices=PORT_FUNCTIONS[:2])
async def test_an_attached_port_gets_a_device_that_goes_with_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.held(uuid)
    for lost in (False, True):
        first, second = bring(cloud), bring(cloud, "macvtap")
        await attach(cloud, uuid, first)
        await attach(cloud, uuid, second)
        kept = device(cloud, uuid, second)
        assert {device(cloud, uuid, first), kept} == {one.address for one in PORT_FUNCTIONS[:2]}
        assert all_held(cloud, uuid) == 2
        for port in (first, second):
            if lost:
                cloud.net.remove(port.id)
                await cloud.tell(uuid, "network-vif-deleted", port.id)
            else:
                await detach(cloud, uuid, port.id)
            await cloud.rest()
            assert list(held(cloud, uuid).values()) == ([kept] if port is first else [])
            assert port.id not in cloud.net.devices
        guest = cloud.guest(uuid)
        assert guest is not None
        assert (guest.host_devices, cloud.held(uuid)) == ((), before)


@pytest.mark.spec("IFC-18", "IFC-19", "IFC-20")
@in_cloud(devices=PORT_FUNCTIONS[:1])
async def test_an_attach_that_fails_leaves_no_device_claimed(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.held(uuid)
    await attach(cloud, uuid, bring(cloud, "direct-physical"))
    fault = cloud.fault(uuid)
    assert fault is not None and "Host host0 has no PCI device for port" in fault.message
    for call in ("bind_port", "serve_ports", "vifs"):
        port = bring(cloud)
        cloud.net.fail[call] = [KilonovaError("no")]
        await attach(cloud, uuid, port)
        assert (held(cloud, uuid), cloud.held(uuid), cloud.net.devices) == ({}, before, {})
    cloud.fail("attach_interface", KilonovaError("no"))
    await attach(cloud, uuid, bring(cloud))
    assert (held(cloud, uuid), cloud.held(uuid), cloud.net.devices) == ({}, before, {})
    port = bring(cloud)
    await attach(cloud, uuid, port)
    assert device(cloud, uuid, port)


@pytest.mark.spec("IFC-46", "IFC-47")
@in_cloud(devices=PORT_FUNCTIONS[:1])
async def test_a_port_whose_device_is_lost_can_be_detached(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    await lose(cloud, uuid, port)
    await detach(cloud, uuid, port.id)
    await cloud.rest()
    assert port.id not in cloud.ports(uuid)
    assert cloud.fault(uuid) is None


@in_cloud(devices=PORT_FUNCTIONS[:1])
async def test_a_guest_is_not_started_without_the_device_of_its_port(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    await lose(cloud, uuid, port)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None and f"Port {port.id} of instance {uuid} has no PCI device" in fault.message


@in_cloud(devices=PORT_FUNCTIONS, topology=TWO_CELLS)
async def test_a_device_is_near_the_cells_of_the_guest_as_its_port_says(cloud: SmallCloud) -> None:
    port = bring(cloud, policy="required")
    uuid = await cloud.build(ports=(port.id,), flavor=CELLED)
    guest = cloud.guest(uuid)
    assert guest is not None and guest.layout is not None
    cell = guest.layout.places[0].host_cell
    near = {one.address for one in PORT_FUNCTIONS if one.numa_cell == cell}
    assert device(cloud, uuid, port) in near
    more = [bring(cloud, policy="required") for _ in range(2)]
    for one in more:
        await attach(cloud, uuid, one)
    assert device(cloud, uuid, more[0]) in near
    assert more[1].id not in cloud.ports(uuid)
    far = bring(cloud, policy="preferred")
    await attach(cloud, uuid, far)
    assert device(cloud, uuid, far) not in near
    guest = cloud.guest(uuid)
    assert guest is not None and guest.layout is not None and guest.layout.places[0].host_cell == cell


@pytest.mark.spec("RSZ-24", "RSZ-25")
@in_cloud(devices=PORT_FUNCTIONS[:2])
async def test_a_resize_maps_the_port_to_a_device_of_the_new_claim_and_back(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    old = device(cloud, uuid, port)
    await resize(cloud, uuid, BIG)
    await cloud.rest()
    (migration,) = cloud.migrations(uuid)
    assert held(cloud, migration.uuid) == {f"port:{port.id}": old}
    new = device(cloud, uuid, port)
    assert new != old
    await revert(cloud, uuid)
    await cloud.rest()
    assert (device(cloud, uuid, port), held(cloud, migration.uuid)) == (old, {})
    await resize(cloud, uuid, BIG)
    await cloud.rest()
    await confirm(cloud, uuid)
    await cloud.rest()
    assert device(cloud, uuid, port) == new
    assert all_held(cloud, uuid) == 1
    assert device(cloud, await cloud.build(ports=((other := bring(cloud)).id,)), other) == old


@pytest.mark.spec("RSZ-24")
@in_cloud(devices=PORT_FUNCTIONS[:2])
async def test_a_resize_that_fails_brings_the_guest_back_with_its_old_device(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    old = device(cloud, uuid, port)
    cloud.fail("power_on", KilonovaError("no"))
    await resize(cloud, uuid, BIG)
    await cloud.rest()
    assert cloud.server(uuid).flavor == FLAVOR
    assert device(cloud, uuid, port) == old
    assert all_held(cloud, uuid) == 1


@in_cloud(hosts=2, devices=PORT_FUNCTIONS[:1])
async def test_an_offloaded_server_gets_a_device_where_it_comes_back(cloud: SmallCloud) -> None:
    port, other = bring(cloud), bring(cloud)
    uuid = await cloud.build(force_host="host1", ports=(port.id,))
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    if cloud.server(uuid).vm_state is VmState.SHELVED:
        await act(cloud, uuid, SHELVE_OFFLOAD, OffloadServer())
    assert (held(cloud, uuid), cloud.net.devices) == ({}, {})
    await cloud.build(force_host="host1", ports=(other.id,))
    await act(cloud, uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded())
    assert (cloud.server(uuid).host, cloud.server(uuid).vm_state) == ("host0", VmState.ACTIVE)
    assert device(cloud, uuid, port)


@in_cloud(devices=PORT_FUNCTIONS[:2])
async def test_an_audit_finds_devices_that_are_held_for_no_port_and_ports_without_one(cloud: SmallCloud) -> None:
    ports = [bring(cloud), bring(cloud)]
    uuid = await cloud.build(ports=tuple(port.id for port in ports))
    looker = Looker(cloud.cells, SimBus(cloud.wire, cloud.processes["conductor0"]), SimClock(cloud.loop),
                    retention=3600.0)
    assert [one for one in compare(await looker.look()) if one.subject == uuid] == []
    await lose(cloud, uuid, ports[0])
    vifs = tuple(vif for vif in cloud.server(uuid).network_info if vif.id != ports[1].id)
    await cloud.databases.cell.write(lambda conn: instances.update(conn, uuid, now=cloud.now, network_info=vifs))
    found = {one.kind: one for one in compare(await looker.look())}
    assert found[Kind.PORT_DEVICE_LEFT].object == f"{uuid}/{ports[1].id}"
    assert found[Kind.PORT_DEVICE_MISSING].object == ports[0].id
    assert found[Kind.DEVICE_NOT_ITS_OWN].subject == uuid
    healer = Healer(
        cloud.cells, looker, SimClock(cloud.loop), ports=None, images=None, accelerators=None, volumes=None,
        retention=3600.0, wake_api=lambda: None, wake_cell=lambda _name: None,
    )
    assert not (await healer.heal(found[Kind.PORT_DEVICE_MISSING])).done
    assert (await healer.heal(found[Kind.PORT_DEVICE_LEFT])).done
    assert held(cloud, uuid) == {}
    assert all_held(cloud, uuid) == 0


@in_cloud(devices=PORT_FUNCTIONS[:1])
async def test_healing_leaves_a_device_alone_that_a_port_has_got_meanwhile(cloud: SmallCloud) -> None:
    port = bring(cloud)
    uuid = await cloud.build(ports=(port.id,))
    looker = Looker(cloud.cells, SimBus(cloud.wire, cloud.processes["conductor0"]), SimClock(cloud.loop),
                    retention=3600.0)
    healer = Healer(
        cloud.cells, looker, SimClock(cloud.loop), ports=None, images=None, accelerators=None, volumes=None,
        retention=3600.0, wake_api=lambda: None, wake_cell=lambda _name: None,
    )
    old = Difference(kind=Kind.PORT_DEVICE_LEFT, object=f"{uuid}/{port.id}", subject=uuid, what="seen earlier")
    assert not (await healer.heal(old)).done
    assert device(cloud, uuid, port)
