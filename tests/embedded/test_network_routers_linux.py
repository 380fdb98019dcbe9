"""Routers and floating IPs on a real kernel: guests in namespaces reach each other and the outside."""

import asyncio
from collections.abc import Iterator

import pytest
import test_network_linux
from network_machine import Guest, Namespace, family_of, reaches, tool
from test_network_linux import CIDR, LIMIT, PROJECT, Cloud, admin

from kilonova.embedded.network import floating, networks, routers
from kilonova.embedded.network.bodies import (
    FloatingIpBody,
    GatewayBody,
    InterfaceBody,
    NetworkBody,
    RouterBody,
    SubnetBody,
)
from kilonova.embedded.network.datapath import Effects

cloud, machine = test_network_linux.cloud, test_network_linux.machine
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def outside(machine: None) -> Iterator[Namespace]:
    """A neighbour of the machine, which knows the public range behind it and no other."""
    made = Namespace()
    tool("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", made.path)
    tool("ip", "addr", "add", "198.51.100.1/24", "dev", "uplink")
    tool("ip", "link", "set", "uplink", "up")
    made.run("ip", "addr", "add", "198.51.100.9/24", "dev", "eth0")
    made.run("ip", "link", "set", "eth0", "up")
    made.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.1")
    yield made
    made.close()


async def public_network(cloud: Cloud) -> str:
    def unit(conn: object, effects: Effects) -> str:
        network = networks.create_network(conn, admin(), NetworkBody(name="public", external=True), 0.0)
        body = SubnetBody(network_id=network.id, cidr="203.0.113.0/24")
        networks.create_subnet(conn, admin(), body, 0.0)
        return network.id

    return str(await cloud.change(unit))


async def router(cloud: Cloud, *network_ids: str, public: str | None = None, **fields: object) -> str:
    """A router that joins the first subnet of each network."""
    def unit(conn: object, effects: Effects) -> str:
        effects.routers = True
        gateway = GatewayBody(network_id=public) if public else None
        made = routers.create_router(conn, admin(), RouterBody(external_gateway_info=gateway, **fields), 0.0)
        for id_ in network_ids:
            (subnet, *_) = networks.subnets_of(conn, id_)
            routers.add_interface(conn, admin(), made.id, InterfaceBody(subnet_id=subnet.id), 0.0)
        return made.id

    return str(await cloud.change(unit))


async def float_to(
    cloud: Cloud, public: str, instance: str, **wanted: object
) -> tuple[str, str]:
    """A floating IP of a guest; its id and address."""
    (vif,) = await cloud.network.vifs(instance)

    def unit(conn: object, effects: Effects) -> tuple[str, str]:
        effects.routers = True
        body = FloatingIpBody(floating_network_id=public, port_id=vif.id, **wanted)
        made = floating.create(conn, admin(), body, 0.0)
        return made.id, made.address

    id_, address = await cloud.change(unit)  # type: ignore[misc]
    return str(id_), str(address)


async def change_router(cloud: Cloud, id_: str, **fields: object) -> None:
    def unit(conn: object, effects: Effects) -> None:
        effects.routers = True
        routers.update_router(conn, admin(), id_, RouterBody(**fields), 0.0)

    await cloud.change(unit)


async def peer_of(guest: Namespace, address: str, port: int) -> str:
    """Who the server at the other end takes the guest for."""
    with guest.socket(family=family_of(address)) as client:
        assert await reaches(client, address, port)
        seen = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), LIMIT)
        return seen.decode().strip()


async def two_networks(cloud: Cloud) -> tuple[str, Guest, str, str, Guest, str]:
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    second = await cloud.network.bootstrap(PROJECT, name="second", cidr="10.78.0.0/24")
    one, here = await cloud.guest("one", first)
    two, there = await cloud.guest("two", second)
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    return first, one, here, second, two, there


@pytest.mark.spec("EMN-10", "EMN-14")
async def test_a_router_joins_its_networks_while_it_is_up(cloud: Cloud) -> None:
    first, one, here, second, two, there = await two_networks(cloud)
    async with await one.listen(22), await two.listen(22):
        assert not await one.connects(there, 22)
        id_ = await router(cloud, first, second)
        assert await peer_of(one, there, 22) == here
        assert await peer_of(two, here, 22) == there
        await change_router(cloud, id_, admin_state_up=False)
        assert not await one.connects(there, 22)
        await change_router(cloud, id_, admin_state_up=True)
        assert await two.reaches(here, 22)


@pytest.mark.spec("EMN-13", "EMN-14")
async def test_a_gateway_leads_outside(cloud: Cloud, outside: Namespace) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    id_ = await router(cloud, first, public=public)
    one, _ = await cloud.guest("one", first)
    neighbour, away = await cloud.guest("neighbour", public)
    async with await outside.listen(80), await neighbour.listen(80):
        await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
        assert await peer_of(one, "198.51.100.9", 80) == "198.51.100.1"
        assert await peer_of(one, away, 80) == cloud.wiring._routers[0].gateway
        await change_router(cloud, id_, external_gateway_info=GatewayBody(network_id=public, enable_snat=False))
        assert not await one.connects("198.51.100.9", 80)
        await change_router(cloud, id_, external_gateway_info=GatewayBody(network_id=public, enable_snat=True))
        assert await one.reaches("198.51.100.9", 80)
        await change_router(cloud, id_, admin_state_up=False)
        assert not await one.connects("198.51.100.9", 80)


@pytest.mark.spec("EMN-57")
async def test_a_floating_ip_leads_inside(cloud: Cloud, outside: Namespace) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    await router(cloud, first, public=public)
    one, _ = await cloud.guest("one", first)
    neighbour, away = await cloud.guest("neighbour", public)
    _, address = await float_to(cloud, public, "one")
    async with await one.listen(22), await neighbour.listen(80):
        assert not await outside.connects(address, 22)  # no rule allows it
        await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="198.51.100.0/24")
        await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="203.0.113.0/24")
        assert await peer_of(outside, address, 22) == "198.51.100.9"
        assert await peer_of(neighbour, address, 22) == away
        assert await peer_of(one, away, 80) == address  # what it sends leaves with the floating address


@pytest.mark.spec("EMN-57")
async def test_the_machine_itself_reaches_a_floating_ip(cloud: Cloud) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    await router(cloud, first, public=public)
    one, _ = await cloud.guest("one", first)
    _, address = await float_to(cloud, public, "one")
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    async with await one.listen(22):
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, 22), LIMIT)
        assert await asyncio.wait_for(reader.readline(), LIMIT)
        writer.close()


@pytest.mark.spec("EMN-14")
async def test_nobody_answers_at_the_floating_ip_of_a_router_that_is_down(cloud: Cloud) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    id_ = await router(cloud, first, public=public)
    await cloud.guest("one", first)
    _, address = await float_to(cloud, public, "one")
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    assert await answers(address)
    await change_router(cloud, id_, admin_state_up=False)
    assert not await answers(address)
    await change_router(cloud, id_, admin_state_up=True)
    assert await answers(address)


async def answers(address: str) -> bool:
    """Whether somebody answers a ping."""
    command = ("ping", "-c", "1", "-w", "2", address)
    ping = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    return await ping.wait() == 0


@pytest.mark.spec("EMN-57")
async def test_guests_reach_each_other_by_floating_ips(cloud: Cloud) -> None:
    public = await public_network(cloud)
    first, one, _, second, two, _ = await two_networks(cloud)
    near, _ = await cloud.guest("near", first)
    await router(cloud, first, public=public)
    await router(cloud, second, public=public)
    _, ones = await float_to(cloud, public, "one")
    _, twos = await float_to(cloud, public, "two")
    async with await one.listen(22), await two.listen(22):
        assert await peer_of(one, twos, 22) == ones
        assert await peer_of(two, ones, 22) == twos
        assert await peer_of(near, ones, 22)
        assert await peer_of(near, twos, 22)


@pytest.mark.spec("EMN-57")
async def test_networks_of_one_range_have_floating_ips_apart(cloud: Cloud, outside: Namespace) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    second = await cloud.network.bootstrap(PROJECT, name="second", cidr=CIDR)
    one, here = await cloud.guest("one", first)
    two, there = await cloud.guest("two", second)
    assert here == there
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    await router(cloud, first, public=public)
    await router(cloud, second, public=public)
    _, ones = await float_to(cloud, public, "one")
    _, twos = await float_to(cloud, public, "two")
    async with await one.listen(22):
        assert await outside.reaches(ones, 22)
        assert not await outside.connects(twos, 22)
    async with await two.listen(22):
        assert await outside.reaches(twos, 22)
        assert not await outside.connects(ones, 22)
        assert await peer_of(one, twos, 22) == ones


@pytest.mark.spec("EMN-53", "EMN-58")
async def test_a_floating_ip_serves_its_next_owner_at_once(cloud: Cloud, outside: Namespace) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    await router(cloud, first, public=public)
    one, _ = await cloud.guest("one", first)
    two, _ = await cloud.guest("two", first)
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    id_, address = await float_to(cloud, public, "one")
    async with await one.listen(22):
        assert await outside.reaches(address, 22)

    def unit(conn: object, effects: Effects) -> None:
        effects.routers = True
        floating.delete(conn, admin(), id_)

    await cloud.change(unit)
    assert not await outside.connects(address, 22)
    await float_to(cloud, public, "two", floating_ip_address=address)
    async with await two.listen(22):
        assert await outside.reaches(address, 22)
    await cloud.down()
    await cloud.up()  # a restart finds all of it again
    async with await two.listen(22):
        assert await outside.reaches(address, 22)
