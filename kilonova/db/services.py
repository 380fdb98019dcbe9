"""Service records: which processes serve a cell, whether they live, and what their hosts have. In the cell database."""

from __future__ import annotations

import uuid as uuids
from collections.abc import Sequence
from functools import cache

import msgspec
import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import NotFound
from kilonova.hypervisor.guest import HostInventory

services = sa.Table(
    "services",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("binary", sa.String(64), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("version", sa.String(32), nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", sa.String(255)),
    sa.Column("forced_down", sa.Boolean, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.Column("seen_at", Timestamp, nullable=False),
    sa.UniqueConstraint("binary", "host"),
)

compute_nodes = sa.Table(
    "compute_nodes",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("node", sa.String(255), nullable=False),
    sa.Column("inventory", Json(HostInventory), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.UniqueConstraint("host", "node"),
)

COMPUTE = "nova-compute"
"""Binary name under which Nova's clients know an agent."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """One service record. Times: seconds since the epoch; seen_at is the last sign of life."""

    id: int
    uuid: str
    binary: str
    host: str
    version: str
    disabled: bool
    disabled_reason: str | None
    forced_down: bool
    created_at: float
    updated_at: float
    seen_at: float

    @property
    def kept_off(self) -> bool:
        """Whether its host gets no new servers. One forced down gets none even if its agent goes on reporting."""
        return self.disabled or self.forced_down

    def up(self, now: float, down_time: float) -> bool:
        """Whether it has shown a sign of life within `down_time` seconds and is not forced down."""
        return not self.forced_down and now - self.seen_at <= down_time


class ComputeNode(msgspec.Struct, frozen=True, kw_only=True):
    """One hypervisor node; its uuid is that of its resource provider."""

    id: int
    uuid: str
    host: str
    node: str
    inventory: HostInventory
    created_at: float
    updated_at: float


_AGENT = Prepared(
    sa.select(services).where(services.c.binary == COMPUTE, services.c.host == sa.bindparam("host"))
)
_KEPT_OFF = Prepared(sa.select(services.c.host).where(
    services.c.binary == COMPUTE, sa.or_(services.c.disabled, services.c.forced_down)
))
_SEEN = Prepared(
    sa.update(services)
    .where(services.c.binary == sa.bindparam("b_binary"), services.c.host == sa.bindparam("b_host"))
    .values(seen_at=sa.bindparam("now"), version=sa.bindparam("version"))
)
_ADD, _ADD_NODE = (
    Prepared(sa.insert(table).values({c.name: sa.bindparam(c.name) for c in table.columns if c.name != "id"}))
    for table in (services, compute_nodes)
)
_CHANGED = Prepared(
    sa.update(compute_nodes)
    .where(compute_nodes.c.host == sa.bindparam("b_host"), compute_nodes.c.node == sa.bindparam("b_node"))
    .values(inventory=sa.bindparam("inventory"), updated_at=sa.bindparam("now"))
)
_INVENTORY = Prepared(sa.select(compute_nodes.c.inventory).where(
    compute_nodes.c.host == sa.bindparam("host"), compute_nodes.c.node == sa.bindparam("node")
))


def seen(conn: sa.Connection, binary: str, host: str, *, version: str, now: float) -> Service | None:
    """Record a sign of life. Returns the service at its first one."""
    if _SEEN.run(conn, b_binary=binary, b_host=host, now=now, version=version):
        return None
    new = {
        "uuid": str(uuids.uuid4()), "binary": binary, "host": host, "version": version, "disabled": False,
        "disabled_reason": None, "forced_down": False, "created_at": now, "updated_at": now, "seen_at": now,
    }
    _ADD.run(conn, **new)
    return all_services(conn, binary=binary, host=host)[0]


def kept_off(conn: sa.Connection, host: str) -> bool | None:
    """Whether a compute host gets no new servers, None if its service has no record."""
    found = _AGENT.first(conn, host=host)
    return None if found is None else Service(**found._asdict()).kept_off


@cache
def _of(*names: str) -> Prepared:
    """Records whose columns of these names have given values."""
    given = (services.c[name] == sa.bindparam(name) for name in names)
    return Prepared(sa.select(services).where(*given).order_by(services.c.id))


def hosts_kept_off(conn: sa.Connection) -> list[str]:
    """The compute hosts that get no new servers."""
    return _KEPT_OFF.scalars(conn)


def all_services(conn: sa.Connection, *, binary: str | None = None, host: str | None = None) -> list[Service]:
    """Service records, by id."""
    asked = {name: value for name, value in (("binary", binary), ("host", host)) if value is not None}
    return [Service(**row._asdict()) for row in _of(*asked).all(conn, **asked)]


def change_service(conn: sa.Connection, uuid: str, *, now: float, **changes: object) -> Service:
    """Change disabled, disabled_reason or forced_down. Raises NotFound."""
    changed = conn.execute(
        sa.update(services).where(services.c.uuid == uuid).values(updated_at=now, **changes)
    ).rowcount
    if not changed:
        raise NotFound(f"Service {uuid} could not be found.")
    row = conn.execute(sa.select(services).where(services.c.uuid == uuid)).mappings().one()
    return Service(**row)


def remove_service(conn: sa.Connection, uuid: str) -> None:
    """Forget a service and, if it is an agent, its nodes."""
    row = conn.execute(sa.select(services.c.host, services.c.binary).where(services.c.uuid == uuid)).first()
    if row is not None and row.binary == COMPUTE:
        conn.execute(sa.delete(compute_nodes).where(compute_nodes.c.host == row.host))
    conn.execute(sa.delete(services).where(services.c.uuid == uuid))


def report_node(conn: sa.Connection, uuid: str, host: str, inventory: HostInventory, *, now: float) -> None:
    """Store what a node has, if it changed.

    Args:
        uuid: of its resource provider.
    """
    known = _INVENTORY.first(conn, host=host, node=inventory.hostname)
    if known is None:
        _ADD_NODE.run(conn, uuid=uuid, host=host, node=inventory.hostname, inventory=inventory, created_at=now,
                      updated_at=now)
    elif known[0] != inventory:
        _CHANGED.run(conn, b_host=host, b_node=inventory.hostname, inventory=inventory, now=now)


def all_nodes(conn: sa.Connection, *, hosts: Sequence[str] | None = None) -> list[ComputeNode]:
    """Nodes, by id."""
    query = sa.select(compute_nodes).order_by(compute_nodes.c.id)
    if hosts is not None:
        query = query.where(compute_nodes.c.host.in_(hosts))
    return [ComputeNode(**row) for row in conn.execute(query).mappings()]
