"""Networks of the world outside on a real kernel: guests are on the wire of an interface, as one of its VLANs or not.

The interface `wire` of the test's machine leads to a namespace that is the world outside.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import test_network_linux
from network_machine import LIMIT, V6, Guest, Namespace, reaches, tool
from test_network_linux import PROJECT, Cloud, admin
from vlan_devices import Vlans

from kilonova.audit.embedded import EmbeddedDevices
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Retryable
from kilonova.embedded.network import networks, routers
from kilonova.embedded.network.addressing import Pool
from kilonova.embedded.network.bodies import GatewayBody, InterfaceBody, NetworkBody, RouterBody, SubnetBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.linux import uplinks
from kilonova.embedded.network.linux.wiring import LinuxWiring

machine = test_network_linux.machine
CIDR, OUTSIDE = "10.20.0.0/24", "10.20.0.1"
"""The range of the network, and the address of a peer outside, which is the gateway too."""
ABROAD = "203.0.113.5"
"""An address of the same peer, on no link of guests."""


class World(Namespace):
    """The world outside, at the other end of the wire."""

    def __init__(self) -> None:
        super().__init__()
        self.lay_wire()
        self.vlans = Vlans("wire")
        self.run("ip", "addr", "add", f"{ABROAD}/32", "dev", "lo")

    def lay_wire(self) -> None:
        tool("ip", "link", "add", "wire", "type", "veth", "peer", "name", "eth0", "netns", self.path)
        self.run("ip", "link", "set", "eth0", "up")

    def vlan(self, tag: int, address: str) -> None:
        """Be on a VLAN of the wire."""
        self.vlans.add(self, "eth0", tag, address)


@pytest.fixture
def world(machine: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World()
    monkeypatch.setattr(uplinks, "run", made.vlans.running(uplinks.run))
    yield made
    made.vlans.close()
    made.close()


@pytest.fixture
async def cloud(world: World, tmp_path: Path) -> AsyncIterator[Cloud]:
    made = Cloud(tmp_path, "t1", {"physnet0": "wire"})
    await made.up()
    yield made
    for guest in made.guests:
        guest.close()
    await made.wiring.remove_all()
    await made.down()


async def outside(cloud: Cloud, tag: int | None = 100, *, dhcp: bool = True, **fields: Any) -> str:
    """A network of the world outside, with a subnet; its id."""
    body = NetworkBody(name="outside", shared=True, provider_network_type="vlan" if tag else "flat",
                       provider_physical_network="physnet0", **fields)
    if tag:
        body.provider_segmentation_id = tag

    def unit(conn: Any, effects: Effects) -> str:
        made = networks.create_network(conn, admin(), body, 0.0)
        networks.create_subnet(conn, admin(), SubnetBody(
            network_id=made.id, cidr=CIDR, enable_dhcp=dhcp,
            allocation_pools=[Pool("10.20.0.100", "10.20.0.200")],
        ), 0.0)
        return made.id

    return str(await cloud.change(unit))


async def let_in(cloud: Cloud) -> str:
    return await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")


@contextlib.asynccontextmanager
async def serving(cloud: Cloud, world: World, *options: str) -> AsyncIterator[None]:
    """The world outside tells guests of addresses itself."""
    server = await asyncio.create_subprocess_exec(
        "nsenter", f"--net={world.path}", "dnsmasq", "--conf-file=/dev/null", "--port=0", "--no-daemon",
        "--interface=eth0.100", f"--dhcp-leasefile={cloud.directory}/leases", *options,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        server.kill()
        await server.wait()


async def seen_as(guest: Namespace, address: str, port: int) -> str:
    """The address that a peer sees a guest with."""
    with guest.socket() as client:
        assert await reaches(client, address, port)
        seen = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), LIMIT)
    return seen.decode().strip()


@pytest.mark.spec("EMN-03", "EMN-07")
async def test_a_guest_and_a_peer_on_the_vlan_reach_each_other(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    world.vlan(200, "10.20.0.2/24")
    net = await outside(cloud)
    guest, address = await cloud.guest("one", net)
    state = guest.run("ip", "addr", "show", "eth0") + guest.run("ip", "route")
    assert f"inet {address}/24" in state and f"default via {OUTSIDE}" in state
    async with await world.listen(80), await guest.listen(22):
        assert await seen_as(guest, OUTSIDE, 80) == address  # nothing is translated
        assert await seen_as(guest, ABROAD, 80) == address  # nor beyond the gateway, which is outside
        assert not await world.connects(address, 22)  # the security group lets only members in
        rule = await let_in(cloud)
        assert await world.reaches(address, 22)
        assert await world.reaches(address, 22, source=ABROAD)
        await cloud.forbid(rule)
        assert not await world.connects(address, 22)
        assert await guest.reaches("169.254.169.254", 80)


async def test_other_vlans_are_apart(cloud: Cloud, world: World) -> None:
    world.vlan(200, f"{OUTSIDE}/24")
    guest, address = await cloud.guest("one", await outside(cloud))
    flat, flat_address = await cloud.guest("flat", await outside(cloud, None))
    other, other_address = await cloud.guest("two", await outside(cloud, 200))
    await let_in(cloud)
    async with await world.listen(80), await guest.listen(22), await flat.listen(22), await other.listen(22):
        assert await other.reaches(OUTSIDE, 80)
        assert not await guest.connects(OUTSIDE, 80)
        assert not await flat.connects(OUTSIDE, 80)
        assert address == flat_address == other_address  # which of them answers, is for the VLAN to say
        assert await world.reaches(other_address, 22)
        world.run("ip", "link", "set", "eth0.200", "down")
        assert not await world.connects(address, 22)


async def test_a_flat_network_is_the_interface_itself(cloud: Cloud, world: World) -> None:
    world.run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
    net = await outside(cloud, None)
    guest, address = await cloud.guest("one", net)
    await let_in(cloud)
    async with await world.listen(80), await guest.listen(22):
        assert await seen_as(guest, OUTSIDE, 80) == address
        assert await world.reaches(address, 22)
    # A guest that no filter holds sends frames of another VLAN, which is not its own.
    (port,) = await cloud.network.ports_of("one")
    await cloud.update_port(port.id, port_security_enabled=False, security_groups=[])
    world.vlans.add(guest, "eth0", 200, "10.30.0.2/24")
    world.vlan(200, "10.30.0.1/24")
    async with await world.listen(80):
        assert await guest.reaches(OUTSIDE, 80)
        assert not await guest.connects("10.30.0.1", 80)
    assert (await cloud.wiring.found()).uplinks == ()


async def test_the_world_outside_gets_nothing_of_the_machine(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    inside = await cloud.network.bootstrap(PROJECT, cidr="10.77.0.0/24")
    await cloud.guest("inside", inside)
    await cloud.guest("one", await outside(cloud))
    await let_in(cloud)
    # The machine's other networks are not answered for: that address may be somebody else's outside.
    world.run("ip", "addr", "add", "10.77.0.9/24", "dev", "eth0.100")
    assert not await world.connects("10.77.0.1", 80)
    assert "10.77.0.1 " not in world.run("ip", "neigh", "show", "nud", "reachable")
    world.run("ip", "route", "add", "169.254.169.254/32", "dev", "eth0.100")
    assert not await world.connects("169.254.169.254", 80)
    world.run("ip", "route", "replace", "169.254.169.254/32", "via", "10.20.0.100")
    assert not await world.connects("169.254.169.254", 80)
    # Its guests ask the DHCP server here, and only they.
    with world.socket(socket.SOCK_DGRAM) as receiver, world.socket(socket.SOCK_DGRAM) as sender:
        receiver.bind(("0.0.0.0", 67))
        await cloud.guest("two", (await cloud.network.ports_of("one"))[0].network_id)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_recv(receiver, 1000), 0.5)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"nobody hears", ("10.20.0.255", 67))


async def test_addresses_may_come_from_a_server_outside(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    net = await outside(cloud, dhcp=False)
    port_id = await cloud.port("one", net)
    (vif,) = await cloud.network.vifs("one")
    guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
    cloud.guests.append(guest)
    await cloud.event("network-vif-plugged", port_id)
    address = vif.fixed_ips[0].address
    serves = ("--dhcp-range=10.20.0.0,static,3600", f"--dhcp-host={vif.mac},{address}")
    async with serving(cloud, world, *serves):
        assert f"inet {address}/24" in await guest.dhcp()


async def test_wiring_that_was_torn_down_comes_back(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    guest, _ = await cloud.guest("one", await outside(cloud))
    before = await cloud.wiring.found()
    assert before.uplinks == ("kut1-1",)
    (bridge,) = before.bridges

    def is_whole(found: object) -> bool:
        return found == before and cloud.wiring._links.master_of("kut1-1") == bridge

    async with await world.listen(80):
        for damage in (("link", "delete", "kut1-1"), ("link", "set", "kut1-1", "nomaster"), ("link", "delete", bridge)):
            tool("ip", *damage)
            await cloud.until(lambda found: not is_whole(found))
            await cloud.until(is_whole)
            assert await guest.reaches(OUTSIDE, 80)
        tool("ip", "link", "delete", "wire")
        await cloud.until(lambda found: found.uplinks == ())
        world.lay_wire()
        world.vlan(100, f"{OUTSIDE}/24")
        await cloud.until(is_whole)
        guest.run("ip", "neigh", "flush", "dev", "eth0")
        assert await guest.reaches(OUTSIDE, 80)


@pytest.mark.spec("EMN-63")
async def test_a_crashed_control_plane_finds_the_wire_again(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    net = await outside(cloud)
    guest, _ = await cloud.guest("one", net)
    before = await cloud.wiring.found()
    index = cloud.wiring._links.by_name["kut1-1"].index
    async with await world.listen(80):
        with guest.socket() as client:
            assert await reaches(client, OUTSIDE, 80)
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT)
            await cloud.down()
            await loop.sock_sendall(client, b"alone")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT) == b"alone"
            await cloud.up()
            assert await cloud.wiring.found() == before
            assert cloud.wiring._links.by_name["kut1-1"].index == index
            await loop.sock_sendall(client, b"still here")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT) == b"still here"
        # The interface is another one when it starts again: the VLAN moves there.
        await cloud.down()
        tool("ip", "link", "set", "wire", "name", "old")
        second = World()
        second.vlan(100, f"{OUTSIDE}/24")
        async with await second.listen(81):
            await cloud.up()
            await cloud.wiring.settle(net)
            guest.run("ip", "neigh", "flush", "dev", "eth0")
            assert await guest.reaches(OUTSIDE, 81)
        second.vlans.close()
        second.close()


async def test_a_purge_needs_no_records_and_leaves_the_interfaces(cloud: Cloud, world: World) -> None:
    await cloud.guest("one", await outside(cloud))
    await cloud.guest("two", await outside(cloud, None))
    await cloud.down()
    purge = LinuxWiring(cloud.token, cloud.directory / "wiring", SystemClock(), "here", {})
    await purge.start(lambda port_id, up: None, None)
    assert (await purge.found()).uplinks
    await purge.remove_all()
    left = await purge.found()
    assert (left.bridges, left.uplinks, left.dhcp_servers, left.firewall_tables) == ((), (), (), ())
    assert "master" not in tool("ip", "link", "show", "wire")
    assert tool("nft", "list", "ruleset") == "" and "fwmark" not in tool("ip", "rule")
    await purge.close()
    await cloud.up()


async def test_an_audit_finds_what_leads_outside_for_no_network(cloud: Cloud) -> None:
    guest, _ = await cloud.guest("one", await outside(cloud))
    devices = EmbeddedDevices("here", cloud.database, cloud.wiring)
    tidy = await devices.devices()
    assert tidy.bridges - tidy.wanted_bridges == frozenset() and tidy.taps == tidy.wanted_taps & {guest.tap}
    tool("ip", "link", "add", "kut1-9", "type", "bridge")
    await cloud.until(lambda found: "kut1-9" in found.uplinks)
    left = await devices.devices()
    assert left.bridges - left.wanted_bridges == {"kut1-9"}
    await cloud.down()
    await cloud.up()
    assert (await cloud.wiring.found()).uplinks == ("kut1-1",)


async def test_a_deleted_network_takes_its_vlan_along(cloud: Cloud) -> None:
    net = await outside(cloud)
    guest, _ = await cloud.guest("one", net)
    guest.unplug()
    await cloud.network.release("one")

    def delete(conn: Any, effects: Effects) -> None:
        networks.delete_network(conn, admin(), net)
        effects.networks.append(net)

    await cloud.change(delete)
    await cloud.until(lambda found: (found.bridges, found.uplinks) == ((), ()))
    assert "wire" in tool("ip", "link")


@pytest.mark.parametrize(("spoil", "tag", "reason"), [
    (("link", "delete", "wire"), 100, "Interface wire of physical network physnet0 is missing."),
    (("link", "set", "wire", "mtu", "1400"), 100, "carries 1400 bytes at once"),
    (("addr", "add", "192.0.2.1/24", "dev", "wire"), None, "has addresses of the machine (192.0.2.1)"),
    (("link", "set", "wire", "master", "theirs"), None, "is a port of theirs already"),
])
async def test_why_an_interface_cannot_be_used(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, spoil: tuple[str, ...], tag: int | None, reason: str
) -> None:
    monkeypatch.setattr("kilonova.embedded.network.linux.wiring.SETTLE_LIMIT", 1.0)
    tool("ip", "link", "add", "theirs", "type", "bridge")
    tool("ip", *spoil)
    net = await outside(cloud, tag)
    with pytest.raises(Retryable) as raised:
        await cloud.port("one", net)
    assert reason in str(raised.value)


@pytest.mark.spec("EMN-13", "EMN-57")
async def test_a_router_leads_out_by_a_network_of_the_world_outside(cloud: Cloud, world: World) -> None:
    world.vlan(100, f"{OUTSIDE}/24")
    net = await outside(cloud, external=True)
    inside = await cloud.network.bootstrap(PROJECT, cidr="10.77.0.0/24")
    guest, _ = await cloud.guest("one", inside)

    def route(conn: Any, effects: Effects) -> str:
        (subnet,) = networks.subnets_of(conn, inside)
        router = routers.create_router(conn, admin(), RouterBody(
            external_gateway_info=GatewayBody(network_id=net)), 0.0)
        routers.add_interface(conn, admin(), router.id, InterfaceBody(subnet_id=subnet.id), 0.0)
        effects.routers = True
        gateway = routers.gateway_of(conn, router.id)
        assert gateway is not None
        return gateway.addresses[0].address

    outer = await cloud.change(route)
    async with await world.listen(80):
        assert await seen_as(guest, OUTSIDE, 80) == outer
        assert await seen_as(guest, ABROAD, 80) == outer  # by the gateway of that network, not by the machine's own


async def test_a_router_may_be_the_gateway_outside(cloud: Cloud, world: World) -> None:
    world.vlan(100, "10.20.0.9/24")
    net = await outside(cloud)
    inside = await cloud.network.bootstrap(PROJECT, cidr="10.77.0.0/24")
    far, far_address = await cloud.guest("far", inside)
    near, near_address = await cloud.guest("near", net)
    await let_in(cloud)

    def route(conn: Any, effects: Effects) -> None:
        router = routers.create_router(conn, admin(), RouterBody(), 0.0)
        for network_id in (inside, net):
            (subnet,) = networks.subnets_of(conn, network_id)
            routers.add_interface(conn, admin(), router.id, InterfaceBody(subnet_id=subnet.id), 0.0)
        effects.routers = True

    async with await far.listen(22), await world.listen(80):
        assert not await near.connects(far_address, 22)
        await cloud.change(route)
        assert await seen_as(near, far_address, 22) == near_address
        world.run("ip", "route", "add", "10.77.0.0/24", "via", OUTSIDE)
        assert await world.reaches(far_address, 22)
        assert await seen_as(far, "10.20.0.9", 80) == far_address


@pytest.mark.spec("EMN-08")
async def test_a_router_outside_announces_itself_to_guests_by_ipv6(cloud: Cloud, world: World) -> None:
    world.vlan(100, "2001:db8:20::1/64")
    body = NetworkBody(name="outside", provider_network_type="vlan", provider_physical_network="physnet0",
                       provider_segmentation_id=100)

    def unit(conn: Any, effects: Effects) -> str:
        made = networks.create_network(conn, admin(), body, 0.0)
        networks.create_subnet(conn, admin(), SubnetBody(
            network_id=made.id, ip_version=6, cidr="2001:db8:20::/64", ipv6_ra_mode="slaac", ipv6_address_mode="slaac",
        ), 0.0)
        return made.id

    net = str(await cloud.change(unit))
    port_id = await cloud.port("one", net)
    (vif,) = await cloud.network.vifs("one")
    guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
    cloud.guests.append(guest)
    await cloud.event("network-vif-plugged", port_id)
    address = vif.fixed_ips[0].address
    announcing = ("--enable-ra", "--dhcp-range=2001:db8:20::,ra-only")
    async with serving(cloud, world, *announcing), await world.listen(80, V6), await guest.listen(22, V6):
        link = world.run("ip", "-6", "addr", "show", "dev", "eth0.100", "scope", "link").split("inet6 ")[1]
        assert f"default via {link.partition('/')[0]} " in await guest.built(address)
        assert await guest.reaches("2001:db8:20::1", 80)
        assert not await world.connects(address, 22)
        await cloud.allow(cloud.default, direction="ingress", ethertype="IPv6", remote_ip_prefix="::/0")
        assert await world.reaches(address, 22)
