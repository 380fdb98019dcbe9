"""The data path on a real kernel: bridges, DHCP, filters, metadata, and their return after crashes."""

import asyncio
import os
import pwd
import signal
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from network_machine import Guest, Namespace, connects, own_machine, reaches, tool

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.embedded.network import networks, ports, security
from kilonova.embedded.network.addressing import AddressPair, DhcpOption
from kilonova.embedded.network.bodies import FixedIpBody, GroupBody, PortBody, RuleBody, SubnetBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.linux.wiring import LinuxWiring
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import Found
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.service import MetadataService
from kilonova.metadata.vendor_data import VendorData
from kilonova.services.identity import Token
from kilonova.services.network import PortRequest

PROJECT = "a" * 32
CIDR = "10.77.0.0/24"
LIMIT = 20.0


class NoIdentity:
    async def validate(self, token: str, **_: Any) -> Token:
        raise AssertionError("not used")

    async def project_exists(self, project_id: str) -> bool:
        return True


def admin() -> RequestContext:
    return RequestContext(request_id="", user_id="", project_id=PROJECT, roles=("admin",), is_admin=True)


class Cloud:
    """One installation on the test's machine."""

    def __init__(self, directory: Path, token: str, interfaces: Mapping[str, str] | None = None) -> None:
        self.directory = directory / token
        self.directory.mkdir(parents=True, exist_ok=True)
        self.token = token
        self.interfaces = interfaces or {}
        self.events: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.guests: list[Guest] = []
        self.passwords: dict[str, str] = {}

    async def up(self) -> None:
        self.database = Database.open(f"sqlite:///{self.directory}/network.db")
        self.wiring = LinuxWiring(self.token, self.directory / "wiring", SystemClock(), "here", self.interfaces)
        self.network = EmbeddedNetwork(
            self.database, SystemClock(), NoIdentity(), "http://identity", self.wiring, self._event
        )
        self.metadata = MetadataService(self.network.instance_at, self._lookup, self._keep, VendorData())
        await self.network.start(self.metadata)

    async def down(self) -> None:
        await self.network.close()
        await self.metadata.close()
        await self.database.close()

    async def _event(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        self.events.put_nowait((name, tag))

    async def _lookup(self, instance_uuid: str) -> GuestMetadata | None:
        return GuestMetadata(instance_uuid=instance_uuid, name=instance_uuid, hostname=f"guest-{instance_uuid}",
                             project_id=PROJECT, flavor_name="small")

    async def _keep(self, instance_uuid: str, password: str) -> bool:
        return self.passwords.setdefault(instance_uuid, password) is password

    async def event(self, name: str, port_id: str) -> None:
        async with asyncio.timeout(LIMIT):
            while await self.events.get() != (name, port_id):
                pass

    async def until(self, ready: Callable[[Found], bool]) -> None:
        """Wait for the machine to be so; each look takes a command, so this does not spin."""
        async with asyncio.timeout(LIMIT):
            while not ready(await self.wiring.found()):
                pass

    async def port(self, instance: str, network_id: str, groups: tuple[str, ...] = ("default",)) -> str:
        return await self.network.create_port(PortRequest(
            key=instance, network_id=network_id, project_id=PROJECT, instance_uuid=instance, host="here",
            security_groups=groups,
        ))

    async def guest(self, instance: str, network_id: str, groups: tuple[str, ...] = ("default",)) -> tuple[Guest, str]:
        """A plugged guest with its address, waited for; returns it and its address."""
        port_id = await self.port(instance, network_id, groups)
        (vif,) = await self.network.vifs(instance)
        guest = Guest(vif.devname, vif.mac, vif.bridge, self.directory)
        self.guests.append(guest)
        await self.event("network-vif-plugged", port_id)
        await guest.dhcp()
        return guest, vif.fixed_ips[0].address

    async def change(self, unit: Callable[..., object]) -> object:
        """What a call of the HTTP API does: a unit of work and its effects, then wired."""
        result = await self.network._records.change(unit)
        for network_id in list(self.wiring._networks):
            await self.wiring.settle(network_id)
        return result

    async def allow(self, group: str, **rule: object) -> str:
        """Add a rule; returns its id."""
        def unit(conn: object, effects: Effects) -> str:
            made = security.create_rule(conn, admin(), RuleBody(security_group_id=group, **rule), 0.0)
            effects.groups.append(group)
            return made.id

        return str(await self.change(unit))

    async def forbid(self, rule_id: str) -> None:
        def unit(conn: object, effects: Effects) -> None:
            effects.groups.append(security.delete_rule(conn, admin(), rule_id).group_id)

        await self.change(unit)

    async def update_port(self, port_id: str, **fields: object) -> None:
        def unit(conn: object, effects: Effects) -> None:
            effects.ports.append(
                ports.update_port(conn, admin(), port_id, PortBody(**fields), 0.0, self.wiring.serves)
            )

        await self.change(unit)

    @property
    def default(self) -> str:
        return security.default_group_id(PROJECT)


@pytest.fixture
def machine() -> Iterator[None]:
    with own_machine():
        tool("sysctl", "-qw", "net.ipv4.ip_forward=0")
        yield


@pytest.fixture
async def cloud(machine: None, tmp_path: Path) -> AsyncIterator[Cloud]:
    made = Cloud(tmp_path, "t1")
    await made.up()
    yield made
    for guest in made.guests:
        guest.close()
    await made.wiring.remove_all()
    await made.down()


@pytest.mark.spec("EMN-07")
async def test_a_guest_gets_its_address_routes_and_mtu(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    port_id = await cloud.port("one", net)
    (vif,) = await cloud.network.vifs("one")
    guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
    cloud.guests.append(guest)
    await cloud.event("network-vif-plugged", port_id)
    state = await guest.dhcp()
    assert f"inet {vif.fixed_ips[0].address}/24" in state and "mtu 1500" in state
    assert "default via 10.77.0.1" in state and "169.254.169.254 via 10.77.0.1" in state


@pytest.mark.spec("EMN-28", "EMN-61")
async def test_a_port_follows_its_tap(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    (port,) = await cloud.network.ports_of("one")
    assert port.status == "ACTIVE"
    guest.unplug()
    await cloud.event("network-vif-unplugged", port.id)
    (port,) = await cloud.network.ports_of("one")
    assert port.status == "DOWN"


@pytest.mark.spec("EMN-46", "EMN-48")
async def test_security_groups_decide_who_reaches_a_guest(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    alone = await cloud.change(lambda conn, effects: security.create_group(
        conn, admin(), GroupBody(name="alone"), 0.0).id)
    server, address = await cloud.guest("server", net)
    friend, _ = await cloud.guest("friend", net)
    stranger, _ = await cloud.guest("stranger", net, ("alone",))
    async with await server.listen(22), await server.listen(23):
        assert await friend.reaches(address, 22)  # both are in the default group
        assert not await stranger.connects(address, 22)
        (port,) = await cloud.network.ports_of("friend")
        await cloud.update_port(port.id, fixed_ips=[FixedIpBody(ip_address="10.77.0.99")])
        friend.run("ip", "addr", "add", "10.77.0.99/24", "dev", "eth0")
        assert await friend.reaches(address, 22, source="10.77.0.99")
        rule = await cloud.allow(cloud.default, direction="ingress", protocol="tcp", port_range_min=22,
                                 port_range_max=22, remote_ip_prefix=CIDR)
        assert await stranger.reaches(address, 22)
        assert not await stranger.connects(address, 23)
        with stranger.socket() as client:
            assert await reaches(client, address, 22)
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT)
            await loop.sock_sendall(client, b"once")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT) == b"once"
            await cloud.forbid(rule)
            await loop.sock_sendall(client, b"again")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(client, 100), 1.0)
        assert not await stranger.connects(address, 22)
        (port,) = await cloud.network.ports_of("stranger")
        await cloud.update_port(port.id, security_groups=[str(alone), cloud.default])
        assert await stranger.reaches(address, 22)


async def test_the_machine_is_judged_by_the_same_rules(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    server, address = await cloud.guest("server", net)
    async with await server.listen(22):
        with socket.socket() as client:
            client.setblocking(False)
            assert not await connects(client, address, 22)
        await cloud.allow(cloud.default, direction="ingress", protocol="tcp", port_range_min=1, port_range_max=100)
        with socket.socket() as client:
            client.setblocking(False)
            assert await reaches(client, address, 22)


async def test_guests_reach_nothing_of_the_machine_but_its_services(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 8774))
    listener.listen()
    with listener:
        assert not await guest.connects("10.77.0.1", 8774)
        assert await guest.reaches("169.254.169.254", 80)


@pytest.mark.spec("EMN-49")
async def test_a_guest_cannot_speak_for_another(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    server, address = await cloud.guest("server", net)
    liar, own = await cloud.guest("liar", net)
    async with await server.listen(22):
        assert await liar.reaches(address, 22)
        liar.run("ip", "addr", "add", "10.77.0.200/24", "dev", "eth0")
        assert not await liar.connects(address, 22, source="10.77.0.200")
        assert await liar.reaches(address, 22, source=own)
        (port,) = await cloud.network.ports_of("liar")
        await cloud.update_port(port.id, allowed_address_pairs=[AddressPair("10.77.0.192/28")])
        await cloud.allow(cloud.default, direction="ingress", protocol="tcp", remote_ip_prefix="10.77.0.200/32")
        assert await liar.reaches(address, 22, source="10.77.0.200")
        liar.run("ip", "link", "set", "eth0", "address", "52:54:00:00:00:01")
        assert not await liar.connects(address, 22, source=own)


@pytest.mark.spec("EMN-49")
async def test_a_guest_cannot_serve_dhcp(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    victim, address = await cloud.guest("victim", net)
    rogue, _ = await cloud.guest("rogue", net)
    loop = asyncio.get_running_loop()
    with victim.socket(socket.SOCK_DGRAM) as receiver:
        receiver.bind(("0.0.0.0", 68))
        for port, arrives in ((1067, True), (67, False)):  # the default group lets all else through
            with rogue.socket(socket.SOCK_DGRAM) as sender:
                sender.bind(("0.0.0.0", port))
                sender.sendto(b"offer", (address, 68))
            if arrives:
                assert await asyncio.wait_for(loop.sock_recv(receiver, 100), LIMIT) == b"offer"
            else:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(loop.sock_recv(receiver, 100), 1.0)


@pytest.mark.spec("EMN-26")
async def test_a_port_that_is_down_carries_nothing(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    server, address = await cloud.guest("server", net)
    friend, _ = await cloud.guest("friend", net)
    (port,) = await cloud.network.ports_of("server")
    async with await server.listen(22):
        assert await friend.reaches(address, 22)
        await cloud.update_port(port.id, admin_state_up=False)
        assert not await friend.connects(address, 22)
        await cloud.update_port(port.id, admin_state_up=True)
        assert await friend.reaches(address, 22)


async def test_networks_with_the_same_range_are_apart_and_both_reach_out(cloud: Cloud) -> None:
    outside = Namespace()
    tool("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", outside.path)
    tool("ip", "addr", "add", "198.51.100.1/24", "dev", "uplink")
    tool("ip", "link", "set", "uplink", "up")
    outside.run("ip", "addr", "add", "198.51.100.9/24", "dev", "eth0")
    outside.run("ip", "link", "set", "eth0", "up")
    outside.run("ip", "route", "add", "10.77.0.0/24", "via", "198.51.100.1")
    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    second = await cloud.network.bootstrap(PROJECT, name="second", cidr=CIDR)
    one, here = await cloud.guest("one", first)
    two, there = await cloud.guest("two", second)
    assert here == there
    await cloud.allow(cloud.default, direction="ingress", remote_ip_prefix="0.0.0.0/0")
    loop = asyncio.get_running_loop()
    async with await outside.listen(80), await one.listen(22), await two.listen(22):
        for guest in (one, two):
            with guest.socket() as client:
                assert await reaches(client, "198.51.100.9", 80)
                seen = await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT)
                assert seen == b"198.51.100.1\n"  # translated
        assert not await outside.connects(here, 22)  # nothing comes in unasked
    third = await cloud.network.bootstrap(PROJECT, name="third", cidr="10.78.0.0/24")
    neighbour, _ = await cloud.guest("three", third)
    async with await one.listen(22):
        assert not await neighbour.connects(here, 22)  # no router joins the networks
    outside.close()


@pytest.mark.spec("EMN-29")
async def test_metadata_tells_guests_apart_by_network_and_address_only(cloud: Cloud) -> None:
    async def ask(guest: Guest, headers: str = "") -> bytes:
        with guest.socket() as client:
            assert await reaches(client, "169.254.169.254", 80)
            request = f"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(client, request.encode())
            answer = b""
            while data := await asyncio.wait_for(loop.sock_recv(client, 4096), LIMIT):
                answer += data
            return answer

    first = await cloud.network.bootstrap(PROJECT, name="first", cidr=CIDR)
    second = await cloud.network.bootstrap(PROJECT, name="second", cidr=CIDR)
    one, _ = await cloud.guest("11111111-1111-4111-8111-111111111111", first)
    two, _ = await cloud.guest("22222222-2222-4222-8222-222222222222", second)
    of_one, of_two = await ask(one), await ask(two)
    assert of_one.startswith(b"HTTP/1.1 200 ") and of_two.startswith(b"HTTP/1.1 200 ")
    assert of_one != of_two
    claim = "X-Forwarded-For: 10.77.0.99\r\nX-Instance-ID: 22222222-2222-4222-8222-222222222222\r\n"
    assert await ask(one, claim) == of_one


@pytest.mark.spec("EMN-07")
async def test_an_address_serves_its_next_owner_at_once(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)

    async def take(instance: str) -> tuple[Guest, str]:
        port = await cloud.network.create_port(PortRequest(
            key=instance, network_id=net, project_id=PROJECT, instance_uuid=instance, host="here",
            fixed_ip="10.77.0.50",
        ))
        (vif,) = await cloud.network.vifs(instance)
        guest = Guest(vif.devname, vif.mac, vif.bridge, cloud.directory)
        cloud.guests.append(guest)
        return guest, port

    first, port = await take("first")
    assert "10.77.0.50/24" in await first.dhcp()
    first.unplug()
    await cloud.network.delete_port(port)
    second, _ = await take("second")
    assert "10.77.0.50/24" in await second.dhcp()


@pytest.mark.spec("EMN-07")
async def test_changed_name_servers_reach_the_next_renewal(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)

    def change(conn: object, effects: Effects) -> None:
        (subnet,) = networks.subnets_of(conn, net)
        networks.update_subnet(conn, admin(), subnet.id, SubnetBody(dns_nameservers=["203.0.113.53"]), 0.0)
        effects.networks.append(net)

    await cloud.change(change)
    guest.run("ip", "route", "flush", "dev", "eth0")
    await guest.dhcp()
    assert guest.told() == "dns=203.0.113.53\n"


async def test_a_killed_dhcp_server_is_started_again(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    (pid,) = (await cloud.wiring.found()).dhcp_servers
    os.kill(pid, signal.SIGKILL)
    await cloud.until(lambda found: found.dhcp_servers not in ((), (pid,)))
    guest.run("ip", "route", "flush", "dev", "eth0")
    await guest.dhcp()


async def test_lost_filters_and_bridges_come_back(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    server, address = await cloud.guest("server", net)
    stranger, _ = await cloud.guest("stranger", net, ())
    tool("nft", "flush", "ruleset")
    await cloud.until(lambda found: len(found.firewall_tables) == 2)
    async with await server.listen(22):
        assert not await stranger.connects(address, 22)
    (port,) = await cloud.network.ports_of("server")
    before = await cloud.wiring.found()
    tool("ip", "link", "delete", *before.bridges)
    await cloud.event("network-vif-plugged", port.id)
    parts = (before.bridges, before.firewall_tables, before.taps)
    await cloud.until(lambda found: (found.bridges, found.firewall_tables, found.taps) == parts)
    friend, _ = await cloud.guest("friend", net)
    async with await server.listen(22):
        assert await friend.reaches(address, 22)
        assert await friend.reaches("169.254.169.254", 80)


async def test_ports_may_come_while_a_bridge_gets_its_taps_back(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    await cloud.guest("one", net)
    before = await cloud.wiring.found()
    (joined,) = cloud.wiring._ports.values()
    join = cloud.wiring._join

    async def join_as_another_comes(tap: str, bridge: str) -> None:
        await join(tap, bridge)
        cloud.wiring.port(msgspec.structs.replace(joined, id=str(uuid.uuid4()), addresses=()))

    with monkeypatch.context() as patch:
        patch.setattr(cloud.wiring, "_join", join_as_another_comes)
        tool("ip", "link", "delete", *before.bridges)
        await cloud.event("network-vif-plugged", joined.id)
    await cloud.guest("two", net)


async def test_a_bridge_that_is_lost_while_it_is_made_again_comes_back(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    before = await cloud.wiring.found()
    opened, lost = cloud.metadata.opened, asyncio.Event()

    async def lose_it_once(network_id: str, bridge: str) -> None:
        await opened(network_id, bridge)
        if not lost.is_set():
            tool("ip", "link", "delete", bridge)
            await cloud.until(lambda found: found.bridges == ())
            lost.set()

    monkeypatch.setattr(cloud.metadata, "opened", lose_it_once)
    tool("ip", "link", "delete", *before.bridges)
    await asyncio.wait_for(lost.wait(), LIMIT)
    await cloud.until(lambda found: (found.bridges, found.taps) == (before.bridges, before.taps))
    await cloud.wiring.settle(net)
    assert await guest.reaches("169.254.169.254", 80)


async def test_the_wiring_outlives_an_error_that_nobody_foresaw(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    apply, failed = cloud.wiring._apply, asyncio.Event()

    async def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("nobody foresaw this")
        await apply()

    monkeypatch.setattr(cloud.wiring, "_apply", fail_once)
    cloud.wiring._touch()
    await asyncio.wait_for(failed.wait(), LIMIT)
    await cloud.guest("one", net)


async def test_a_purge_needs_no_records(cloud: Cloud) -> None:
    await cloud.guest("one", await cloud.network.bootstrap(PROJECT, cidr=CIDR))
    await cloud.down()
    purge = LinuxWiring(cloud.token, cloud.directory / "wiring", SystemClock(), "here", {})
    await purge.start(lambda port_id, up: None, None)
    assert (await purge.found()).dhcp_servers
    await purge.remove_all()
    left = await purge.found()
    assert (left.bridges, left.dhcp_servers, left.firewall_tables) == ((), (), ())
    assert "fwmark" not in tool("ip", "rule")
    assert tool("sysctl", "-n", "net.ipv4.ip_forward") == "0\n"
    await purge.close()
    await cloud.up()


async def test_dhcp_servers_give_up_their_rights_where_their_files_allow_it(machine: None) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)  # noqa: PTH101
        cloud = Cloud(Path(name), "t3")
        await cloud.up()
        try:
            net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
            for instance in ("one", "two"):
                await cloud.guest(instance, net)
            (pid,) = (await cloud.wiring.found()).dhcp_servers
            assert int(tool("stat", "-c", "%u", f"/proc/{pid}")) == pwd.getpwnam("nobody").pw_uid
        finally:
            for guest in cloud.guests:
                guest.close()
            await cloud.wiring.remove_all()
            await cloud.down()


@pytest.mark.spec("EMN-63")
async def test_a_crashed_control_plane_finds_all_running_again(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    server, address = await cloud.guest("server", net)
    friend, _ = await cloud.guest("friend", net)
    gone, _ = await cloud.guest("gone", net)
    before = await cloud.wiring.found()
    with friend.socket() as client:
        async with await server.listen(22):
            assert await reaches(client, address, 22)
            loop = asyncio.get_running_loop()
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT)
            await cloud.down()  # leaves on the machine what a crash leaves
            gone.unplug()
            cloud.events = asyncio.Queue()
            await cloud.up()
            after = await cloud.wiring.found()
            assert after.dhcp_servers == before.dhcp_servers
            assert after.bridges == before.bridges
            (kept,) = await cloud.network.ports_of("server")
            (lost,) = await cloud.network.ports_of("gone")
            told = [await asyncio.wait_for(cloud.events.get(), LIMIT) for _ in range(3)]
            assert ("network-vif-plugged", kept.id) in told and ("network-vif-unplugged", lost.id) in told
            assert ("network-vif-unplugged", kept.id) not in told
            await loop.sock_sendall(client, b"still here")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), LIMIT) == b"still here"


async def test_a_server_that_died_while_we_were_away_is_started(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    (pid,) = (await cloud.wiring.found()).dhcp_servers
    await cloud.down()
    os.kill(pid, signal.SIGKILL)
    await cloud.up()
    (fresh,) = (await cloud.wiring.found()).dhcp_servers
    assert fresh != pid
    guest.run("ip", "route", "flush", "dev", "eth0")
    await guest.dhcp()


async def test_a_recycled_pid_is_neither_adopted_nor_killed(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    await cloud.guest("one", net)
    (pid,) = (await cloud.wiring.found()).dhcp_servers
    await cloud.down()
    os.kill(pid, signal.SIGKILL)
    (pid_file,) = (cloud.directory / "wiring").glob("dhcp-*/pid")
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    pid_file.write_text(f"{bystander.pid}\n")
    await cloud.up()
    assert bystander.returncode is None
    assert bystander.pid not in (await cloud.wiring.found()).dhcp_servers
    bystander.kill()
    await bystander.wait()


async def test_two_installations_share_a_machine_and_one_leaves_no_trace(cloud: Cloud, tmp_path: Path) -> None:
    await cloud.guest("one", await cloud.network.bootstrap(PROJECT, cidr=CIDR))
    other = Cloud(tmp_path, "t2")
    await other.up()
    try:
        await other.guest("two", await other.network.bootstrap(PROJECT, cidr=CIDR))
        kept = await cloud.wiring.found()
        assert not set(kept.bridges) & set((await other.wiring.found()).bridges)
    finally:
        for guest in other.guests:
            guest.close()
        await other.wiring.remove_all()
    left = await other.wiring.found()
    assert (left.bridges, left.dhcp_servers, left.firewall_tables) == ((), (), ())
    await other.down()
    assert await cloud.wiring.found() == kept
    for guest in cloud.guests:
        guest.close()
    cloud.guests.clear()
    await cloud.wiring.remove_all()
    assert "lookup 268" not in tool("ip", "rule") and "fwmark" not in tool("ip", "rule")
    assert tool("nft", "list", "ruleset") == ""
    assert "kn" not in tool("ip", "-o", "link")


async def test_the_machine_s_own_ranges_are_refused(cloud: Cloud) -> None:
    tool("ip", "link", "add", "lan", "type", "bridge")
    tool("ip", "addr", "add", "192.0.2.1/24", "dev", "lan")
    tool("ip", "link", "set", "lan", "up")
    assert "192.0.2.0/24" in str(cloud.wiring.refuses("192.0.0.0/16"))
    assert cloud.wiring.refuses(CIDR) is None


@pytest.mark.spec("EMN-07")
async def test_options_of_a_port_reach_its_guest_only(cloud: Cloud) -> None:
    net = await cloud.network.bootstrap(PROJECT, cidr=CIDR)
    guest, _ = await cloud.guest("one", net)
    other, _ = await cloud.guest("two", net)
    (port,) = await cloud.network.ports_of("one")
    hostile = DhcpOption("domain-name", "x\ndhcp-script=/bin/sh")
    await cloud.update_port(port.id, extra_dhcp_opts=[DhcpOption("mtu", "1400"), hostile])
    for wired, mtu in ((guest, "mtu 1400"), (other, "mtu 1500")):
        wired.run("ip", "route", "flush", "dev", "eth0")
        assert mtu in await wired.dhcp()
