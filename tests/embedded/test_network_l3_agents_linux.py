"""Routers taken away from their agent and given back, on a real kernel."""

import asyncio

import pytest
import test_network_linux
import test_network_routers_linux
from network_machine import SILENCE, Namespace, tool
from test_network_linux import CIDR, LIMIT, PROJECT, Cloud, admin
from test_network_routers_linux import answers, float_to, peer_of, public_network, router, two_networks

from kilonova.audit.compare import compare
from kilonova.audit.differences import Kind
from kilonova.audit.embedded import EmbeddedDevices
from kilonova.audit.look import Look
from kilonova.embedded.network import l3_agents, networks, routers
from kilonova.embedded.network.bodies import InterfaceBody
from kilonova.embedded.network.datapath import Effects

cloud, machine = test_network_linux.cloud, test_network_linux.machine
outside = test_network_routers_linux.outside
pytestmark = pytest.mark.timeout(120)


async def take(cloud: Cloud, router_id: str) -> None:
    def unit(conn: object, effects: Effects) -> None:
        effects.routers = True
        l3_agents.unschedule(conn, router_id, "")

    await cloud.change(unit)


async def give(cloud: Cloud, router_id: str) -> None:
    def unit(conn: object, effects: Effects) -> None:
        effects.routers = True
        l3_agents.schedule(conn, router_id, "")

    await cloud.change(unit)


async def echoes(client: object) -> bool:
    """Whether what is sent over an open connection comes back before silence."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"ping")
    try:
        return await asyncio.wait_for(loop.sock_recv(client, 100), SILENCE) == b"ping"
    except TimeoutError:
        return False


@pytest.mark.spec("EMN-14", "EMN-57", "EMN-65")
async def test_what_a_router_led_to_is_cut_off_while_no_agent_has_it(cloud: Cloud, outside: Namespace) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    id_ = await router(cloud, first, public=public)
    one, _ = await cloud.guest("one", first)
    _, address = await float_to(cloud, public, "one")
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    gateway = cloud.wiring._routers[0].gateway
    async with await one.listen(22), await outside.listen(80):
        assert await outside.reaches(address, 22) and await one.reaches("198.51.100.9", 80)
        assert await answers(address) and await answers(gateway)
        with outside.socket() as client:
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(client, (address, 22)), LIMIT)
            await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT)
            assert await echoes(client)
            await take(cloud, id_)
            assert not await echoes(client)  # a connection that was open is cut, too
        assert not await outside.connects(address, 22) and not await one.connects("198.51.100.9", 80)
        assert not await answers(address) and not await answers(gateway)
        await give(cloud, id_)
        assert await outside.reaches(address, 22) and await one.reaches("198.51.100.9", 80)
        assert await answers(address) and await answers(gateway)


@pytest.mark.spec("EMN-10", "EMN-14", "EMN-64", "EMN-65")
async def test_networks_are_apart_while_no_agent_has_their_router(cloud: Cloud) -> None:
    first, one, here, second, two, there = await two_networks(cloud)
    third = await cloud.network.bootstrap(PROJECT, name="third", cidr="10.79.0.0/24")
    three, beyond = await cloud.guest("three", third)
    async with await one.listen(22), await two.listen(22), await three.listen(22):
        id_ = await router(cloud, first, second)
        assert await peer_of(one, there, 22) == here
        await take(cloud, id_)
        assert not await one.connects(there, 22) and not await two.connects(here, 22)

        def unit(conn: object, effects: Effects) -> None:
            effects.routers = True
            (subnet,) = networks.subnets_of(conn, third)
            routers.add_interface(conn, admin(), id_, InterfaceBody(subnet_id=subnet.id), 0.0)

        await cloud.change(unit)
        assert not await one.connects(beyond, 22)  # it stays away, whatever it gets
        await give(cloud, id_)
        assert await peer_of(two, here, 22) == there
        assert await peer_of(one, beyond, 22) == here


async def test_an_audit_sees_what_answers_for_routers(cloud: Cloud) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    id_ = await router(cloud, first, public=public)
    await cloud.guest("one", first)
    _, address = await float_to(cloud, public, "one")
    assert await differences(cloud) == []
    (bridge,) = [name for name, held in (await cloud.wiring.found()).addresses if held == address]
    tool("ip", "addr", "del", f"{address}/32", "dev", bridge)
    assert await differences(cloud) == [(Kind.ROUTER_ADDRESS_MISSING, f"{bridge}/{address}")]
    await cloud.down()
    await cloud.up()
    assert await differences(cloud) == []
    await take(cloud, id_)
    assert await differences(cloud) == []
    tool("ip", "addr", "add", f"{address}/32", "dev", bridge)
    assert await differences(cloud) == [(Kind.ROUTER_ADDRESS_LEFT, f"{bridge}/{address}")]
    await cloud.down()
    await cloud.up()
    assert await differences(cloud) == []


async def differences(cloud: Cloud) -> list[tuple[Kind, str]]:
    """What an audit finds wrong with the devices of the machine."""
    nothing: frozenset[str] = frozenset()
    look = Look(
        servers={}, requests=nothing, mapped=nothing, dangling=nothing, specs=nothing, busy=nothing, operations=(),
        holdings=(), counters=(), hosts=(),
        devices=await EmbeddedDevices("here", cloud.database, cloud.wiring).devices(),
    )
    return [(found.kind, found.object) for found in compare(look)]


@pytest.mark.spec("EMN-65")
async def test_a_crash_and_lost_filters_bring_no_router_back(cloud: Cloud) -> None:
    public = await public_network(cloud)
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    id_ = await router(cloud, first, public=public)
    await cloud.guest("one", first)
    _, address = await float_to(cloud, public, "one")
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    assert await answers(address)
    await cloud.database.write(lambda conn: l3_agents.unschedule(conn, id_, ""))
    await cloud.down()  # recorded, and not wired before the end
    await cloud.up()
    assert not await answers(address)
    await lose_filters(cloud)
    assert not await answers(address)
    await give(cloud, id_)
    assert await answers(address)
    await cloud.database.write(lambda conn: l3_agents.unschedule(conn, id_, ""))
    await cloud.database.write(lambda conn: l3_agents.schedule(conn, id_, ""))
    await cloud.down()
    await cloud.up()
    await lose_filters(cloud)
    assert await answers(address)


async def lose_filters(cloud: Cloud) -> None:
    """Delete the tables behind the back of the service and wait until they are there again."""
    held = (await cloud.wiring.found()).firewall_tables
    for table in held:
        tool("nft", "delete", "table", *table.split())
    await cloud.until(lambda found: found.firewall_tables == held)
