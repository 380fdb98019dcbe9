"""Addresses and MACs of ports: given out so that no two ports of a network ever share one.

The primary key (network, number) decides; the row lock on the subnet only avoids useless collisions.
"""

from __future__ import annotations

import hashlib
import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec
import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import schema
from kilonova.embedded.network.bodies import FixedIpBody
from kilonova.embedded.network.errors import (
    InvalidIpForNetwork,
    InvalidIpForSubnet,
    IpAddressAlreadyAllocated,
    IpAddressGenerationFailure,
)

MAC_PREFIX = "fa:16:3e"
MAX_FIXED_IPS = 20
Ip = IPv4Address | IPv6Address
Cidr = IPv4Network | IPv6Network
_WINDOW = 256

_table = schema.addresses
_HOLDER = Prepared(
    sa.select(_table.c.port_id)
    .where(_table.c.network_id == sa.bindparam("network"), _table.c.number == sa.bindparam("number"))
)
_TAKEN = Prepared(
    sa.select(_table.c.number).where(
        _table.c.network_id == sa.bindparam("network"), _table.c.number >= sa.bindparam("first"),
        _table.c.number <= sa.bindparam("last"),
    )
)
_ASSIGN = Prepared(sa.insert(_table).values({c.name: sa.bindparam(c.name) for c in _table.columns}))
_DROP = Prepared(sa.delete(_table).where(_table.c.port_id == sa.bindparam("port")))
_CURSOR = Prepared(
    sa.select(schema.subnets.c.cursor).where(schema.subnets.c.id == sa.bindparam("id")).with_for_update()
)
_ADVANCE = Prepared(
    sa.update(schema.subnets).where(schema.subnets.c.id == sa.bindparam("b_id")).values(cursor=sa.bindparam("number"))
)
_HAS_MAC = Prepared(
    sa.select(schema.ports.c.id)
    .where(schema.ports.c.network_id == sa.bindparam("network"), schema.ports.c.mac == sa.bindparam("mac"))
)


class Allocation(msgspec.Struct, frozen=True):
    """An address chosen for a port but not yet recorded as its own. number: as the table of addresses has it."""

    network_id: str
    subnet_id: str
    number: str

    @property
    def address(self) -> str:
        return str(ipaddress.ip_address(bytes.fromhex(self.number)))


def parse_ip(text: str) -> Ip:
    """Raises InvalidInput for anything but an address (without a zone)."""
    try:
        if "%" not in text:
            return ipaddress.ip_address(text)
    except ValueError:
        pass
    raise InvalidInput(f"'{text}' is not a valid IP address.")


def short(text: str) -> str:
    """The usual form of an address, which IPv6 ones have many of. Raises InvalidInput."""
    return str(parse_ip(text)) if ":" in text else text


def taken_at(subnet: schema.Subnet, address: Ip) -> Allocation:
    """An address of a subnet, as what a port is given."""
    return Allocation(subnet.network_id, subnet.id, address.packed.hex())


def holder(conn: sa.Connection, network_id: str, address: str) -> str | None:
    """The port that has the address on the network. Spec: EMN-29."""
    found: str | None = _HOLDER.scalar(conn, network=network_id, number=parse_ip(address).packed.hex())
    return found


def speaker(conn: sa.Connection, network_id: str, address: str) -> str | None:
    """The port that speaks from the address on the network, its own or that of the link. Spec: EMN-29."""
    parsed = parse_ip(address)
    if not parsed.is_link_local:
        return holder(conn, network_id, address)
    octets = parsed.packed[8:]
    mac = ":".join(f"{octet:02x}" for octet in (octets[0] ^ 2, *octets[1:3], *octets[5:]))
    found: str | None = _HAS_MAC.scalar(conn, network=network_id, mac=mac)
    return found


def built(cidr: str, mac: str) -> IPv6Address:
    """The address that a guest with this MAC builds for itself in a range (EUI-64). Spec: EMN-08."""
    octets = bytes.fromhex(mac.replace(":", ""))
    host = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return IPv6Network(cidr).network_address + int.from_bytes(host)


def allocate(conn: sa.Connection, subnet: schema.Subnet, mac: str = "") -> Allocation:
    """The address that follows from the MAC if the subnet is automatic, else the next free one of the pools after the
    one last given out.

    Raises:
        IpAddressGenerationFailure: none is left. IpAddressAlreadyAllocated: another port has that of the MAC.
    """
    if subnet.automatic and mac:
        address = built(subnet.cidr, mac)
        if str(address) == subnet.gateway or holder(conn, subnet.network_id, str(address)) is not None:
            raise IpAddressAlreadyAllocated(str(address), subnet.id)
        return taken_at(subnet, address)
    cursor: str = _CURSOR.scalar(conn, id=subnet.id)
    digits = 32 if subnet.version == 6 else 8
    last = int(cursor, 16) if cursor else -1
    spans = [(int(parse_ip(pool.start)), int(parse_ip(pool.end))) for pool in subnet.pools]
    after = [(max(low, last + 1), high) for low, high in spans if high > last]
    before = [(low, min(high, last)) for low, high in spans if low <= last]
    for low, high in after + before:
        number = _first_free(conn, subnet.network_id, low, high, digits)
        if number is not None:
            _ADVANCE.run(conn, b_id=subnet.id, number=number)
            return Allocation(subnet.network_id, subnet.id, number)
    raise IpAddressGenerationFailure(subnet.network_id)


def _first_free(conn: sa.Connection, network_id: str, low: int, high: int, digits: int) -> str | None:
    for start in range(low, high + 1, _WINDOW):
        end = min(start + _WINDOW - 1, high)
        taken = set(_TAKEN.scalars(
            conn, network=network_id, first=f"{start:0{digits}x}", last=f"{end:0{digits}x}"
        ))
        for number in range(start, end + 1):
            if (text := f"{number:0{digits}x}") not in taken:
                return text
    return None


def choose(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet], wanted: list[FixedIpBody] | None,
           port_id: str, mac: str = "") -> list[Allocation]:
    """Addresses for a port. Spec: EMN-08.

    Args:
        subnets: all of the network. wanted: what was asked for; None takes one address of each version, of the first
            subnet that has one left, and those of all automatic subnets; an empty list takes none.
        port_id: its present addresses count as free. mac: "" for ports that get no automatic addresses.

    Raises:
        IpAddressAlreadyAllocated, IpAddressGenerationFailure, InvalidIpForSubnet, InvalidIpForNetwork.
    """
    if wanted is None:
        return _usual(conn, network_id, subnets, mac) if subnets else []
    if len(wanted) > MAX_FIXED_IPS:
        raise InvalidInput(f"Invalid input for fixed_ips: more than {MAX_FIXED_IPS} addresses.")
    by_id = {subnet.id: subnet for subnet in subnets}
    chosen: list[Allocation] = []
    for item in wanted:
        if item.subnet_id is not None and item.subnet_id not in by_id:
            raise InvalidInput(f"Invalid input for fixed_ips: subnet {item.subnet_id} is not on the network.")
        subnet = by_id[item.subnet_id] if item.subnet_id else None
        if item.ip_address is None:
            if subnet is None:
                raise InvalidInput("Invalid input for fixed_ips: neither subnet_id nor ip_address is given.")
            chosen.append(_kept(conn, subnet, port_id, chosen) or allocate(conn, subnet, mac))
        else:
            chosen.append(_exact(conn, network_id, subnets, subnet, item.ip_address, port_id, mac))
    if len({item.number for item in chosen}) != len(chosen):
        raise InvalidInput("Invalid input for fixed_ips: an address is given twice.")
    return chosen


def automatic(conn: sa.Connection, subnets: list[schema.Subnet], mac: str,
              chosen: list[Allocation]) -> list[Allocation]:
    """The addresses that a guest builds besides those chosen. Spec: EMN-08."""
    held = {item.subnet_id for item in chosen}
    return [allocate(conn, subnet, mac) for subnet in subnets if subnet.automatic and subnet.id not in held]


def one_more(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet]) -> Allocation:
    """One address of the first subnet that has one left, IPv4 before IPv6. Raises IpAddressGenerationFailure."""
    pooled = sorted((subnet for subnet in subnets if not subnet.automatic), key=lambda subnet: subnet.version)
    return _any_of(conn, network_id, pooled)


def _usual(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet], mac: str) -> list[Allocation]:
    pooled = [subnet for subnet in subnets if not subnet.automatic]
    versions = sorted({subnet.version for subnet in pooled})
    chosen = [_any_of(conn, network_id, [s for s in pooled if s.version == version]) for version in versions]
    return chosen + automatic(conn, subnets, mac, chosen) if mac else chosen


def _any_of(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet]) -> Allocation:
    for subnet in subnets:
        try:
            return allocate(conn, subnet)
        except IpAddressGenerationFailure:
            continue
    raise IpAddressGenerationFailure(network_id)


def _kept(conn: sa.Connection, subnet: schema.Subnet, port_id: str, chosen: list[Allocation]) -> Allocation | None:
    """An address that the port already has on that subnet, so that an update by subnet changes nothing."""
    table = schema.addresses
    rows = conn.execute(
        sa.select(table.c.number).where(table.c.port_id == port_id, table.c.subnet_id == subnet.id)
        .order_by(table.c.position)
    ).scalars()
    taken = {item.number for item in chosen}
    return next((Allocation(subnet.network_id, subnet.id, n) for n in rows if n not in taken), None)


def _exact(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet], subnet: schema.Subnet | None,
           text: str, port_id: str, mac: str) -> Allocation:
    address = parse_ip(text)
    if subnet is None:
        subnet = next((s for s in subnets if address in ipaddress.ip_network(s.cidr)), None)
        if subnet is None:
            raise InvalidIpForNetwork(text)
    if not is_host(address, ipaddress.ip_network(subnet.cidr)):
        raise InvalidIpForSubnet(text)
    if subnet.automatic and mac and address != built(subnet.cidr, mac):
        raise InvalidInput(
            f"IPv6 address {address} can not be directly assigned to a port on subnet {subnet.id} as the subnet is "
            f"configured for automatic addresses"
        )
    if str(address) == subnet.gateway:
        raise IpAddressAlreadyAllocated(text, subnet.id)
    if holder(conn, network_id, text) not in (None, port_id):
        raise IpAddressAlreadyAllocated(text, subnet.id)
    return taken_at(subnet, address)


def is_host(address: Ip, cidr: Cidr) -> bool:
    """Whether a port can have the address: not the first of a range (routers answer to it in IPv6), nor the last of an
    IPv4 one."""
    last = cidr.broadcast_address if cidr.version == 4 else None
    return address in cidr and address not in (cidr.network_address, last)


def assign(conn: sa.Connection, port_id: str, allocations: list[Allocation]) -> None:
    """Make these the addresses of the port, in this order."""
    _DROP.run(conn, port=port_id)
    for position, item in enumerate(allocations):
        _ASSIGN.run(
            conn, network_id=item.network_id, number=item.number, address=item.address, subnet_id=item.subnet_id,
            port_id=port_id, position=position,
        )


def free_mac(conn: sa.Connection, network_id: str, port_id: str) -> str:
    """A MAC that is free on the network, derived from the port's id so that repeats agree."""
    for attempt in range(64):
        digest = hashlib.sha256(f"{port_id}/{attempt}".encode()).hexdigest()
        mac = f"{MAC_PREFIX}:{digest[0:2]}:{digest[2:4]}:{digest[4:6]}"
        if _HAS_MAC.first(conn, network=network_id, mac=mac) is None:
            return mac
    raise IpAddressGenerationFailure(network_id)
