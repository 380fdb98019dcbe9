"""Where networks of the world outside leave the machine: interfaces, or VLANs on them, as ports of their bridges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.embedded.network.addressing import STATEFUL
from kilonova.embedded.network.linux.command import find, run
from kilonova.embedded.network.linux.links import LinkMonitor
from kilonova.embedded.network.linux.names import METADATA_ADDRESS, METADATA_ADDRESS_V6, Names
from kilonova.embedded.network.linux.port_rules import Rules, about
from kilonova.embedded.network.wiring import NetworkPlan


class Uplinks:
    """Joins networks to interfaces of the machine.

    Args:
        interfaces: by name of the physical network.
        links: the devices that there are.
    """

    def __init__(self, names: Names, interfaces: Mapping[str, str], links: LinkMonitor) -> None:
        self._names = names
        self._interfaces = interfaces
        self._links = links
        self._joined: dict[str, NetworkPlan] = {}

    def of(self, plan: NetworkPlan) -> str | None:
        """The device by which a network leaves the machine; None if it does not."""
        interface = self._interfaces.get(plan.physical.name) if plan.physical else None
        if interface is None or plan.physical is None:
            return None
        return self._names.uplink(plan.segment) if plan.physical.vlan else interface

    def concern(self, name: str) -> bool:
        """Whether a device leads outside."""
        return name.startswith(self._names.uplink_prefix) or name in self._interfaces.values()

    async def join(self, plan: NetworkPlan) -> None:
        """Join the bridge of a network to the world outside, if it is a part of that.

        Raises:
            KilonovaError: with the reason why the interface cannot be used.
        """
        if plan.physical is None:
            return
        device, bridge = self.of(plan), self._names.bridge(plan.segment)
        if device is None:
            raise KilonovaError(f"No interface of this machine leads to physical network {plan.physical.name}.",
                                hint="name it in agent.physical_networks")
        if self._joined.get(device) == plan and self._links.master_of(device) == bridge:
            return
        interface = self._interfaces[plan.physical.name]
        shown = await self._show(interface)
        if shown is None:
            raise KilonovaError(f"Interface {interface} of physical network {plan.physical.name} is missing.")
        if shown["mtu"] < plan.mtu:
            raise KilonovaError(f"Interface {interface} carries {shown['mtu']} bytes at once, and network {plan.id} "
                                f"wants {plan.mtu}.", hint=f"raise the MTU of {interface} or lower that of the network")
        commands = [f"link set dev {interface} up"]
        if plan.physical.vlan:
            commands += await self._make_vlan(plan, interface, device)
        else:
            _check_free(shown, bridge)
        await run([find("ip", "iproute2"), "-batch", "-"], "".join(
            f"{command}\n" for command in (*commands, f"link set dev {device} master {bridge} up")
        ))
        self._joined[device] = plan

    async def _make_vlan(self, plan: NetworkPlan, interface: str, device: str) -> list[str]:
        """Commands after which the device of a VLAN is there, on this interface and no other."""
        assert plan.physical is not None
        shown = await self._show(device)
        if shown is not None and _is_vlan(shown, interface, plan.physical.vlan):
            return [f"link set dev {device} mtu {plan.mtu}"]
        made = f"link add link {interface} name {device} mtu {plan.mtu} addrgenmode none type vlan " \
               f"id {plan.physical.vlan}"
        return [made] if shown is None else [f"link delete dev {device}", made]

    async def remove(self, segment: int) -> None:
        """Remove the device of a VLAN. An interface goes with the bridge, and stays."""
        device = self._names.uplink(segment)
        if device not in self._links.by_name:
            return
        try:
            await run([find("ip", "iproute2"), "link", "delete", "dev", device])
        except Retryable:
            if device in self._links.by_name:  # else it went meanwhile, with its interface
                raise

    def found(self) -> list[str]:
        """The devices of VLANs of this installation."""
        return sorted(name for name in self._links.by_name if name.startswith(self._names.uplink_prefix))

    async def remove_but(self, plans: list[NetworkPlan]) -> None:
        """Remove the devices of all VLANs but those of these networks."""
        kept = {self._names.uplink(plan.segment) for plan in plans if plan.physical is not None and plan.physical.vlan}
        for name in set(self.found()) - kept:
            await self.remove(int(name.removeprefix(self._names.uplink_prefix)))

    async def _show(self, device: str) -> dict[str, Any] | None:
        """What `ip` tells of a device, None if it is not there."""
        if device not in self._links.by_name:
            return None
        shown: list[dict[str, Any]] = json.loads(
            await run([find("ip", "iproute2"), "-d", "-j", "addr", "show", "dev", device])
        )
        return shown[0]


def _is_vlan(shown: dict[str, Any], interface: str, vlan: int) -> bool:
    return shown.get("link") == interface and shown["linkinfo"].get("info_data", {}).get("id") == vlan


def _check_free(shown: dict[str, Any], bridge: str) -> None:
    """Raises KilonovaError: the machine itself uses the interface, and would lose it."""
    interface, master = shown["ifname"], shown.get("master")
    if master not in (None, bridge):
        raise KilonovaError(f"Interface {interface} is a port of {master} already.")
    if shown.get("linkinfo", {}).get("info_kind") == "bridge":
        raise KilonovaError(f"Interface {interface} is a bridge, which cannot be a port of another.",
                            hint="use networks of type vlan on it, or another interface")
    held = [entry["local"] for entry in shown.get("addr_info", ()) if entry["scope"] == "global"]
    if held:
        raise KilonovaError(f"Interface {interface} has addresses of the machine ({', '.join(held)}), which would be "
                            "cut off.", hint="use networks of type vlan on it, or another interface")


def rules(plan: NetworkPlan) -> tuple[Rules, Rules]:
    """What comes in from outside, and what goes there.

    Metadata and DHCP are this machine's and its guests' alone. Marks mean nothing outside: the machine may see a
    packet again, on another bridge. Tagged frames are those of other networks.
    """
    assert plan.physical is not None
    tagged = () if plan.physical.vlan else ("ether type { 0x8100, 0x88a8 } drop",)
    kept: list[str] = []
    if any(subnet.version == 4 and subnet.dhcp_address for subnet in plan.subnets):
        kept += ["ether type ip udp dport { 67, 68 } drop"]
    if any(subnet.version == 6 and subnet.dhcp_address and subnet.address_mode == STATEFUL for subnet in plan.subnets):
        kept += ["ether type ip6 udp dport { 546, 547 } drop"]
    enter = (
        *tagged, *kept, f"arp daddr ip {METADATA_ADDRESS} drop", f"ip daddr {METADATA_ADDRESS} drop",
        f"ether type ip6 icmpv6 type nd-neighbor-solicit {about(METADATA_ADDRESS_V6)} drop",
        f"ip6 daddr {METADATA_ADDRESS_V6} drop", "accept",
    )
    leave = (*tagged, *kept, f"arp saddr ip {METADATA_ADDRESS} drop", "meta mark set 0x0 accept")
    return enter, leave
