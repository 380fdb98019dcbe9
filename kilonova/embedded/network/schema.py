"""Tables of the network service and the records read from them.

Uniqueness of addresses, MACs, segments and rules is the database's: two concurrent requests can never both win.
"""

from __future__ import annotations

import uuid
from functools import cache
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from kilonova.db.columns import Json, Timestamp, Uuid, new_metadata
from kilonova.db.prepared import Prepared
from kilonova.db.upgrade import Schema
from kilonova.embedded.network.addressing import AUTOMATIC, AddressPair, DhcpOption, HostRoute, Pool, version_of

metadata = new_metadata()

NETWORK = Schema("network", metadata, ("0001",))
"""All tables of this file and their revisions."""

NAMESPACE = uuid.UUID("5f1d7a52-2f4b-5c0e-9c59-6d1c1a3c7f10")
"""Root of the ids that are derived from what they stand for, so that making them twice makes one."""

Strings = tuple[str, ...]


def stamped_columns() -> list[sa.Column[Any]]:
    """Columns that every visible resource has."""
    return [
        sa.Column("description", sa.Text, nullable=False, default=""),
        sa.Column("tags", Json(Strings), nullable=False, default=()),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False, default=1),
    ]


networks = sa.Table(
    "networks", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("admin_state_up", sa.Boolean, nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("external", sa.Boolean, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("mtu", sa.Integer, nullable=False),
    sa.Column("port_security", sa.Boolean, nullable=False),
    sa.Column("dns_domain", sa.String(255), nullable=False),
    sa.Column("segment", sa.Integer, nullable=False, unique=True),
    *stamped_columns(),
)

subnet_pools = sa.Table(
    "subnet_pools", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("prefixes", Json(Strings), nullable=False),
    sa.Column("min_length", sa.Integer, nullable=False),
    sa.Column("max_length", sa.Integer, nullable=False),
    sa.Column("default_length", sa.Integer, nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    *stamped_columns(),
)

subnets = sa.Table(
    "subnets", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("network_id", Uuid, sa.ForeignKey("networks.id"), nullable=False, index=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("cidr", sa.String(64), nullable=False),
    sa.Column("gateway", sa.String(64)),
    sa.Column("dhcp", sa.Boolean, nullable=False),
    sa.Column("dns", Json(Strings), nullable=False),
    sa.Column("routes", Json(tuple[HostRoute, ...]), nullable=False),
    sa.Column("pools", Json(tuple[Pool, ...]), nullable=False),
    sa.Column("cursor", sa.String(32), nullable=False, default=""),
    sa.Column("ra_mode", sa.String(16)),
    sa.Column("address_mode", sa.String(16)),
    sa.Column("pool_id", Uuid, sa.ForeignKey("subnet_pools.id"), index=True),
    *stamped_columns(),
)

ports = sa.Table(
    "ports", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("network_id", Uuid, sa.ForeignKey("networks.id"), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("admin_state_up", sa.Boolean, nullable=False),
    sa.Column("mac", sa.String(17), nullable=False),
    sa.Column("device_id", sa.String(255), nullable=False, index=True),
    sa.Column("device_owner", sa.String(255), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("vif_type", sa.String(64), nullable=False),
    sa.Column("vnic_type", sa.String(64), nullable=False),
    sa.Column("profile", Json(dict[str, Any]), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("secured", sa.Boolean, nullable=False),
    sa.Column("pairs", Json(tuple[AddressPair, ...]), nullable=False),
    sa.Column("dhcp_options", Json(tuple[DhcpOption, ...]), nullable=False),
    sa.Column("dns_name", sa.String(255), nullable=False),
    sa.Column("owned", sa.Boolean, nullable=False),
    sa.Column("device_tag", sa.String(60)),
    sa.Column("device_since", Timestamp),
    *stamped_columns(),
    sa.UniqueConstraint("network_id", "mac"),
)
"""device_since: when the device got the port, if that was later than the port was made."""

addresses = sa.Table(
    "addresses", metadata,
    sa.Column("network_id", Uuid, primary_key=True),
    sa.Column("number", sa.String(32), primary_key=True),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("subnet_id", Uuid, sa.ForeignKey("subnets.id"), nullable=False, index=True),
    sa.Column("port_id", Uuid, sa.ForeignKey("ports.id"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
)
"""number: the address in hexadecimal, all digits of it: 8 for IPv4, 32 for IPv6. So ranges compare as texts."""

bindings = sa.Table(
    "bindings", metadata,
    sa.Column("port_id", Uuid, sa.ForeignKey("ports.id"), primary_key=True),
    sa.Column("host", sa.String(255), primary_key=True),
    sa.Column("vif_type", sa.String(64), nullable=False),
    sa.Column("vnic_type", sa.String(64), nullable=False),
    sa.Column("profile", Json(dict[str, Any]), nullable=False),
)
"""Inactive bindings. The active one is in the port's own row, so there is never more than one."""

groups = sa.Table(
    "security_groups", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("stateful", sa.Boolean, nullable=False),
    *stamped_columns(),
)

rules = sa.Table(
    "security_group_rules", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("group_id", Uuid, sa.ForeignKey("security_groups.id"), nullable=False),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("direction", sa.String(8), nullable=False),
    sa.Column("ethertype", sa.String(4), nullable=False),
    sa.Column("protocol", sa.String(40)),
    sa.Column("port_min", sa.Integer),
    sa.Column("port_max", sa.Integer),
    sa.Column("remote_prefix", sa.String(64)),
    sa.Column("remote_group_id", Uuid, sa.ForeignKey("security_groups.id"), index=True),
    sa.Column("fingerprint", sa.String(255), nullable=False),
    *stamped_columns(),
    sa.UniqueConstraint("group_id", "fingerprint"),
)

port_groups = sa.Table(
    "port_security_groups", metadata,
    sa.Column("port_id", Uuid, sa.ForeignKey("ports.id"), primary_key=True),
    sa.Column("group_id", Uuid, sa.ForeignKey("security_groups.id"), primary_key=True, index=True),
)

quotas = sa.Table(
    "network_quotas", metadata,
    sa.Column("project_id", sa.String(64), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("limit", sa.Integer, nullable=False),
)


routers = sa.Table(
    "routers", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("admin_state_up", sa.Boolean, nullable=False),
    sa.Column("external_network_id", Uuid, sa.ForeignKey("networks.id"), index=True),
    sa.Column("snat", sa.Boolean, nullable=False),
    sa.Column("scheduled", sa.Boolean),
    *stamped_columns(),
)
"""Its interfaces and its gateway are ports whose device it is."""

floating_ips = sa.Table(
    "floating_ips", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("network_id", Uuid, sa.ForeignKey("networks.id"), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Column("fixed_port_id", Uuid, sa.ForeignKey("ports.id"), index=True),
    sa.Column("fixed_address", sa.String(64)),
    sa.Column("router_id", Uuid, sa.ForeignKey("routers.id"), index=True),
    *stamped_columns(),
    sa.UniqueConstraint("network_id", "address"),
    sa.UniqueConstraint("network_id", "fixed_port_id", "fixed_address"),
)
"""The address itself is held by a port on the external network whose device it is."""


class Stamped(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    project_id: str
    description: str
    tags: Strings
    created_at: float
    updated_at: float
    revision: int


class Network(Stamped, frozen=True, kw_only=True):
    """mtu: bytes. segment: number of the network in this installation, 1 to 4095."""

    name: str
    admin_state_up: bool
    shared: bool
    external: bool
    is_default: bool
    mtu: int
    port_security: bool
    dns_domain: str
    segment: int


class SubnetPool(Stamped, frozen=True, kw_only=True):
    """min_length, max_length, default_length: of the prefixes of its subnets."""

    name: str
    prefixes: Strings
    min_length: int
    max_length: int
    default_length: int
    shared: bool
    is_default: bool

    @property
    def version(self) -> int:
        return version_of(self.prefixes[0])


class Subnet(Stamped, frozen=True, kw_only=True):
    """cursor: the number of the address last given out, so that none is reused at once; "" before the first. pool_id:
    whose range it has. ra_mode, address_mode: what is announced and how guests get addresses, None for IPv4."""

    network_id: str
    name: str
    cidr: str
    gateway: str | None
    dhcp: bool
    dns: Strings
    routes: tuple[HostRoute, ...]
    pools: tuple[Pool, ...]
    cursor: str
    ra_mode: str | None = None
    address_mode: str | None = None
    pool_id: str | None = None

    @property
    def version(self) -> int:
        return version_of(self.cidr)

    @property
    def automatic(self) -> bool:
        """Guests build their addresses from what is announced and their MAC. Spec: EMN-08."""
        return self.ra_mode in AUTOMATIC or self.address_mode in AUTOMATIC


class Address(msgspec.Struct, frozen=True):
    subnet_id: str
    address: str


class Port(Stamped, frozen=True, kw_only=True):
    """owned: made by the compute service, which deletes it with the server."""

    network_id: str
    name: str
    admin_state_up: bool
    mac: str
    device_id: str
    device_owner: str
    host: str
    vif_type: str
    vnic_type: str
    profile: dict[str, Any]
    status: str
    secured: bool
    pairs: tuple[AddressPair, ...]
    dhcp_options: tuple[DhcpOption, ...]
    dns_name: str
    owned: bool
    device_tag: str | None
    device_since: float | None = None
    addresses: tuple[Address, ...] = ()
    group_ids: Strings = ()

    @property
    def bound(self) -> bool:
        """Bound to a host that can wire it."""
        return self.vif_type == "bridge"


class Group(Stamped, frozen=True, kw_only=True):
    name: str
    stateful: bool


class Rule(Stamped, frozen=True, kw_only=True):
    """port_min and port_max hold type and code for ICMP. protocol: as the caller sent it."""

    group_id: str
    direction: str
    ethertype: str
    protocol: str | None
    port_min: int | None
    port_max: int | None
    remote_prefix: str | None
    remote_group_id: str | None
    fingerprint: str


class Router(Stamped, frozen=True, kw_only=True):
    """snat: what leaves through the gateway gets its address. scheduled: to the agent of this machine, None if that was
    not decided yet."""

    name: str
    admin_state_up: bool
    external_network_id: str | None
    snat: bool
    scheduled: bool | None


class FloatingIp(Stamped, frozen=True, kw_only=True):
    """The last three are None while it is not associated."""

    network_id: str
    address: str
    fixed_port_id: str | None
    fixed_address: str | None
    router_id: str | None


Record = TypeVar("Record", Network, SubnetPool, Subnet, Port, Group, Rule, Router, FloatingIp)


def record(type_: type[Record], row: Any, **extra: Any) -> Record:
    """The record of one row; `extra` gives what lies in other tables."""
    return type_(**row._asdict(), **extra)


def stamp(now: float) -> dict[str, Any]:
    """Values of a new row that only depend on the time."""
    return {"created_at": now, "updated_at": now, "revision": 1}


def touch(conn: sa.Connection, table: sa.Table, id_: str, now: float, **values: Any) -> None:
    """Change a row and advance its revision."""
    _touching(table, tuple(values)).run(conn, b_id=id_, updated_at=now, **values)


@cache
def _touching(table: sa.Table, names: tuple[str, ...]) -> Prepared:
    return Prepared(
        sa.update(table).where(table.c.id == sa.bindparam("b_id"))
        .values({name: sa.bindparam(name) for name in (*names, "updated_at")})
        .values(revision=table.c.revision + 1)
    )
