"""The network service (OpenStack: Neutron)."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.network import BoundDevice, PortNeed, Vif
from kilonova.services.security_groups import SecurityGroups


class NetworkSummary(msgspec.Struct, frozen=True, kw_only=True):
    """guarantees: its ports ask for resources, unless they say otherwise. physical_network: the one that it is on; its
    ports are devices of hosts."""

    id: str
    name: str
    project_id: str
    shared: bool = False
    external: bool = False
    has_subnets: bool = True
    guarantees: bool = False
    physical_network: str = ""
    mtu: int = 1500


class PortAddress(msgspec.Struct, frozen=True):
    address: str
    subnet_id: str


class PortSummary(msgspec.Struct, frozen=True, kw_only=True):
    """need: what it asks of its host, None for nothing."""

    id: str
    network_id: str
    project_id: str
    device_id: str = ""
    device_owner: str = ""
    binding_host: str = ""
    vif_type: str = "bridge"
    mac: str = ""
    addresses: tuple[str, ...] = ()
    fixed_ips: tuple[PortAddress, ...] = ()
    status: str = "DOWN"
    need: PortNeed | None = None


class PortRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A port to be made for an instance.

    Args:
        key: makes the call repeatable: a second call with the same key returns the port of the first.
        security_groups: ids or names, resolved within the project.
        foreign: also on a network that the project may not use.
    """

    key: str
    network_id: str
    project_id: str
    instance_uuid: str
    host: str
    availability_zone: str = ""
    fixed_ip: str | None = None
    security_groups: tuple[str, ...] = ("default",)
    tag: str | None = None
    foreign: bool = False


class FloatingIpSummary(msgspec.Struct, frozen=True, kw_only=True):
    """pool: name of its network. The last three say what it stands for, if anything."""

    id: str
    address: str
    network_id: str
    pool: str
    port_id: str | None = None
    fixed_address: str | None = None
    device_id: str = ""


class NetworkService(SecurityGroups, Protocol):
    """The calls the compute service makes. All are idempotent. All raise ServiceUnavailable when the service
    is down, which is worth a retry; every other error is final."""

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        """Networks the caller may use: all, or those among `ids` that exist (missing ones are left out)."""
        ...

    async def automatic_network(self, project_id: str) -> str | None:
        """The network that a project gets without having made one, made if it is missing; None if this cloud gives
        none. Spec: EMN-16."""
        ...

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        """Raises PortNotFound."""
        ...

    async def create_port(self, request: PortRequest) -> str:
        """Make a port owned by the instance and bind it to the host; returns its id.

        Raises:
            Conflict: the address is in use, or no address is left. OverQuota. NetworkNotFound.
        """
        ...

    async def bind_port(self, port_id: str, instance_uuid: str, host: str, *, availability_zone: str = "",
                        tag: str | None = None) -> None:
        """Give an existing port to the instance on this host. Binding it again to the same is no change.

        Raises:
            PortNotFound; Conflict: the port belongs to another device.
        """
        ...

    async def serve_ports(
        self, instance_uuid: str, providers: dict[str, dict[str, str]], devices: dict[str, BoundDevice]
    ) -> None:
        """Let the bindings of an instance's ports name who serves what they ask for: uuids of providers by port and
        name of the group, and the device that each is which is one. Ports that are not named are left alone, and so is
        one that is gone."""
        ...

    async def unbind_port(self, port_id: str, instance_uuid: str) -> None:
        """Take the port from the instance, keeping it. No error if it is gone or no longer the instance's."""
        ...

    async def go_to_host(self, instance_uuid: str, host: str, *, availability_zone: str = "") -> None:
        """Bind all ports of an instance to a host."""
        ...

    async def leave_host(self, instance_uuid: str, host: str) -> None:
        """Unbind the ports of an instance that are bound to this host. They stay the instance's, with their
        addresses."""
        ...

    async def delete_port(self, port_id: str) -> None:
        """No error if it is gone."""
        ...

    async def discard_port(self, key: str) -> None:
        """Delete the port that `create_port` made for this key. No error if there is none."""
        ...

    async def add_address(self, port_id: str, known: tuple[str, ...]) -> None:
        """Give a port one more address of its network, unless it has others than the known ones already.

        Raises:
            PortNotFound; Conflict: no address is left.
        """
        ...

    async def set_addresses(self, port_id: str, addresses: tuple[str, ...]) -> None:
        """Let a port have these addresses and no others. No error if it is gone.

        Raises:
            Conflict: another port has one of them.
        """
        ...

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        """All ports whose device is the instance: the way tear-down finds them. Spec: NET-09."""
        ...

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        """What the guest gets: its interfaces, in the order in which it got them, with addresses, routes, tap names."""
        ...

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = (), host: str | None = None) -> None:
        """Delete every port of the instance but `keep_ports`, which are unbound and kept. Spec: NET-21.

        Args:
            host: leave out the ports that are bound to another one.
        """
        ...

    async def floating_ips(self, context: RequestContext) -> list[FloatingIpSummary]:
        """Those of the caller's project."""
        ...

    async def create_floating_ip(self, context: RequestContext, network_id: str) -> FloatingIpSummary:
        """Raises NetworkNotFound, InvalidInput (not external), OverQuota, Conflict (no address is left)."""
        ...

    async def delete_floating_ip(self, context: RequestContext, id_: str) -> None:
        """Raises NotFound."""
        ...

    async def associate_floating_ip(
        self, context: RequestContext, id_: str, port_id: str | None, fixed_address: str | None = None
    ) -> None:
        """Let it stand for an address of a port, or for nothing.

        Raises:
            NotFound: it, the port or a way between them. InvalidInput. Conflict: the address has one already.
        """
        ...
