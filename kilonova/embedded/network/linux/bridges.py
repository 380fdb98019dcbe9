"""Bridges, their addresses and the routes to them.

Tenants choose their ranges freely, and two networks may have the same one. So the route to a network lies in a
table of its own, which packets find by their mark; the machine's main table gets one only if nothing there
overlaps, for the convenience of reaching guests from the machine itself.
"""

from __future__ import annotations

import ipaddress
import json
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from kilonova.domain.errors import KilonovaError
from kilonova.embedded.network.addresses import Cidr, built
from kilonova.embedded.network.linux.command import find, run
from kilonova.embedded.network.linux.forwarding import Forwarding
from kilonova.embedded.network.linux.names import (
    METADATA_ADDRESS,
    METADATA_ADDRESS_V6,
    NUMBER_MASK,
    ROUTER_ADDRESS_V6,
    Names,
)
from kilonova.embedded.network.wiring import NetworkPlan

_RULE_PRIORITY = 1000
_VERSIONS = (4, 6)
_IPV6 = Path("/proc/sys/net/ipv6")
_LINK_LOCAL = IPv6Network("fe80::/10")
_LOCAL_ROUTE = 0x80000000
"""Flag of a route in /proc/net/ipv6_route that leads to the machine itself."""


class Bridges:
    """Makes and removes the bridges of one installation.

    Args:
        directory: remembers what must be put back at the end.
    """

    def __init__(self, names: Names, directory: Path) -> None:
        self._names = names
        self._forwarding = Forwarding(directory)
        self._ip = find("ip", "iproute2")

    async def prepare(self) -> None:
        """Let bridged packets pass the ip hooks and let the machine forward. Raises KilonovaError with a hint."""
        if not _bridge_hooks():
            await run([find("modprobe", "kmod"), "br_netfilter"])
        if not _bridge_hooks():
            raise KilonovaError("The kernel has no br_netfilter.", hint="load the module br_netfilter")
        self._forwarding.start()

    async def make(self, plan: NetworkPlan, exists: bool) -> None:
        """Make the bridge of a network what the plan says, whatever it was."""
        name, number = self._names.bridge(plan.segment), self._names.number(plan.segment)
        if not exists:
            await run([
                self._ip, "link", "add", "name", name, "type", "bridge", "stp_state", "0", "forward_delay", "0",
                "mcast_snooping", "0", "nf_call_iptables", "1",
            ])
        speaks_v6 = 6 in plan.versions
        if speaks_v6:
            self._forwarding.start_v6()
        _set_ipv6(name, speaks_v6)
        if plan.physical is not None:
            _answer_for_itself_only(name)
        wanted = addresses(plan, self._names.mac(plan.segment))
        commands = [
            f"link set dev {name} address {self._names.mac(plan.segment)} mtu {plan.mtu} up",
            f"link set dev {name} type bridge nf_call_ip6tables {int(speaks_v6)}",
        ]
        for address in await self._addresses(name) - set(wanted):
            commands.append(f"addr del {address} dev {name}")
        commands += [f"addr replace {address} dev {name} {_manner(address)}" for address in wanted]
        await self._batch(commands)
        for version in _VERSIONS:
            if version == 4 or speaks_v6:
                await self._lead(version, name, number, plan)
            else:
                await self._remove_rule(version, number)

    async def _lead(self, version: int, name: str, number: int, plan: NetworkPlan) -> None:
        """Give the network its routes of one version of IP, and the rule by which packets find them."""
        table = self._names.routing_table(plan.segment)
        commands = await self._route_changes(version, name, table, plan)
        if number not in await self._rules(version):
            commands.append(f"rule add pref {_RULE_PRIORITY} fwmark {number:#x}/{NUMBER_MASK:#x} lookup {table}")
        await self._batch(commands, f"-{version}")

    async def join(self, plan: NetworkPlan, others: Iterable[NetworkPlan], way_out: NetworkPlan | None) -> None:
        """Lead from a network to those that its routers join it with, and to no others.

        Args:
            way_out: the one that its router leads out by.
        """
        table = self._names.routing_table(plan.segment)
        own = {subnet.cidr for subnet in plan.subnets}
        for version in plan.versions:
            wanted = {
                subnet.cidr: _path(self._names.bridge(other.segment)) for other in others for subnet in other.subnets
                if subnet.cidr not in own and subnet.version == version
            } | self._default(version, plan, way_out)
            held = {route["dst"]: _path(route.get("dev"), route.get("gateway")) for route in json.loads(
                await run([self._ip, f"-{version}", "-j", "route", "show", "table", str(table)]) or "[]"
            )}
            commands = [f"route del {cidr} table {table}" for cidr in held if cidr not in own and cidr not in wanted]
            commands += [f"route replace {cidr} {path} table {table}"
                         for cidr, path in wanted.items() if held.get(cidr) != path]
            await self._batch(commands, f"-{version}")

    def _default(self, version: int, *networks: NetworkPlan | None) -> dict[str, str]:
        """The route to everywhere else, by the first of the networks that a router outside leads on from."""
        for network in networks:
            if network is not None and (gateway := network.gateway_outside(version)):
                return {"default": _path(self._names.bridge(network.segment), gateway)}
        return {}

    async def remove(self, segment: int, exists: bool) -> None:
        """Remove a bridge with its addresses, routes and rule."""
        if exists:
            await run([self._ip, "link", "delete", "dev", self._names.bridge(segment)])
        for version in _VERSIONS:
            await self._remove_rule(version, self._names.number(segment))

    async def remove_rules_but(self, segments: set[int]) -> None:
        """Remove the routing rules of this installation's networks that are not among these."""
        kept = {self._names.number(segment) for segment in segments}
        for version in _VERSIONS:
            for number in await self._rules(version) - kept:
                await self._remove_rule(version, number)

    async def all_addresses(self) -> list[tuple[str, str]]:
        """Every bridge of the machine with each of its addresses."""
        listed = json.loads(await run([self._ip, "-j", "addr", "show", "type", "bridge"]) or "[]")
        return [(link["ifname"], entry["local"]) for link in listed if link for entry in link["addr_info"]]

    def restore_forwarding(self) -> None:
        """Put forwarding back to what it was before the first `prepare`."""
        self._forwarding.restore()

    async def _batch(self, commands: list[str], *options: str) -> None:
        if commands:
            await run([self._ip, *options, "-batch", "-"], "".join(f"{command}\n" for command in commands))

    async def _remove_rule(self, version: int, number: int) -> None:
        if number in await self._rules(version):
            await self._batch([f"rule del pref {_RULE_PRIORITY} fwmark {number:#x}/{NUMBER_MASK:#x}"], f"-{version}")

    async def _addresses(self, name: str) -> set[str]:
        found = json.loads(await run([self._ip, "-j", "addr", "show", "dev", name]) or "[]")
        return {f"{entry['local']}/{entry['prefixlen']}" for link in found for entry in link.get("addr_info", ())}

    async def _rules(self, version: int) -> set[int]:
        """The networks of this installation that have a rule, by number."""
        if version == 6 and not _has_ipv6():
            return set()
        found: list[dict[str, Any]] = json.loads(await run([self._ip, f"-{version}", "-j", "rule", "show"]) or "[]")
        ours = (rule for rule in found if rule.get("priority") == _RULE_PRIORITY and "fwmark" in rule)
        marks = {int(rule["fwmark"], 16) for rule in ours}
        return {mark for mark in marks if mark & ~0xFFF == self._names.hash}

    async def _route_changes(self, version: int, name: str, table: int, plan: NetworkPlan) -> list[str]:
        """Commands that give the network its own table, and a route in the main one where nothing is in the way."""
        subnets = [subnet for subnet in plan.subnets if subnet.version == version]
        cidrs = [ipaddress.ip_network(subnet.cidr) for subnet in subnets]
        routes = await self._main_routes(version)
        held = [route for device, route in routes if device == name]
        commands = [f"route del {route} dev {name}" for route in held if route not in cidrs]
        commands += [f"route replace {cidr} {_path(name)} table {table}" for cidr in cidrs]
        if plan.physical is not None:  # the machine itself has its own ways there
            return commands
        others = [route for device, route in routes if device != name]
        for subnet, cidr in zip(subnets, cidrs, strict=True):
            source = subnet.gateway or subnet.dhcp_address
            if source and not any(cidr.overlaps(other) for other in others):
                commands.append(f"route replace {cidr} dev {name} scope link src {source}")
        return commands

    async def _main_routes(self, version: int) -> list[tuple[str, Cidr]]:
        """(device, destination) of the main table, without default routes and those of the links themselves."""
        if version == 4:
            return [(device, route) for device, route in main_routes()]
        listed = json.loads(await run([self._ip, "-6", "-j", "route", "show", "table", "main"]) or "[]")
        ranges = [(route.get("dev", ""), IPv6Network(route["dst"])) for route in listed if route["dst"] != "default"]
        return [(device, route) for device, route in ranges if not route.subnet_of(_LINK_LOCAL)]


def _bridge_hooks() -> bool:
    return Path("/proc/sys/net/bridge").exists()


def _has_ipv6() -> bool:
    return _IPV6.exists()


def _set_ipv6(name: str, on: bool) -> None:
    """Let the machine speak IPv6 on a bridge, with no address but those that we give it, or not at all."""
    directory = _IPV6 / "conf" / name
    if not directory.exists():
        if on:
            raise KilonovaError("The kernel has no IPv6.", hint="remove ipv6.disable from the kernel's command line")
        return
    settings = {"accept_ra": "0", "accept_redirects": "0", "accept_dad": "0", "addr_gen_mode": "1"} if on else {}
    for setting, value in (settings | {"disable_ipv6": "0" if on else "1"}).items():
        (directory / setting).write_text(f"{value}\n")


def _answer_for_itself_only(name: str) -> None:
    """Let a bridge not answer for what other networks here have: outside, those addresses may be somebody else's."""
    (Path("/proc/sys/net/ipv4/conf") / name / "arp_ignore").write_text("1\n")


def _path(device: str, gateway: str | None = None) -> str:
    """Where a route leads: to a network itself, or to a router there."""
    return f"via {gateway} dev {device} onlink" if gateway else f"dev {device} scope link"


def _manner(address: str) -> str:
    """How an address is added: at once, as nobody else can have it, and without a route, but to the link."""
    if ":" not in address:
        return "noprefixroute"
    if address == f"{METADATA_ADDRESS_V6}/128":
        return "nodad noprefixroute preferred_lft 0"  # not the one that the machine speaks from
    return "nodad" if address.startswith("fe80:") else "nodad noprefixroute"


def addresses(plan: NetworkPlan, mac: str) -> list[str]:
    """What a bridge with this MAC answers to: DHCP, gateway, routers, floating IPs, metadata."""
    found = []
    for subnet in plan.subnets:
        length = ipaddress.ip_network(subnet.cidr).prefixlen
        gateway = subnet.gateway if plan.is_gateway_of(subnet) else None
        found += [f"{ip}/{length}" for ip in (subnet.dhcp_address, gateway) if ip]
    held = {address.partition("/")[0] for address in found}
    found += [f"{ip}/{ipaddress.ip_address(ip).max_prefixlen}" for ip in plan.answers_to if ip not in held]
    if 6 in plan.versions:
        is_router = plan.physical is None or any(subnet.ra_mode for subnet in plan.subnets)
        found += [f"{ROUTER_ADDRESS_V6 if is_router else built('fe80::/64', mac)}/64", f"{METADATA_ADDRESS_V6}/128"]
    return list(dict.fromkeys([*found, f"{METADATA_ADDRESS}/32"]))


def main_routes() -> list[tuple[str, IPv4Network]]:
    """(device, destination) of the machine's main table, without default routes."""
    found = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, destination, _, _, _, _, _, mask = line.split()[:8]
        network, netmask = (int.from_bytes(bytes.fromhex(text), sys.byteorder) for text in (destination, mask))
        if netmask:
            found.append((device, IPv4Network((network, netmask.bit_count()))))
    return found


def routes_v6() -> list[tuple[str, IPv6Network]]:
    """(device, destination) of what the machine reaches by IPv6, without default routes and links."""
    table, found = Path("/proc/net/ipv6_route"), []
    for line in table.read_text().splitlines() if table.exists() else ():
        destination, length, *_, flags, device = line.split()
        network = IPv6Network((int(destination, 16), int(length, 16)))
        if network.prefixlen and not int(flags, 16) & _LOCAL_ROUTE and not network.is_multicast \
                and not network.subnet_of(_LINK_LOCAL) and device != "lo":
            found.append((device, network))
    return found


def in_the_way(cidr: str, prefix: str) -> str | None:
    """Why guests cannot have this range here: the machine itself uses it. None if they can.

    Args:
        prefix: devices whose names begin so are our own bridges.
    """
    wanted = ipaddress.ip_network(cidr)
    for device, route in main_routes() if wanted.version == 4 else routes_v6():
        if not device.startswith(prefix) and wanted.overlaps(route):
            return f"overlaps with {route}, which this machine reaches through {device}"
    for server in resolvers():
        if IPv4Address(server) in wanted:
            return f"contains {server}, the name server of this machine"
    return None


def resolvers() -> list[str]:
    """The name servers of the machine that guests can use too."""
    for path in (Path("/run/systemd/resolve/resolv.conf"), Path("/etc/resolv.conf")):
        if not path.exists():
            continue
        words = [line.split() for line in path.read_text().splitlines()]
        found = [parts[1] for parts in words if len(parts) > 1 and parts[0] == "nameserver"]
        usable = [text for text in found if "." in text and not IPv4Address(text).is_loopback]
        if usable:
            return usable
    return []
