"""Servers with ports that ask for resources: claimed, named by the bindings, given back with the port."""

from __future__ import annotations

import uuid as uuids

import pytest
import sqlalchemy as sa
from simulation.network import NETWORK
from small_cloud import CONTEXT, FLAVOR, SmallCloud, in_cloud

from kilonova.audit.look import _claims
from kilonova.db import placement
from kilonova.db.placement import Inventory
from kilonova.db.placement.providers import inventories_of
from kilonova.domain.errors import KilonovaError, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.network import (
    BANDWIDTH,
    BANDWIDTH_CLASSES,
    PACKET_RATE,
    PACKET_RATE_CLASSES,
    PortGroup,
    PortNeed,
    RequestedNetwork,
)
from kilonova.domain.states import VmState
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.network import PortSummary
from kilonova.shapes.resources import resources_of

BW, PPS = BANDWIDTH_CLASSES["egress"], PACKET_RATE_CLASSES["any"]
BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=1024, root_gib=2)


async def give(cloud: SmallCloud, host: str, *amounts: int) -> list[str]:
    """The host has networks that carry so much."""
    made, root = [str(uuids.uuid4()) for _ in amounts], cloud.provider(host)

    def unit(conn: sa.Connection) -> None:
        for uuid, amount in zip(made, amounts, strict=True):
            placement.create_provider(conn, uuid, uuid, parent=root, now=1.0)
            placement.set_inventories(conn, uuid, {BW: Inventory(total=amount)})
            placement.set_traits(conn, uuid, {"CUSTOM_NET"})

    await cloud.databases.api.write(unit)
    return made


async def forward(cloud: SmallCloud, host: str, amount: int) -> str:
    """The host forwards so many packets."""
    made, root = str(uuids.uuid4()), cloud.provider(host)

    def unit(conn: sa.Connection) -> None:
        placement.create_provider(conn, made, made, parent=root, now=1.0)
        placement.set_inventories(conn, made, {PPS: Inventory(total=amount)})

    await cloud.databases.api.write(unit)
    return made


def bring(cloud: SmallCloud, amount: int, *, kpps: int = 0) -> PortSummary:
    """A port of the user's that is guaranteed so much."""
    id_ = str(uuids.uuid4())
    groups = [PortGroup(name=BANDWIDTH, resources={BW: amount}, traits=("CUSTOM_NET",))]
    if kpps:
        groups.append(PortGroup(name=PACKET_RATE, resources={PPS: kpps}))
    need = PortNeed(port_id=id_, groups=tuple(groups))
    port = PortSummary(id=id_, network_id=NETWORK, project_id="project", mac="fa:16:3e:00:00:09",
                       addresses=("10.0.0.9",), need=need)
    cloud.net.ports[id_] = port
    cloud.net.order.append(id_)
    return port


def attaching(port: PortSummary) -> AttachInterface:
    return AttachInterface(RequestedNetwork(port_id=port.id, need=port.need))


def used(cloud: SmallCloud, *providers: str) -> list[int]:
    """Of the one class that each of them has."""
    def read(conn: sa.Connection) -> list[int]:
        found = [inventories_of(conn, placement.find_provider(conn, uuid).id).values() for uuid in providers]
        return [inventory.used for (inventory,) in found]

    amounts: list[int] = cloud.api(read)
    return amounts


async def act(cloud: SmallCloud, uuid: str, *what: object) -> None:
    await cloud.act(uuid, *what)  # type: ignore[arg-type]
    await cloud.rest()


@pytest.mark.spec("BLD-34", "NET-17")
@in_cloud(hosts=2)
async def test_a_server_is_built_where_its_port_is_served_and_the_binding_says_by_whom(cloud: SmallCloud) -> None:
    (provider,) = await give(cloud, "host1", 500)
    port = bring(cloud, 300)
    uuid = await cloud.build(ports=(port.id,))
    assert (cloud.server(uuid).host, cloud.net.served) == ("host1", {port.id: {BANDWIDTH: provider}})
    assert (cloud.held(uuid)[uuid][BW], used(cloud, provider)) == (300, [300])
    second = bring(cloud, 300)
    refused = await cloud.ask(cloud.new(ports=(second.id,)))
    await cloud.rest()
    fault = cloud.fault(refused)
    assert (cloud.server(refused).vm_state, cloud.claims(refused)) == (VmState.ERROR, [])
    assert fault is not None and fault.message.startswith("No valid host")
    assert cloud.net.served == {port.id: {BANDWIDTH: provider}}
    await cloud.delete(uuid)
    await cloud.rest()
    assert (used(cloud, provider), cloud.net.served) == ([0], {})
    cloud.nothing_left(uuid)


@pytest.mark.spec("NET-17")
@in_cloud(hosts=2)
async def test_a_build_that_goes_to_another_host_takes_its_port_there(cloud: SmallCloud) -> None:
    providers = {host: (await give(cloud, host, 500))[0] for host in ("host0", "host1")}
    port = bring(cloud, 300)
    cloud.always_fail("spawn", TryElsewhere("no"), host="host0")
    uuid = await cloud.build(ports=(port.id,))
    assert cloud.server(uuid).host == "host1"
    assert (cloud.net.served, used(cloud, *providers.values())) == (
        {port.id: {BANDWIDTH: providers["host1"]}}, [0, 300])


@pytest.mark.spec("IFC-02", "IFC-04", "IFC-07", "IFC-09", "XEV-20")
@in_cloud()
async def test_an_attached_port_is_claimed_and_given_back_when_it_goes(cloud: SmallCloud) -> None:
    one, two = await give(cloud, "host0", 200, 500)
    uuid = await cloud.build()
    before = cloud.held(uuid)
    for amount, provider in ((300, two), (100, one)):
        port = bring(cloud, amount)
        await act(cloud, uuid, ATTACH_INTERFACE, attaching(port))
        assert (cloud.net.served, used(cloud, provider)) == ({port.id: {BANDWIDTH: provider}}, [amount])
        if amount == 300:
            await act(cloud, uuid, DETACH_INTERFACE, DetachInterface(port.id))
        else:
            del cloud.net.ports[port.id]
            cloud.net.served.clear()
            await cloud.tell(uuid, "network-vif-deleted", port.id)
            await cloud.rest()
        assert (used(cloud, one, two), cloud.held(uuid), cloud.net.served) == ([0, 0], before, {})


@pytest.mark.spec("IFC-03", "IFC-05", "IFC-08")
@in_cloud()
async def test_an_attach_that_fails_leaves_nothing_claimed(cloud: SmallCloud) -> None:
    (provider,) = await give(cloud, "host0", 200)
    uuid = await cloud.build()
    before, calls = cloud.held(uuid), list(cloud.net.calls)
    await act(cloud, uuid, ATTACH_INTERFACE, attaching(bring(cloud, 300)))
    fault = cloud.fault(uuid)
    assert fault is not None and "has not enough left" in fault.message
    assert "bind_port" not in cloud.net.calls[len(calls):]
    for call in ("bind_port", "serve_ports", "vifs"):
        port = bring(cloud, 200)
        cloud.net.fail[call] = [KilonovaError("no")]
        await act(cloud, uuid, ATTACH_INTERFACE, attaching(port))
        assert (used(cloud, provider), cloud.held(uuid)) == ([0], before)
        assert (cloud.net.served, cloud.net.ports[port.id].device_id) == ({}, "")
    cloud.always_fail("attach_interface", KilonovaError("no"))
    await act(cloud, uuid, ATTACH_INTERFACE, attaching(bring(cloud, 200)))
    assert (used(cloud, provider), cloud.held(uuid), cloud.net.served) == ([0], before, {})


@pytest.mark.spec("RSZ-31", "RSZ-56")
@in_cloud()
async def test_the_binding_follows_a_resize_and_its_decision(cloud: SmallCloud) -> None:
    one, two = await give(cloud, "host0", 300, 300)
    for decision, request in ((CONFIRM_RESIZE, ConfirmResize()), (REVERT_RESIZE, RevertResize())):
        port = bring(cloud, 300)
        uuid = await cloud.build(ports=(port.id,))
        first = cloud.net.served[port.id][BANDWIDTH]
        second = two if first == one else one
        await act(cloud, uuid, RESIZE, ResizeServer(flavor=BIG))
        assert (cloud.net.served, used(cloud, one, two)) == ({port.id: {BANDWIDTH: second}}, [300, 300])
        await act(cloud, uuid, decision, request)
        kept = second if decision is CONFIRM_RESIZE else first
        assert (cloud.net.served, used(cloud, kept)) == ({port.id: {BANDWIDTH: kept}}, [300])
        assert sum(used(cloud, one, two)) == 300
        await cloud.delete(uuid)
        await cloud.rest()
        assert used(cloud, one, two) == [0, 0]


@pytest.mark.spec("RSZ-31")
@in_cloud()
async def test_a_resize_that_fails_leaves_the_port_as_it_was(cloud: SmallCloud) -> None:
    one, two = await give(cloud, "host0", 300, 300)
    port = bring(cloud, 300)
    uuid = await cloud.build(ports=(port.id,))
    before = dict(cloud.net.served)
    cloud.fail("resize_disks", KilonovaError("no"))
    await act(cloud, uuid, RESIZE, ResizeServer(flavor=BIG))
    assert (cloud.server(uuid).flavor, cloud.net.served, sum(used(cloud, one, two))) == (FLAVOR, before, 300)


@in_cloud(hosts=2)
async def test_an_offloaded_server_comes_back_where_its_ports_are_served(cloud: SmallCloud) -> None:
    """Also one that was attached after it was built."""
    (provider,) = await give(cloud, "host1", 500)
    uuid = await cloud.build(force_host="host1")
    port = bring(cloud, 300)
    await act(cloud, uuid, ATTACH_INTERFACE, attaching(port))
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    if cloud.server(uuid).vm_state is VmState.SHELVED:
        await act(cloud, uuid, SHELVE_OFFLOAD, OffloadServer())
    assert (used(cloud, provider), cloud.net.served) == ([0], {})
    await act(cloud, uuid, UNSHELVE_OFFLOADED, UnshelveOffloaded())
    assert (cloud.server(uuid).host, cloud.server(uuid).vm_state) == ("host1", VmState.ACTIVE)
    assert (used(cloud, provider), cloud.net.served) == ([300], {port.id: {BANDWIDTH: provider}})


@pytest.mark.spec("IFC-02", "IFC-03", "IFC-09", "RSZ-31", "RSZ-56")
@in_cloud()
async def test_a_packet_rate_is_claimed_beside_a_bandwidth_or_neither_is(cloud: SmallCloud) -> None:
    (wire,), forwarder = await give(cloud, "host0", 1000), await forward(cloud, "host0", 100)
    port = bring(cloud, 300, kpps=40)
    both = {BANDWIDTH: wire, PACKET_RATE: forwarder}
    uuid = await cloud.build(ports=(port.id,))
    assert (cloud.net.served, used(cloud, wire, forwarder)) == ({port.id: both}, [300, 40])
    await act(cloud, uuid, RESIZE, ResizeServer(flavor=BIG))
    assert (cloud.net.served, used(cloud, wire, forwarder)) == ({port.id: both}, [600, 80])
    await act(cloud, uuid, REVERT_RESIZE, RevertResize())
    assert (cloud.net.served, used(cloud, wire, forwarder)) == ({port.id: both}, [300, 40])
    before = cloud.held(uuid)
    await act(cloud, uuid, ATTACH_INTERFACE, attaching(bring(cloud, 100, kpps=61)))
    fault = cloud.fault(uuid)
    assert fault is not None and "has not enough left" in fault.message
    assert (cloud.held(uuid), used(cloud, wire, forwarder)) == (before, [300, 40])
    second = bring(cloud, 100, kpps=60)
    await act(cloud, uuid, ATTACH_INTERFACE, attaching(second))
    assert (cloud.net.served, used(cloud, wire, forwarder)) == ({port.id: both, second.id: both}, [400, 100])
    await act(cloud, uuid, DETACH_INTERFACE, DetachInterface(port.id))
    assert (cloud.net.served, used(cloud, wire, forwarder)) == ({second.id: both}, [100, 60])
    await cloud.delete(uuid)
    await cloud.rest()
    assert (used(cloud, wire, forwarder), cloud.net.served) == ([0, 0], {})


@in_cloud()
async def test_an_audit_knows_what_is_held_for_ports(cloud: SmallCloud) -> None:
    await give(cloud, "host0", 500)
    await forward(cloud, "host0", 100)
    port = bring(cloud, 300, kpps=40)
    uuid = await cloud.build(ports=(port.id,))
    holdings, counters = cloud.api(_claims)
    held = {name: amount for one in holdings if one.consumer == uuid for name, amount in one.resources.items()}
    assert (held, counters) == (resources_of(FLAVOR), ())
