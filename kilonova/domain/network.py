"""Networking as the compute service sees it: ports bound to an instance, and what a guest gets from them."""

from __future__ import annotations

from typing import Any

import msgspec


class Route(msgspec.Struct, frozen=True):
    destination: str
    nexthop: str


class Subnet(msgspec.Struct, frozen=True, kw_only=True):
    """version: of IP. address_mode: how guests get IPv6 addresses, None if nobody tells them."""

    id: str
    cidr: str
    version: int = 4
    gateway: str | None = None
    dns: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    dhcp: bool = True
    address_mode: str | None = None


class FixedIp(msgspec.Struct, frozen=True, kw_only=True):
    address: str
    subnet: Subnet
    floating: tuple[str, ...] = ()


class Vif(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of a guest.

    Args:
        id: the port. devname: name of the tap device on the host.
        bridge: the bridge on the host that the tap joins ("" with the fake driver).
        mtu: bytes. active: the network service has wired it.
    """

    id: str
    mac: str
    network_id: str
    network_name: str
    devname: str
    bridge: str = ""
    vif_type: str = "bridge"
    vnic_type: str = "normal"
    mtu: int = 1500
    fixed_ips: tuple[FixedIp, ...] = ()
    active: bool = False
    preserve_on_delete: bool = False
    tag: str | None = None
    profile: dict[str, Any] = {}


class PortNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a port asks of its host: amounts of resource classes, of one provider with these traits."""

    port_id: str
    resources: dict[str, int]
    traits: tuple[str, ...] = ()


class RequestedNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `networks` in POST /servers.

    Args:
        foreign: an administrator asked for a network that the project of the server may not use by itself.
        need: what the port asks for.
    """

    network_id: str | None = None
    port_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None
    foreign: bool = False
    need: PortNeed | None = None
