"""IPv6 on a real kernel: how guests get their addresses, whom they reach, and what they cannot pretend."""

import asyncio
import socket
import struct

import dhcp_v6
import pytest
import test_network_linux
from network_machine import V6, Guest, tool
from test_network_linux import CIDR, LIMIT, PROJECT, Cloud, admin
from test_network_routers_linux import change_router, peer_of, router

from kilonova.embedded.network import networks, security
from kilonova.embedded.network.addressing import SLAAC, STATEFUL, STATELESS, AddressPair
from kilonova.embedded.network.bodies import FixedIpBody, GroupBody, NetworkBody, SubnetBody
from kilonova.embedded.network.datapath import Effects

cloud, machine = test_network_linux.cloud, test_network_linux.machine
pytestmark = pytest.mark.timeout(120)
SLAAC, STATEFUL, STATELESS = SLAAC, STATEFUL, STATELESS


async def network(cloud: Cloud, cidr: str, mode: str | None, *, name: str = "six", v4: str | None = None,
                  **fields: object) -> str:
    """A network with an IPv6 subnet of this mode, and an IPv4 one if asked for."""
    def unit(conn: object, effects: Effects) -> str:
        made = networks.create_network(conn, admin(), NetworkBody(name=name), 0.0)
        if v4:
            networks.create_subnet(conn, admin(), SubnetBody(network_id=made.id, cidr=v4), 0.0)
        networks.create_subnet(conn, admin(), SubnetBody(
            network_id=made.id, ip_version=6, cidr=cidr, ipv6_ra_mode=mode, ipv6_address_mode=mode, **fields
        ), 0.0)
        security.ensure_default_group(conn, PROJECT, 0.0)
        return made.id

    return str(await cloud.change(unit))


async def plugged(cloud: Cloud, instance: str, network_id: str,
                  groups: tuple[str, ...] = ("default",)) -> tuple[Guest, list[str], str]:
    """A plugged guest, its IPv6 addresses and its MAC."""
    port_id = await cloud.port(instance, network_id, groups)
    (vif,) = await cloud.network.vifs(instance)
    guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
    cloud.guests.append(guest)
    await cloud.event("network-vif-plugged", port_id)
    return guest, [item.address for item in vif.fixed_ips if item.subnet.version == 6], vif.mac


def pings(guest: Guest, address: str) -> bool:
    """Whether an echo is answered; the raw socket needs no tool."""
    with guest.socket(socket.SOCK_RAW, V6, socket.IPPROTO_ICMPV6) as client:
        client.settimeout(1.0)
        client.sendto(struct.pack("!BBHHH", 128, 0, 0, 1, 1), (address, 0))
        try:
            while True:
                data = client.recv(1500)
                if data[0] == 129:
                    return True
        except TimeoutError:
            return False


@pytest.mark.spec("EMN-08", "EMN-46")
async def test_guests_build_their_addresses_and_are_judged_by_their_groups(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    server, (here,), _ = await plugged(cloud, "server", net)
    friend, (there,), _ = await plugged(cloud, "friend", net)
    stranger, (elsewhere,), _ = await plugged(cloud, "stranger", net, ())
    assert "mtu 1500" in await server.routed(here)
    await friend.built(there)
    await stranger.built(elsewhere)
    async with await server.listen(22, V6):
        assert await friend.reaches(here, 22)  # both are in the default group
        assert not await stranger.connects(here, 22)  # nothing lets it send
        (port,) = await cloud.network.ports_of("stranger")
        alone = str(await cloud.change(lambda conn, effects: security.create_group(
            conn, admin(), GroupBody(name="alone"), 0.0).id))
        await cloud.update_port(port.id, security_groups=[alone])
        assert not await stranger.connects(here, 22)
        await cloud.allow(cloud.default, direction="ingress", ethertype="IPv4", protocol="tcp")
        assert not await stranger.connects(here, 22)
        rule = await cloud.allow(cloud.default, direction="ingress", ethertype="IPv6", protocol="tcp",
                                 port_range_min=22, port_range_max=22, remote_ip_prefix="fd77::/64")
        assert await stranger.reaches(here, 22)
        await cloud.forbid(rule)
        assert not await stranger.connects(here, 22)
        assert not pings(stranger, here)
        await cloud.allow(cloud.default, direction="ingress", ethertype="IPv6", protocol="icmp", port_range_min=128)
        assert pings(stranger, here)


@pytest.mark.spec("EMN-08")
async def test_a_guest_leases_its_address(cloud: Cloud) -> None:
    net = await network(cloud, "fd78::/64", STATEFUL, dns_nameservers=["2001:db8::53"])
    guest, (address,), mac = await plugged(cloud, "one", net)
    other, (others,), other_mac = await plugged(cloud, "two", net)
    assert await dhcp_v6.ask(guest, mac) == dhcp_v6.Answer([address], ["2001:db8::53"])
    assert (await dhcp_v6.ask(other, other_mac)).addresses == [others]
    assert "inet6 fd78:" not in await guest.routed()  # it is announced that there is DHCP
    await other.routed()
    guest.run("ip", "addr", "add", f"{address}/128", "dev", "eth0", "nodad")
    other.run("ip", "addr", "add", f"{others}/128", "dev", "eth0", "nodad")
    async with await guest.listen(22, V6):
        assert await other.reaches(address, 22)


@pytest.mark.spec("EMN-08")
async def test_a_leased_address_serves_its_next_owner_at_once(cloud: Cloud) -> None:
    net = await network(cloud, "fd78::/64", STATEFUL)
    guest, (address,), mac = await plugged(cloud, "one", net)
    assert (await dhcp_v6.ask(guest, mac)).addresses == [address]
    (port,) = await cloud.network.ports_of("one")
    (vif,) = await cloud.network.vifs("one")
    guest.unplug()
    await cloud.event("network-vif-unplugged", port.id)
    guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
    cloud.guests.append(guest)
    await cloud.event("network-vif-plugged", port.id)
    assert (await dhcp_v6.ask(guest, mac, generation=1)).addresses == [address]  # the server was rebuilt
    guest.unplug()
    await cloud.network.delete_port(port.id)
    follower, _, mac = await plugged(cloud, "two", net)
    (port,) = await cloud.network.ports_of("two")
    await cloud.update_port(port.id, fixed_ips=[FixedIpBody(ip_address=address)])
    assert (await dhcp_v6.ask(follower, mac)).addresses == [address]


@pytest.mark.spec("EMN-07", "EMN-08")
async def test_a_guest_that_builds_its_address_may_ask_for_the_rest(cloud: Cloud) -> None:
    net = await network(cloud, "fd79::/64", STATELESS, dns_nameservers=["2001:db8::53"])
    guest, (address,), mac = await plugged(cloud, "one", net)
    await guest.built(address)
    assert await dhcp_v6.inform(guest, mac) == dhcp_v6.Answer([], ["2001:db8::53"])

    def change(conn: object, effects: Effects) -> None:
        (subnet,) = networks.subnets_of(conn, net)
        networks.update_subnet(conn, admin(), subnet.id, SubnetBody(dns_nameservers=["2001:db8::54"]), 0.0)
        effects.networks.append(net)

    await cloud.change(change)
    assert (await dhcp_v6.inform(guest, mac)).dns == ["2001:db8::54"]


@pytest.mark.spec("EMN-08")
async def test_a_subnet_without_modes_is_left_to_its_guests(cloud: Cloud) -> None:
    net = await network(cloud, "fd7a::/64", None)
    guest, (address,), _ = await plugged(cloud, "one", net)
    other, (others,), _ = await plugged(cloud, "two", net)
    for wired, own in ((guest, address), (other, others)):
        wired.run("ip", "addr", "add", f"{own}/64", "dev", "eth0")
        assert "default via" not in await wired.built(own)
    async with await guest.listen(22, V6):
        assert await other.reaches(address, 22)
    assert (await cloud.wiring.found()).dhcp_servers == ()


@pytest.mark.spec("EMN-07", "EMN-08")
async def test_a_network_carries_both_versions(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC, v4=CIDR)
    server, (here,), _ = await plugged(cloud, "server", net)
    friend, (there,), _ = await plugged(cloud, "friend", net)
    (vif,) = await cloud.network.vifs("server")
    v4 = vif.fixed_ips[0].address
    for guest, own in ((server, here), (friend, there)):
        await guest.dhcp()
        await guest.built(own)
    async with await server.listen(22), await server.listen(23, V6):
        assert await friend.reaches(v4, 22)
        assert await friend.reaches(here, 23)
        (before,) = (await cloud.wiring.found()).dhcp_servers
        await cloud.down()
        await cloud.up()
        assert (await cloud.wiring.found()).dhcp_servers == (before,)
        assert await friend.reaches(v4, 22)
        assert await friend.reaches(here, 23)


@pytest.mark.spec("EMN-49")
async def test_a_guest_cannot_speak_for_another_address(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    server, (here,), _ = await plugged(cloud, "server", net)
    liar, (own,), _ = await plugged(cloud, "liar", net)
    await server.built(here)
    await liar.built(own)
    lie = "fd77::bad"
    async with await server.listen(22, V6):
        liar.run("ip", "addr", "add", f"{lie}/64", "dev", "eth0", "nodad")
        assert not await liar.connects(here, 22, source=lie)
        assert await liar.reaches(here, 22, source=own)
        (port,) = await cloud.network.ports_of("liar")
        await cloud.update_port(port.id, allowed_address_pairs=[AddressPair("fd77::b00/120")])
        await cloud.allow(cloud.default, direction="ingress", ethertype="IPv6", protocol="tcp",
                          remote_ip_prefix="fd77::bad/128")
        assert await liar.reaches(here, 22, source=lie)
        liar.run("ip", "link", "set", "eth0", "address", "52:54:00:00:00:01")
        assert not await liar.connects(here, 22, source=own)


def icmp(guest: Guest, body: bytes, to: str) -> None:
    """Send a message that routers and neighbours believe, as its hop limit says that it comes from the link."""
    with guest.socket(socket.SOCK_RAW, V6, socket.IPPROTO_ICMPV6) as sender:
        index = int(guest.run("ip", "-o", "link", "show", "eth0").partition(":")[0])
        for option in (socket.IPV6_UNICAST_HOPS, socket.IPV6_MULTICAST_HOPS):
            sender.setsockopt(socket.IPPROTO_IPV6, option, 255)
        sender.sendto(body, (to, 0, 0, index))


@pytest.mark.spec("EMN-49")
async def test_a_guest_is_no_router_and_answers_for_itself_only(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    server, (here,), _ = await plugged(cloud, "server", net)
    victim, (there,), _ = await plugged(cloud, "victim", net)
    rogue, (own,), rogue_mac = await plugged(cloud, "rogue", net)
    for guest, address in ((server, here), (victim, there), (rogue, own)):
        await guest.built(address)
    hardware = bytes.fromhex(rogue_mac.replace(":", ""))
    advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    async with await server.listen(22, V6), await rogue.listen(22, V6):
        assert await victim.reaches(here, 22)
        assert await victim.reaches(own, 22)
        before = victim.run("ip", "-6", "neigh", "show", here).split()
        claims = {address: struct.pack("!BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(V6, address) +
                  b"\x02\x01" + hardware for address in (here, own)}
        victim.run("ip", "-6", "neigh", "replace", own, "lladdr", "52:54:00:00:00:01", "dev", "eth0", "nud", "stale")
        icmp(rogue, advert, "ff02::1")
        icmp(rogue, claims[here], "ff02::1")
        icmp(rogue, claims[own], "ff02::1")  # what it says of itself is believed, so what came before has arrived
        async with asyncio.timeout(LIMIT):
            while rogue_mac not in await asyncio.to_thread(victim.run, "ip", "-6", "neigh", "show", own):
                pass
        assert before[before.index("lladdr") + 1] in victim.run("ip", "-6", "neigh", "show", here)
        routes = victim.run("ip", "-6", "route", "show", "default")
        assert routes.count("via") == 1 and "via fe80::1 " in routes
        (port,) = await cloud.network.ports_of("rogue")
        await cloud.update_port(port.id, security_groups=[], port_security_enabled=False)
        icmp(rogue, advert, "ff02::1")
        assert await rogue.connects(there, 22) is False
        assert victim.run("ip", "-6", "route", "show", "default").count("via") == 1


@pytest.mark.spec("EMN-10", "EMN-14")
async def test_a_router_joins_ipv6_networks_without_translation(cloud: Cloud) -> None:
    first = await network(cloud, "fd77::/64", SLAAC, name="first")
    second = await network(cloud, "fd78::/64", SLAAC, name="second")
    one, (here,), _ = await plugged(cloud, "one", first)
    two, (there,), _ = await plugged(cloud, "two", second)
    await one.built(here)
    await two.built(there)
    async with await one.listen(22, V6), await two.listen(22, V6):
        assert not await one.connects(there, 22)
        id_ = await router(cloud, first, second)
        assert await peer_of(one, there, 22) == here  # the default group judges across networks too
        assert await peer_of(two, here, 22) == there
        await change_router(cloud, id_, admin_state_up=False)
        assert not await one.connects(there, 22)
        await change_router(cloud, id_, admin_state_up=True)
        assert await two.reaches(here, 22)


async def test_guests_reach_nothing_of_the_machine_by_ipv6_but_its_services(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    guest, (here,), _ = await plugged(cloud, "one", net)
    await guest.built(here)
    with socket.socket(V6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", 8774))
        listener.listen()
        assert not await guest.connects("fd77::1", 8774)
    assert pings(guest, "fd77::1")


async def test_guests_join_multicast_groups(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    listener, (here,), _ = await plugged(cloud, "listener", net)
    speaker, (there,), _ = await plugged(cloud, "speaker", net)
    stranger, (elsewhere,), _ = await plugged(cloud, "stranger", net, ())
    for guest, address in ((listener, here), (speaker, there), (stranger, elsewhere)):
        await guest.built(address)
    index = {guest: int(guest.run("ip", "-o", "link", "show", "eth0").partition(":")[0])
             for guest in (listener, speaker, stranger)}
    with listener.socket(socket.SOCK_DGRAM, V6) as receiver:
        receiver.bind(("::", 5353))
        group = socket.inet_pton(V6, "ff05::fb")
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("@I", index[listener]))
        for guest in (stranger, speaker):
            with guest.socket(socket.SOCK_DGRAM, V6) as sender:
                sender.sendto(guest.tap.encode(), ("ff05::fb", 5353, 0, index[guest]))
        heard = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(receiver, 100), LIMIT)
        assert heard == speaker.tap.encode()


async def test_ipv6_leaves_no_trace(cloud: Cloud) -> None:
    net = await network(cloud, "fd77::/64", SLAAC)
    await plugged(cloud, "one", net)
    assert tool("sysctl", "-n", "net.ipv6.conf.all.forwarding") == "1\n"
    for guest in cloud.guests:
        guest.close()
    cloud.guests.clear()
    await cloud.wiring.remove_all()
    assert "fwmark" not in tool("ip", "-6", "rule")
    assert tool("nft", "list", "ruleset") == ""
    assert tool("sysctl", "-n", "net.ipv6.conf.all.forwarding") == "0\n"


async def test_a_machine_with_ipv4_networks_only_is_left_alone(cloud: Cloud) -> None:
    await cloud.guest("one", await cloud.network.bootstrap(PROJECT, cidr=CIDR))
    assert "table ip6" not in tool("nft", "list", "tables")
    assert tool("sysctl", "-n", "net.ipv6.conf.all.forwarding") == "0\n"


@pytest.mark.spec("EMN-29")
async def test_guests_without_ipv4_reach_the_metadata_service(cloud: Cloud) -> None:
    async def ask(guest: Guest) -> bytes:
        index = int(guest.run("ip", "-o", "link", "show", "eth0").partition(":")[0])
        loop = asyncio.get_running_loop()
        with guest.socket(family=V6) as client:
            await asyncio.wait_for(loop.sock_connect(client, ("fe80::a9fe:a9fe", 80, 0, index)), LIMIT)
            await loop.sock_sendall(client, b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while data := await asyncio.wait_for(loop.sock_recv(client, 4096), LIMIT):
                answer += data
            return answer

    net = await network(cloud, "fd77::/64", SLAAC)
    one, (here,), _ = await plugged(cloud, "11111111-1111-4111-8111-111111111111", net)
    two, (there,), _ = await plugged(cloud, "22222222-2222-4222-8222-222222222222", net)
    await one.built(here)
    await two.built(there)
    of_one, of_two = await ask(one), await ask(two)
    assert of_one.startswith(b"HTTP/1.1 200 ") and of_two.startswith(b"HTTP/1.1 200 ")
    assert of_one != of_two
