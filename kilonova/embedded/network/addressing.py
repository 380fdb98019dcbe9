"""What subnets and ports say about addresses: how guests get them, ranges, routes, further pairs, options of DHCP."""

from __future__ import annotations

import msgspec

SLAAC, STATEFUL, STATELESS = "slaac", "dhcpv6-stateful", "dhcpv6-stateless"
IPV6_MODES = (SLAAC, STATEFUL, STATELESS)
AUTOMATIC = (SLAAC, STATELESS)  # guests build their addresses themselves


class HostRoute(msgspec.Struct, frozen=True):
    destination: str
    nexthop: str


class Pool(msgspec.Struct, frozen=True):
    start: str
    end: str


class AddressPair(msgspec.Struct, frozen=True):
    ip_address: str
    mac_address: str | None = None


class DhcpOption(msgspec.Struct, frozen=True):
    opt_name: str
    opt_value: str | None
    ip_version: int = 4


def version_of(text: str) -> int:
    """Version of IP of an address or range in text form."""
    return 6 if ":" in text else 4
