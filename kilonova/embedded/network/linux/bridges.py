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
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from kilonova.domain.errors import KilonovaError
from kilonova.embedded.network.linux.command import find, run
from kilonova.embedded.network.linux.names import METADATA_ADDRESS, NUMBER_MASK, Names
from kilonova.embedded.network.wiring import NetworkPlan

_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_RULE_PRIORITY = 1000


class Bridges:
    """Makes and removes the bridges of one installation.

    Args:
        directory: remembers what must be put back at the end.
    """

    def __init__(self, names: Names, directory: Path) -> None:
        self._names = names
        self._directory = directory
        self._ip = find("ip", "iproute2")

    async def prepare(self) -> None:
        """Let bridged packets pass the ip hooks and let the machine forward. Raises KilonovaError with a hint."""
        if not _bridge_hooks():
            await run([find("modprobe", "kmod"), "br_netfilter"])
        if not _bridge_hooks():
            raise KilonovaError("The kernel has no br_netfilter.", hint="load the module br_netfilter")
        self._start_forwarding()

    async def make(self, plan: NetworkPlan, exists: bool) -> None:
        """Make the bridge of a network what the plan says, whatever it was."""
        name, number = self._names.bridge(plan.segment), self._names.number(plan.segment)
        if not exists:
            await run([
                self._ip, "link", "add", "name", name, "type", "bridge", "stp_state", "0", "forward_delay", "0",
                "mcast_snooping", "0", "nf_call_iptables", "1",
            ])
        _disable_ipv6(name)
        wanted = addresses(plan)
        commands = [f"link set dev {name} address {self._names.mac(plan.segment)} mtu {plan.mtu} up"]
        for address in await self._addresses(name) - set(wanted):
            commands.append(f"addr del {address} dev {name}")
        commands += [f"addr replace {address} dev {name} noprefixroute" for address in wanted]
        table = self._names.routing_table(plan.segment)
        commands += await self._route_changes(name, table, plan)
        if number not in await self._rules():
            commands.append(
                f"rule add pref {_RULE_PRIORITY} fwmark {number:#x}/{NUMBER_MASK:#x} lookup {table}"
            )
        await run([self._ip, "-batch", "-"], "".join(f"{command}\n" for command in commands))

    async def join(self, plan: NetworkPlan, others: Iterable[NetworkPlan]) -> None:
        """Lead from a network to those that its routers join it with, and to no others."""
        table = self._names.routing_table(plan.segment)
        own = {subnet.cidr for subnet in plan.subnets}
        wanted = {
            subnet.cidr: self._names.bridge(other.segment) for other in others for subnet in other.subnets
            if subnet.cidr not in own
        }
        held = {route["dst"]: route.get("dev") for route in json.loads(
            await run([self._ip, "-j", "route", "show", "table", str(table)]) or "[]"
        )}
        commands = [f"route del {cidr} table {table}" for cidr in held if cidr not in own and cidr not in wanted]
        commands += [f"route replace {cidr} dev {device} scope link table {table}"
                     for cidr, device in wanted.items() if held.get(cidr) != device]
        if commands:
            await run([self._ip, "-batch", "-"], "".join(f"{command}\n" for command in commands))

    async def remove(self, segment: int, exists: bool) -> None:
        """Remove a bridge with its addresses, routes and rule."""
        if exists:
            await run([self._ip, "link", "delete", "dev", self._names.bridge(segment)])
        await self._remove_rule(self._names.number(segment))

    async def remove_rules_but(self, segments: set[int]) -> None:
        """Remove the routing rules of this installation's networks that are not among these."""
        kept = {self._names.number(segment) for segment in segments}
        for number in await self._rules() - kept:
            await self._remove_rule(number)

    def _start_forwarding(self) -> None:
        if _FORWARD.read_text().strip() == "0":
            (self._directory / "forwarding-was-off").touch()
            _FORWARD.write_text("1\n")

    def restore_forwarding(self) -> None:
        """Put forwarding back to what it was before the first `prepare`."""
        mark = self._directory / "forwarding-was-off"
        if mark.exists():
            _FORWARD.write_text("0\n")
            mark.unlink()

    async def _remove_rule(self, number: int) -> None:
        if number in await self._rules():
            await run([self._ip, "rule", "del", "pref", str(_RULE_PRIORITY), "fwmark", f"{number:#x}/{NUMBER_MASK:#x}"])

    async def _addresses(self, name: str) -> set[str]:
        found = json.loads(await run([self._ip, "-j", "-4", "addr", "show", "dev", name]) or "[]")
        return {f"{entry['local']}/{entry['prefixlen']}" for link in found for entry in link.get("addr_info", ())}

    async def _rules(self) -> set[int]:
        """The networks of this installation that have a rule, by number."""
        found: list[dict[str, Any]] = json.loads(await run([self._ip, "-j", "rule", "show"]) or "[]")
        ours = (rule for rule in found if rule.get("priority") == _RULE_PRIORITY and "fwmark" in rule)
        marks = {int(rule["fwmark"], 16) for rule in ours}
        return {mark for mark in marks if mark & ~0xFFF == self._names.hash}

    async def _route_changes(self, name: str, table: int, plan: NetworkPlan) -> list[str]:
        """Commands that give the network its own table, and a route in the main one where nothing is in the way."""
        cidrs = [IPv4Network(subnet.cidr) for subnet in plan.subnets]
        held = [(device, route) for device, route in main_routes() if device == name]
        commands = [f"route del {route} dev {name}" for _, route in held if route not in cidrs]
        commands += [f"route replace {cidr} dev {name} scope link table {table}" for cidr in cidrs]
        others = [route for device, route in main_routes() if device != name]
        for subnet, cidr in zip(plan.subnets, cidrs, strict=True):
            source = subnet.gateway or subnet.dhcp_address
            if source and not any(cidr.overlaps(other) for other in others):
                commands.append(f"route replace {cidr} dev {name} scope link src {source}")
        return commands


def _bridge_hooks() -> bool:
    return Path("/proc/sys/net/bridge").exists()


def _disable_ipv6(name: str) -> None:
    """Guests must not reach the machine by link-local addresses, which are not filtered."""
    switch = Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6")
    if switch.exists():
        switch.write_text("1\n")


def addresses(plan: NetworkPlan) -> list[str]:
    """What the bridge answers to: DHCP, gateway, routers, floating IPs, metadata."""
    found = []
    for subnet in plan.subnets:
        length = IPv4Network(subnet.cidr).prefixlen
        found += [f"{ip}/{length}" for ip in (subnet.dhcp_address, subnet.gateway) if ip]
    held = {address.partition("/")[0] for address in found}
    found += [f"{ip}/32" for ip in plan.answers_to if ip not in held]
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


def in_the_way(cidr: str, prefix: str) -> str | None:
    """Why guests cannot have this range here: the machine itself uses it. None if they can.

    Args:
        prefix: devices whose names begin so are our own bridges.
    """
    wanted = ipaddress.IPv4Network(cidr)
    for device, route in main_routes():
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
