"""Addresses and MACs of ports: given out so that no two ports of a network ever share one.

The primary key (network, number) decides; the row lock on the subnet only avoids useless collisions.
"""

from __future__ import annotations

import hashlib
import ipaddress
from ipaddress import IPv4Address, IPv4Network

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
    """An address chosen for a port but not yet recorded as its own."""

    network_id: str
    subnet_id: str
    number: int

    @property
    def address(self) -> str:
        return str(IPv4Address(self.number))


def parse_ip(text: str) -> IPv4Address:
    """Raises InvalidInput for anything but an IPv4 address."""
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise InvalidInput(f"'{text}' is not a valid IPv4 address.") from error


def holder(conn: sa.Connection, network_id: str, address: str) -> str | None:
    """The port that has the address on the network. Spec: EMN-29."""
    found: str | None = _HOLDER.scalar(conn, network=network_id, number=int(parse_ip(address)))
    return found


def allocate(conn: sa.Connection, subnet: schema.Subnet) -> Allocation:
    """The next free address of the pools after the one last given out. Raises IpAddressGenerationFailure."""
    cursor: int = _CURSOR.scalar(conn, id=subnet.id)
    spans = [(int(IPv4Address(pool.start)), int(IPv4Address(pool.end))) for pool in subnet.pools]
    after = [(max(low, cursor + 1), high) for low, high in spans if high > cursor]
    before = [(low, min(high, cursor)) for low, high in spans if low <= cursor]
    for low, high in after + before:
        number = _first_free(conn, subnet.network_id, low, high)
        if number is not None:
            _ADVANCE.run(conn, b_id=subnet.id, number=number)
            return Allocation(subnet.network_id, subnet.id, number)
    raise IpAddressGenerationFailure(subnet.network_id)


def _first_free(conn: sa.Connection, network_id: str, low: int, high: int) -> int | None:
    for start in range(low, high + 1, _WINDOW):
        end = min(start + _WINDOW - 1, high)
        taken = set(_TAKEN.scalars(conn, network=network_id, first=start, last=end))
        for number in range(start, end + 1):
            if number not in taken:
                return number
    return None


def choose(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet], wanted: list[FixedIpBody] | None,
           port_id: str) -> list[Allocation]:
    """Addresses for a port.

    Args:
        subnets: all of the network. wanted: what was asked for; None takes one address of the first subnet that
            has one left; an empty list takes none. port_id: its present addresses count as free.

    Raises:
        IpAddressAlreadyAllocated, IpAddressGenerationFailure, InvalidIpForSubnet, InvalidIpForNetwork.
    """
    if wanted is None:
        return _any_subnet(conn, network_id, subnets) if subnets else []
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
            chosen.append(_kept(conn, subnet, port_id, chosen) or allocate(conn, subnet))
        else:
            chosen.append(_exact(conn, network_id, subnets, subnet, item.ip_address, port_id))
    if len({item.number for item in chosen}) != len(chosen):
        raise InvalidInput("Invalid input for fixed_ips: an address is given twice.")
    return chosen


def _any_subnet(conn: sa.Connection, network_id: str, subnets: list[schema.Subnet]) -> list[Allocation]:
    for subnet in subnets:
        try:
            return [allocate(conn, subnet)]
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
           text: str, port_id: str) -> Allocation:
    address = parse_ip(text)
    if subnet is None:
        subnet = next((s for s in subnets if address in ipaddress.ip_network(s.cidr)), None)
        if subnet is None:
            raise InvalidIpForNetwork(text)
    cidr = IPv4Network(subnet.cidr)
    if address not in cidr or address in (cidr.network_address, cidr.broadcast_address):
        raise InvalidIpForSubnet(text)
    if text == subnet.gateway:
        raise IpAddressAlreadyAllocated(text, subnet.id)
    if holder(conn, network_id, text) not in (None, port_id):
        raise IpAddressAlreadyAllocated(text, subnet.id)
    return Allocation(network_id, subnet.id, int(address))


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
