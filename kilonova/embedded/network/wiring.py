"""What the network service wants of a machine's data path, and the in-memory twin of the real one.

The service describes networks, ports and security groups as plain plans; a wiring makes the machine match them.
Calls only record what is wanted and return at once; `settle` waits until the machine matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from kilonova.embedded.network.addressing import DhcpOption, HostRoute, version_of
from kilonova.embedded.network.physical_schema import Physical


class SubnetPlan(msgspec.Struct, frozen=True, kw_only=True):
    """dhcp_address: address of the DHCP port, None without DHCP. ra_mode, address_mode: of IPv6, see
    `kilonova.embedded.network.schema.Subnet`."""

    id: str
    cidr: str
    gateway: str | None
    dhcp_address: str | None
    dns: tuple[str, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    ra_mode: str | None = None
    address_mode: str | None = None

    @property
    def version(self) -> int:
        return version_of(self.cidr)


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A network.

    Args:
        segment: its number within the installation, 1 to 4095. mtu: bytes.
        answers_to: addresses of routers and floating IPs on it.
        physical: what it is outside; None for a network of this machine, which is the gateway of its subnets.
    """

    id: str
    segment: int
    mtu: int
    admin_state_up: bool = True
    subnets: tuple[SubnetPlan, ...] = ()
    answers_to: tuple[str, ...] = ()
    physical: Physical | None = None

    @property
    def versions(self) -> frozenset[int]:
        """Of IP, that its guests can speak."""
        return frozenset(subnet.version for subnet in self.subnets)

    def is_gateway_of(self, subnet: SubnetPlan) -> bool:
        """Whether the machine has the gateway's address: outside, only if a router of this cloud has it."""
        return subnet.gateway is not None and (self.physical is None or subnet.gateway in self.answers_to)

    def own_addresses(self, version: int) -> list[str]:
        """What the machine answers to in the subnets of a version of IP, without routers and floating IPs."""
        return [ip for subnet in self.subnets if subnet.version == version
                for ip in (subnet.dhcp_address, subnet.gateway if self.is_gateway_of(subnet) else None) if ip]

    def gateway_outside(self, version: int) -> str | None:
        """The router of the world outside that leads on from here."""
        return next((subnet.gateway for subnet in self.subnets
                     if subnet.version == version and subnet.gateway and not self.is_gateway_of(subnet)), None)


class FloatingPlan(msgspec.Struct, frozen=True):
    """An address on the external network that stands for a fixed one on another."""

    address: str
    network_id: str
    fixed_address: str


class RouterPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A router.

    Args:
        network_ids, network_ids_v6: that it joins, for IPv4 and IPv6.
        works: it is up, and scheduled to the agent of this machine.
        external_network_id: behind its gateway, None without one.
        gateway: its address there, which what leaves gets; "" if nothing is translated.
    """

    id: str
    network_ids: tuple[str, ...]
    works: bool = True
    external_network_id: str | None = None
    gateway: str = ""
    network_ids_v6: tuple[str, ...] = ()
    floating: tuple[FloatingPlan, ...] = ()


class PortPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A bound port.

    Args:
        addresses: (subnet id, address). pairs: (MAC, prefix) the guest may use besides its own.
        secured: filter its traffic; the groups say what passes.
    """

    id: str
    network_id: str
    mac: str
    addresses: tuple[tuple[str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    groups: tuple[str, ...] = ()
    secured: bool = True
    admin_state_up: bool = True
    hostname: str = ""
    dhcp_options: tuple[DhcpOption, ...] = ()


class RulePlan(msgspec.Struct, frozen=True, kw_only=True):
    """protocol: number, None for any. port_min, port_max: ports, or ICMP type and code."""

    ingress: bool
    version: int = 4
    protocol: int | None = None
    port_min: int | None = None
    port_max: int | None = None
    remote_prefix: str | None = None
    remote_group: str | None = None


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    rules: tuple[RulePlan, ...] = ()


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What of this installation exists on the machine, by name, for the audit. addresses: that bridges have, after the
    name of the bridge."""

    bridges: tuple[str, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    uplinks: tuple[str, ...] = ()
    dhcp_servers: tuple[int, ...] = ()
    firewall_tables: tuple[str, ...] = ()
    taps: tuple[str, ...] = ()


class BridgeListener(Protocol):
    """Is told when the bridge of a network appears and goes (the metadata service listens on each)."""

    async def opened(self, network_id: str, bridge: str) -> None: ...

    async def closed(self, network_id: str) -> None: ...


PlugListener = Callable[[str, bool], None]
"""Called with (port id, True) when the tap of a wired port is there, with False when it has gone."""


class Wiring(Protocol):
    """The data path of one machine. Every call is idempotent."""

    @property
    def host(self) -> str:
        """Name of the machine."""
        ...

    def serves(self, host: str) -> bool:
        """Whether ports can be bound to that host."""
        ...

    def bridge(self, segment: int) -> str:
        """Name of the bridge of a network, "" if there are none."""
        ...

    def uplink(self, segment: int) -> str:
        """Name of the device by which the VLAN of a network leaves this machine, "" if there are none."""
        ...

    def wires(self, physical_network: str) -> bool:
        """Whether ports that are no devices can be on that network of the world outside."""
        ...

    def refuses(self, cidr: str) -> str | None:
        """Why a subnet of that range cannot be used on this machine, None if it can."""
        ...

    async def start(self, on_plug: PlugListener, bridges: BridgeListener | None) -> None:
        """Begin to watch devices. Raises KilonovaError with a hint if the machine lacks something."""
        ...

    async def restore(self, networks: list[NetworkPlan], ports: list[PortPlan], groups: list[GroupPlan]) -> None:
        """Make the machine match exactly these plans, adopting what already runs, removing what is left over."""
        ...

    def network(self, plan: NetworkPlan) -> None: ...

    def port(self, plan: PortPlan) -> None: ...

    def group(self, plan: GroupPlan) -> None: ...

    def routers(self, plans: tuple[RouterPlan, ...]) -> None:
        """These and no others; their networks have been told before."""
        ...

    def forget_network(self, network_id: str) -> None: ...

    def forget_port(self, port_id: str) -> None: ...

    def forget_group(self, group_id: str) -> None: ...

    async def settle(self, network_id: str) -> None:
        """Wait until the machine matches all plans given so far for that network.

        Raises:
            Retryable: it does not in time.
        """
        ...

    async def plugged(self, port_id: str) -> None:
        """The agent has made the port's tap: join it to its bridge if it is not, and tell the listener."""
        ...

    async def found(self) -> Found: ...

    async def close(self) -> None:
        """Stop watching. Bridges, DHCP and filters stay for the guests that run."""
        ...

    async def remove_all(self) -> None:
        """Remove everything of this installation from the machine."""
        ...


TAP = "tap"


def tap_name(port_id: str) -> str:
    """Name of the tap device of a port: at most 15 characters, as the kernel demands."""
    return f"{TAP}{port_id[:11]}"


class FakeWiring:
    """The wiring of the fake driver: no devices, no root. A bound port is plugged at once.

    Args:
        physical_networks: those that ordinary ports can be on. plugs_at_once: False leaves that to `plugged`.
    """

    def __init__(self, host: str = "localhost", physical_networks: Iterable[str] = (), *,
                 plugs_at_once: bool = True) -> None:
        self.host = host
        self._physical_networks = frozenset(physical_networks)
        self.networks: dict[str, NetworkPlan] = {}
        self.ports: dict[str, PortPlan] = {}
        self.groups: dict[str, GroupPlan] = {}
        self.routed: tuple[RouterPlan, ...] = ()
        self._plugs_at_once = plugs_at_once
        self._on_plug: PlugListener = lambda port_id, up: None

    def serves(self, host: str) -> bool:
        return True

    def bridge(self, segment: int) -> str:
        return ""

    def uplink(self, segment: int) -> str:
        return ""

    def wires(self, physical_network: str) -> bool:
        return physical_network in self._physical_networks

    def refuses(self, cidr: str) -> str | None:
        return None

    async def start(self, on_plug: PlugListener, bridges: BridgeListener | None) -> None:
        self._on_plug = on_plug

    async def restore(self, networks: list[NetworkPlan], ports: list[PortPlan], groups: list[GroupPlan]) -> None:
        self.networks = {plan.id: plan for plan in networks}
        self.groups = {plan.id: plan for plan in groups}
        self.ports = {}
        for plan in ports:
            self.port(plan)

    def network(self, plan: NetworkPlan) -> None:
        self.networks[plan.id] = plan

    def port(self, plan: PortPlan) -> None:
        fresh = plan.id not in self.ports
        self.ports[plan.id] = plan
        if fresh and self._plugs_at_once:
            self._on_plug(plan.id, True)

    def group(self, plan: GroupPlan) -> None:
        self.groups[plan.id] = plan

    def routers(self, plans: tuple[RouterPlan, ...]) -> None:
        self.routed = plans

    def forget_network(self, network_id: str) -> None:
        self.networks.pop(network_id, None)

    def forget_port(self, port_id: str) -> None:
        self.ports.pop(port_id, None)

    def forget_group(self, group_id: str) -> None:
        self.groups.pop(group_id, None)

    async def settle(self, network_id: str) -> None:
        return

    async def plugged(self, port_id: str) -> None:
        if port_id in self.ports:
            self._on_plug(port_id, True)

    async def found(self) -> Found:
        return Found()

    async def close(self) -> None:
        return

    async def remove_all(self) -> None:
        self.networks, self.ports, self.groups = {}, {}, {}
