"""One dnsmasq for each network that has DHCP, which also announces the machine as router of IPv6.

The servers are daemons of their own: they outlive this process and are adopted by the next one, which knows them
by the whole of their command line. Addresses come from a hosts file only, rewritten and re-read at each change.

Spec: EMN-07, EMN-08.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import structlog

from kilonova.embedded.network.addressing import SLAAC, STATEFUL, STATELESS, DhcpOption, version_of
from kilonova.embedded.network.linux import releases
from kilonova.embedded.network.linux.bridges import resolvers
from kilonova.embedded.network.linux.command import find, run
from kilonova.embedded.network.linux.names import METADATA_ADDRESS
from kilonova.embedded.network.views import host_name
from kilonova.embedded.network.wiring import NetworkPlan, PortPlan, SubnetPlan

log = structlog.get_logger(__name__)

LEASE = 3600
"""Seconds. Changed options reach a guest at half of it."""

ANNOUNCED = 600
"""Seconds between router advertisements that nobody asks for."""

STOP_LIMIT = 5.0
_OPTION_NAMES = {
    "bootfile-name", "domain-name", "domain-search", "hostname", "mtu", "ntp-server", "server-ip-address",
    "tftp-server", "tftp-server-address",
}
_OPTION_VALUE = re.compile(r"[A-Za-z0-9 ._:/@?&=%+~,\[\]-]{1,255}")


class DhcpServer:
    """The DHCP server of one network.

    Args:
        directory: its files, private to this network. bridge: where it listens.
        on_exit: called when the server is found to have ended although it should run.
    """

    def __init__(self, directory: Path, bridge: str, on_exit: Callable[[], None]) -> None:
        self._directory = directory
        self._bridge = bridge
        self._on_exit = on_exit
        self._watched: int | None = None
        self._leased: frozenset[tuple[str, str]] = frozenset()

    @property
    def pid(self) -> int | None:
        """The running server that carries our pid file on its command line, however it was started."""
        try:
            pid = int((self._directory / "pid").read_text())
        except (OSError, ValueError):
            return None
        marker = f"--pid-file={self._directory / 'pid'}".encode()
        return pid if marker in command_line(pid) else None

    async def ensure(self, plan: NetworkPlan, ports: list[PortPlan]) -> None:
        """Run with exactly these networks, hosts and options; stop if no subnet has DHCP."""
        served = [subnet for subnet in plan.subnets if is_served(subnet)]
        if not served:
            await self.stop()
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        tagged = self._tagged()
        changed = self._write("hosts", hosts_file(served, ports))
        changed |= self._write("options", options_file(plan, served, ports))
        leases = frozenset((port.mac, ip) for port in ports for _, ip in port.addresses)
        arguments = self._arguments(served)
        pid = self.pid
        same = pid is not None and command_line(pid) == [argument.encode() for argument in arguments]
        # dnsmasq 2.90 crashes when it reads a hosts file with tags again while it has leases
        must_restart = changed and (tagged or self._tagged())
        if pid is not None and same and not must_restart:
            self._release(served, self._leased - leases)
            if changed:
                os.kill(pid, signal.SIGHUP)
        else:
            await self.stop()
            self._drop_stale_leases(leases)
            await run(arguments)
        self._leased = leases
        self._watch()

    async def stop(self) -> None:
        """End the server, if it runs."""
        self.unwatch()
        pid = self.pid
        if pid is None:
            return
        handle = os.pidfd_open(pid)
        try:
            os.kill(pid, signal.SIGTERM)
            if not await _ended(handle):
                os.kill(pid, signal.SIGKILL)
                await _ended(handle)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def unwatch(self) -> None:
        """Stop waiting for the end of the server."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None

    def _watch(self) -> None:
        self.unwatch()
        pid = self.pid
        if pid is None:
            self._on_exit()
            return
        self._watched = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._watched, self._exited)

    def _exited(self) -> None:
        self.unwatch()
        self._on_exit()

    def _arguments(self, served: list[SubnetPlan]) -> list[str]:
        directory = self._directory
        ranges = [f"--dhcp-range=set:s{index},{_range(subnet)}" for index, subnet in enumerate(served)]
        announced = [subnet for subnet in served if subnet.ra_mode]
        if any(subnet.ra_mode == STATEFUL for subnet in announced):
            ranges.append("--enable-ra")
        if announced:
            is_router = any(subnet.gateway for subnet in announced)
            ranges.append(f"--ra-param={self._bridge},{ANNOUNCED},{3 * ANNOUNCED if is_router else 0}")
        return [
            find("dnsmasq", "dnsmasq-base"), "--conf-file=/dev/null", "--port=0", "--no-hosts", "--no-resolv",
            f"--interface={self._bridge}", "--except-interface=lo", "--bind-interfaces",
            f"--pid-file={directory / 'pid'}", f"--dhcp-leasefile={directory / 'leases'}",
            f"--dhcp-hostsfile={directory / 'hosts'}", f"--dhcp-optsfile={directory / 'options'}",
            "--dhcp-authoritative", "--quiet-dhcp", "--dhcp-lease-max=65536",
            f"--user={_user(directory)}", *ranges,
        ]

    def _write(self, name: str, content: str) -> bool:
        """Replace a file; whether it changed."""
        path = self._directory / name
        if path.exists() and path.read_text() == content:
            return False
        fresh = path.with_suffix(".new")
        fresh.write_text(content)
        fresh.chmod(0o644)
        fresh.replace(path)
        return True

    def _tagged(self) -> bool:
        """Whether the hosts file gives any port a tag, for options of its own."""
        path = self._directory / "hosts"
        return path.exists() and ",set:" in path.read_text()

    def _drop_stale_leases(self, wanted: frozenset[tuple[str, str]]) -> None:
        """Before a start: forget leases of ports that are gone, so that others can have their addresses."""
        path = self._directory / "leases"
        if path.exists():
            addresses = {ip for _, ip in wanted}
            lines = [line for line in path.read_text().splitlines() if _is_wanted(line.split(), wanted, addresses)]
            path.write_text("".join(f"{line}\n" for line in lines))

    def _release(self, served: list[SubnetPlan], gone: frozenset[tuple[str, str]]) -> None:
        """Tell the running server, in the name of a guest that is gone, that its address is free."""
        self.release_v6([ip for _, ip in gone])
        for mac, ip in gone:
            for subnet in served:
                if subnet.version == version_of(ip) == 4 and IPv4Address(ip) in IPv4Network(subnet.cidr):
                    for server in (subnet.dhcp_address, subnet.gateway):
                        if server:
                            releases.send_v4(self._bridge, server, mac, ip)

    def release_v6(self, gone: Iterable[str]) -> None:
        """The same for IPv6, in which a lease is a client's: that of a rebuilt server is another one."""
        path = self._directory / "leases"
        if self.pid is not None and path.exists():
            for release in releases.of_leases(path.read_text(), frozenset(gone)):
                try:
                    releases.send_v6(self._bridge, release)
                except OSError as error:  # the bridge has gone; the lease ends by itself
                    log.warning("lease could not be given back", address=release.address, error=str(error))


def hosts_file(served: list[SubnetPlan], ports: list[PortPlan]) -> str:
    """One line for each address: MAC, tag of the port if it has options of its own, address, name."""
    subnets = {subnet.id for subnet in served if subnet.version == 4 or subnet.address_mode == STATEFUL}
    lines = []
    for port in ports:
        for subnet_id, ip in port.addresses:
            if subnet_id in subnets:
                name = port.hostname.partition(".")[0] or host_name(ip)
                tag = f"set:{_tag(port)}," if port.dhcp_options else ""
                lines.append(f"{port.mac},{tag}{ip if version_of(ip) == 4 else f'[{ip}]'},{name}")
    return "".join(f"{line}\n" for line in sorted(lines))


def options_file(plan: NetworkPlan, served: list[SubnetPlan], ports: list[PortPlan]) -> str:
    """What guests are told: MTU, gateway, name servers, routes (classless ones replace the gateway)."""
    lines = [f"option:mtu,{plan.mtu}"]
    for index, subnet in enumerate(served):
        tag = f"tag:s{index}"
        if subnet.version == 6:
            lines += [f"{tag},option6:dns-server,{','.join(f'[{ip}]' for ip in subnet.dns)}"] if subnet.dns else []
            continue
        router = (subnet.gateway if plan.is_gateway_of(subnet) else subnet.dhcp_address) or ""
        routes = [f"{METADATA_ADDRESS}/32,{router}"]
        routes += [f"{route.destination},{route.nexthop}" for route in subnet.routes if "." in route.destination]
        routes += [f"0.0.0.0/0,{subnet.gateway}"] if subnet.gateway else []
        servers = [ip for ip in subnet.dns if version_of(ip) == 4]
        if not servers and plan.is_gateway_of(subnet):
            servers = resolvers()
        lines += [f"{tag},option:router" + (f",{subnet.gateway}" if subnet.gateway else ""),
                  f"{tag},121,{','.join(routes)}", f"{tag},249,{','.join(routes)}"]
        lines += [f"{tag},option:dns-server,{','.join(servers)}"] if servers else []
    for port in ports:
        lines += [
            f"tag:{_tag(port)},{option_name(option)},{option.opt_value}"
            for option in port.dhcp_options if usable_option(option)
        ]
    return "".join(f"{line}\n" for line in lines)


def is_served(subnet: SubnetPlan) -> bool:
    """Whether guests are told anything of a subnet: those of IPv6 without modes configure themselves."""
    return subnet.dhcp_address is not None and (subnet.version == 4 or bool(subnet.ra_mode or subnet.address_mode))


def _range(subnet: SubnetPlan) -> str:
    """How addresses of a subnet are given out, or built by the guests themselves."""
    if subnet.version == 4:
        cidr = IPv4Network(subnet.cidr)
        return f"{cidr.network_address},static,{cidr.netmask},{LEASE}"
    cidr_v6 = IPv6Network(subnet.cidr)
    keyword = {SLAAC: "ra-only", STATELESS: "ra-stateless"}.get(subnet.ra_mode or "", "static")
    return f"{cidr_v6.network_address},{keyword},{cidr_v6.prefixlen},{LEASE}"


def _is_wanted(lease: list[str], wanted: frozenset[tuple[str, str]], addresses: set[str]) -> bool:
    """Whether a line of the file of leases is of a port that is there: "duid" and ours, or time, MAC (for IPv6 a
    number), address, name and ID of the client."""
    if lease[:1] == ["duid"]:
        return True
    return lease[2] in addresses if ":" in lease[2] else tuple(lease[1:3]) in wanted


def usable_option(option: DhcpOption) -> bool:
    """Whether a port's own option can be served: one we know, with a value that cannot break out of its line."""
    name = option.opt_name
    known = name in _OPTION_NAMES or (name.isascii() and name.isdigit() and 0 < int(name) < 255)
    return known and option.ip_version == 4 and bool(_OPTION_VALUE.fullmatch(option.opt_value or ""))


def option_name(option: DhcpOption) -> str:
    return option.opt_name if option.opt_name.isdigit() else f"option:{option.opt_name}"


def command_line(pid: int) -> list[bytes]:
    """The arguments of a process; empty if it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def _tag(port: PortPlan) -> str:
    return f"p{port.id.replace('-', '')}"


def _user(directory: Path) -> str:
    """Who the server becomes: nobody, unless that user could not read its files."""
    reachable = all(parent.stat().st_mode & 0o001 for parent in (directory, *directory.parents))
    return "nobody" if reachable else "root"


async def _ended(handle: int) -> bool:
    """Wait for a process to end; False if it does not in time."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), STOP_LIMIT)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
    return True
