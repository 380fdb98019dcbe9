"""What subnets may be: their ranges, modes, gateways and pools. Spec: EMN-05, EMN-08."""

from __future__ import annotations

import ipaddress
from typing import Any

from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.embedded.network import addresses
from kilonova.embedded.network.addresses import Cidr
from kilonova.embedded.network.addressing import AUTOMATIC, IPV6_MODES, Pool

LONGEST = {4: 30, 6: 127}
"""Lengths of the prefixes that subnets can have, by version."""

SHORTEST = {4: 8, 6: 16}
LEAST_MTU_V6 = 1280
"""Bytes: links with less carry no IPv6."""

_HOST_BITS_OF_MAC = 64


def checked_cidr(values: dict[str, Any]) -> Cidr:
    """The range asked for. Raises InvalidInput for one that guests cannot have."""
    version = values.get("ip_version", 4)
    if version not in (4, 6):
        raise InvalidInput(f"Invalid input for ip_version: {version} is not in [4, 6].")
    text = values.get("cidr") or ""
    try:
        cidr = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidInput(f"Invalid input for cidr: '{text}' is not a valid IP subnet.") from error
    if cidr.version != version:
        raise InvalidInput(f"Invalid input for cidr: '{text}' does not match the ip_version '{version}'.")
    unusable = cidr.is_multicast or cidr.is_loopback or cidr.is_link_local or int(cidr.network_address) == 0
    if unusable or not SHORTEST[version] <= cidr.prefixlen <= LONGEST[version]:
        raise InvalidInput(f"Invalid input for cidr: {cidr} cannot be used for guests.")
    return cidr


def checked_modes(values: dict[str, Any], cidr: Cidr) -> tuple[str | None, str | None]:
    """What is announced and how guests get addresses. Raises InvalidInput if the two contradict. Spec: EMN-08."""
    names = ("ipv6_ra_mode", "ipv6_address_mode")
    ra_mode, address_mode = (values.get(name) for name in names)
    for name in names:
        if values.get(name) not in (None, *IPV6_MODES):
            raise InvalidInput(f"Invalid input for {name}: '{values[name]}' is not in {list(IPV6_MODES)}.")
        if values.get(name) and cidr.version == 4:
            raise InvalidInput(f"Invalid input for operation: {name} is not valid when ip_version is 4.")
        if values.get(name) and not values.get("enable_dhcp", True):
            raise InvalidInput(
                "Invalid input for operation: ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set "
                "to False."
            )
    if ra_mode and address_mode and ra_mode != address_mode:
        raise InvalidInput(
            f"Invalid input for operation: ipv6_ra_mode set to '{ra_mode}' with ipv6_address_mode set to "
            f"'{address_mode}' is not valid. If both attributes are set, they must be the same value."
        )
    if {ra_mode, address_mode} & set(AUTOMATIC) and cidr.prefixlen != _HOST_BITS_OF_MAC:
        raise InvalidInput(
            f"Invalid input for operation: Invalid CIDR {cidr} for IPv6 address mode. Addresses are built from MACs, "
            f"which requires the prefix to be /64."
        )
    return ra_mode, address_mode


def check_mtu(mtu: int, versions: set[int]) -> None:
    """Raises InvalidInput for a network that is too small for its subnets."""
    if 6 in versions and mtu < LEAST_MTU_V6:
        raise InvalidInput(f"Invalid input for mtu: IPv6 subnets need {LEAST_MTU_V6} bytes at least, not {mtu}.")


def checked_gateway(gateway: str | None, cidr: Cidr) -> str | None:
    if gateway is None:
        return None
    address = addresses.parse_ip(gateway)
    if not addresses.is_host(address, cidr):
        raise InvalidInput(f"Invalid input for gateway_ip: {gateway} is not a host address of {cidr}.")
    return str(address)


def checked_dns(servers: list[str]) -> tuple[str, ...]:
    return tuple(str(addresses.parse_ip(server)) for server in servers)


def checked_pools(pools: tuple[Pool, ...] | None, cidr: Cidr, gateway: str | None) -> tuple[Pool, ...]:
    """The pools asked for, or all host addresses but the gateway."""
    at = type(cidr.network_address)
    first, last = int(cidr.network_address) + 1, int(cidr.broadcast_address) - (1 if cidr.version == 4 else 0)
    if pools is None:
        cuts = [int(addresses.parse_ip(gateway))] if gateway else []
        spans = [(first, cuts[0] - 1), (cuts[0] + 1, last)] if cuts else [(first, last)]
        return tuple(Pool(str(at(low)), str(at(high))) for low, high in spans if low <= high)
    previous = 0
    ends = [(addresses.parse_ip(pool.start), addresses.parse_ip(pool.end)) for pool in pools]
    for low, high in sorted((int(start), int(end)) for start, end in ends):
        if not first <= low <= high <= last:
            raise InvalidInput(f"The allocation pool {at(low)}-{at(high)} is not within {cidr}.")
        if low <= previous:
            raise Conflict("The allocation pools of the subnet overlap.")
        previous = high
    if gateway and in_pools(gateway, pools):
        raise Conflict(f"Gateway ip {gateway} conflicts with an allocation pool of the subnet.")
    return tuple(Pool(str(start), str(end)) for start, end in ends)


def in_pools(address: str, pools: tuple[Pool, ...]) -> bool:
    number = int(addresses.parse_ip(address))
    return any(int(addresses.parse_ip(p.start)) <= number <= int(addresses.parse_ip(p.end)) for p in pools)
