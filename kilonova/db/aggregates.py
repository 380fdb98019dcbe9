"""Host aggregates and the availability zones they make, in the API database.

Which hosts are in an aggregate is kept twice, in one transaction: here by name, and in placement by provider.
"""

from __future__ import annotations

import uuid as uuids
from collections.abc import Collection, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db import server_groups
from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.placement.hosts import join_aggregate, leave_aggregate
from kilonova.db.prepared import Prepared
from kilonova.db.upsert import insert_new
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.domain.grouping import Aggregate, ServerGroup

ZONE = "availability_zone"
"""The property that makes an aggregate an availability zone."""

aggregates = sa.Table(
    "aggregates",
    api_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("properties", Json(dict[str, str]), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
)

aggregate_hosts = sa.Table(
    "aggregate_hosts",
    api_metadata,
    sa.Column("aggregate_id", sa.ForeignKey("aggregates.id"), primary_key=True),
    sa.Column("host", sa.String(255), primary_key=True),
    sa.Column("added_at", Timestamp, nullable=False),
    sa.Index("ix_aggregate_hosts_host", "host"),
)


_ALL = Prepared(sa.select(aggregates).order_by(aggregates.c.id))


class HostAggregate(msgspec.Struct, frozen=True, kw_only=True):
    """One aggregate with its hosts, in the order they joined. Times: seconds since the epoch."""

    id: int
    uuid: str
    name: str
    metadata: dict[str, str]
    hosts: tuple[str, ...]
    created_at: float
    updated_at: float | None

    @property
    def zone(self) -> str | None:
        return self.metadata.get(ZONE)


def all_aggregates(conn: sa.Connection) -> list[HostAggregate]:
    """Every aggregate, by id."""
    members: dict[int, list[str]] = {}
    joined = sa.select(aggregate_hosts).order_by(aggregate_hosts.c.added_at, aggregate_hosts.c.host)
    for row in conn.execute(joined):
        members.setdefault(row.aggregate_id, []).append(row.host)
    rows = conn.execute(sa.select(aggregates).order_by(aggregates.c.id)).all()
    return [
        HostAggregate(
            id=row.id, uuid=row.uuid, name=row.name, metadata=row.properties, hosts=tuple(members.get(row.id, ())),
            created_at=row.created_at, updated_at=row.updated_at,
        )
        for row in rows
    ]


def get(conn: sa.Connection, aggregate_id: int) -> HostAggregate:
    """Raises NotFound."""
    for aggregate in all_aggregates(conn):
        if aggregate.id == aggregate_id:
            return aggregate
    raise NotFound(f"Aggregate {aggregate_id} could not be found.")


def create(conn: sa.Connection, name: str, zone: str | None, *, now: float) -> HostAggregate:
    """Make an aggregate without hosts. Raises Conflict: the name is taken."""
    row = {
        "uuid": str(uuids.uuid4()), "name": name, "properties": {ZONE: zone} if zone is not None else {},
        "created_at": now,
    }
    number = insert_new(conn, aggregates, row)
    if number is None:
        raise _taken(name)
    return get(conn, number)


def _taken(name: str) -> Conflict:
    return Conflict(f"Aggregate {name} already exists.")


def change(
    conn: sa.Connection, aggregate_id: int, *, name: str | None = None,
    metadata: Mapping[str, str | None] | None = None, now: float,
) -> HostAggregate:
    """Rename an aggregate, or merge metadata into its own (None removes a key).

    Raises:
        NotFound: there is no such aggregate. Conflict: the name is taken.
        InvalidInput: a host of it is in another availability zone already.
    """
    _lock(conn)
    before = get(conn, aggregate_id)
    values: dict[str, object] = {"updated_at": now}
    if name is not None and name != before.name:
        if conn.execute(sa.select(aggregates.c.id).where(aggregates.c.name == name)).first() is not None:
            raise _taken(name)
        values["name"] = name
    if metadata is not None:
        merged = {**before.metadata, **metadata}
        values["properties"] = {key: value for key, value in merged.items() if value is not None}
        zone = metadata.get(ZONE)
        others = other_zones(conn, before, before.hosts, zone) if zone is not None else ()
        if others:
            raise InvalidInput(
                f"Cannot change the zone of aggregate {aggregate_id}. "
                f"Reason: One or more hosts already in availability zone(s) {', '.join(others)}."
            )
    conn.execute(sa.update(aggregates).where(aggregates.c.id == aggregate_id).values(**values))
    return get(conn, aggregate_id)


def other_zones(
    conn: sa.Connection, aggregate: HostAggregate, hosts: Collection[str], zone: str | None
) -> tuple[str, ...]:
    """Zones other than this one that the hosts have through other aggregates."""
    found = {
        other.zone
        for other in all_aggregates(conn)
        if other.id != aggregate.id and other.zone is not None and set(other.hosts) & set(hosts)
    }
    return tuple(sorted(name for name in found - {zone} if name))


def delete(conn: sa.Connection, aggregate_id: int) -> None:
    """Raises NotFound, InvalidInput: it still has hosts."""
    _lock(conn)
    if get(conn, aggregate_id).hosts:
        raise InvalidInput(
            f"Cannot delete aggregate {aggregate_id}. Reason: Host aggregate is not empty.",
            hint="remove its hosts first",
        )
    conn.execute(sa.delete(aggregates).where(aggregates.c.id == aggregate_id))


def add_host(conn: sa.Connection, aggregate_id: int, host: str, *, now: float) -> HostAggregate:
    """Put a host into an aggregate, here and in placement.

    Raises:
        NotFound: there is no such aggregate. Conflict: it is in it, or in another availability zone.
    """
    _lock(conn)
    before = get(conn, aggregate_id)
    if host in before.hosts:
        raise Conflict(f"Aggregate {aggregate_id} already has host {host}.")
    others = other_zones(conn, before, (host,), before.zone) if before.zone is not None else ()
    if others:
        raise Conflict(
            f"Cannot add host to aggregate {aggregate_id}. "
            f"Reason: One or more hosts already in availability zone(s) {', '.join(others)}."
        )
    conn.execute(sa.insert(aggregate_hosts), {"aggregate_id": aggregate_id, "host": host, "added_at": now})
    join_aggregate(conn, host, before.uuid)
    _stamp(conn, aggregate_id, now)
    return get(conn, aggregate_id)


def remove_host(conn: sa.Connection, aggregate_id: int, host: str, *, now: float) -> HostAggregate:
    """Take a host out of an aggregate, here and in placement. Raises NotFound: the aggregate, or the host in it."""
    _lock(conn)
    before = get(conn, aggregate_id)
    this = (aggregate_hosts.c.aggregate_id == aggregate_id, aggregate_hosts.c.host == host)
    if conn.execute(sa.delete(aggregate_hosts).where(*this)).rowcount == 0:
        raise NotFound(f"Aggregate {aggregate_id} has no host {host}.")
    leave_aggregate(conn, host, before.uuid)
    _stamp(conn, aggregate_id, now)
    return get(conn, aggregate_id)


def _lock(conn: sa.Connection) -> None:
    """Let changes follow each other: whether a host may join depends on all the aggregates it is in."""
    conn.execute(sa.select(aggregates.c.id).order_by(aggregates.c.id).with_for_update()).all()


def _stamp(conn: sa.Connection, aggregate_id: int, now: float) -> None:
    conn.execute(sa.update(aggregates).where(aggregates.c.id == aggregate_id).values(updated_at=now))


def forget_host(conn: sa.Connection, host: str) -> None:
    """Take a host that is no more out of all aggregates."""
    conn.execute(sa.delete(aggregate_hosts).where(aggregate_hosts.c.host == host))


def zones_of_hosts(conn: sa.Connection) -> dict[str, str]:
    """The availability zone of every host that is in one."""
    zones: dict[str, str] = {}
    for aggregate in all_aggregates(conn):
        if aggregate.zone is not None:
            zones.update(dict.fromkeys(aggregate.hosts, aggregate.zone))
    return zones


class StoredGroupings:
    """What the scheduler asks about aggregates and server groups, read from the API database."""

    def aggregates(self, connection: sa.Connection) -> Sequence[Aggregate]:
        """All host aggregates."""
        rows = _ALL.all(connection)
        return [Aggregate(uuid=row.uuid, name=row.name, metadata=row.properties) for row in rows]

    def server_group(self, connection: sa.Connection, uuid: str) -> ServerGroup | None:
        """The group with its members, None if there is none any more. Spec: BLD-20."""
        return server_groups.for_scheduling(connection, uuid)
