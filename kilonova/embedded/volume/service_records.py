"""The parts of the service as operators see them, and which of them are to get nothing new: units of work."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa

from kilonova.db.upsert import insert_missing
from kilonova.domain.errors import NotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.records import Service

table = schema.services
column = table.c

VOLUME, SCHEDULER, BACKUP = "cinder-volume", "cinder-scheduler", "cinder-backup"
"""Names of the parts, as clients look for them. Spec: EMV-11."""
NAMESPACE = uuid.UUID("2f1c8a76-0f0b-5a35-8f3c-d1d3fb2d6a90")


def announce(conn: sa.Connection, hosts: list[str], now: float) -> None:
    """Record the parts of a service whose pools are on these hosts, and no others. One that is disabled stays so.

    Spec: EMV-11.
    """
    machines = sorted({host.partition("@")[0] for host in hosts})
    for binary, where in ((VOLUME, hosts), (SCHEDULER, machines), (BACKUP, machines)):
        for host in where:
            made = Service(id=str(uuid.uuid5(NAMESPACE, f"{binary} {host}")), binary=binary, host=host, updated_at=now)
            insert_missing(conn, table, msgspec.structs.asdict(made))
        conn.execute(table.delete().where(column.binary == binary, column.host.not_in(where)))


def every(conn: sa.Connection) -> list[Service]:
    """In the order of their names."""
    rows = conn.execute(sa.select(table).order_by(column.binary, column.host))
    return [Service(**row._mapping) for row in rows]


def enable(
    conn: sa.Connection, binary: str, host: str, now: float, *, enabled: bool, reason: str | None = None
) -> Service:
    """Let a part get new volumes, or not. Raises NotFound."""
    where = (column.binary == binary, column.host == host)
    conn.execute(table.update().where(*where).values(disabled=not enabled, disabled_reason=reason, updated_at=now))
    row = conn.execute(sa.select(table).where(*where)).one_or_none()
    if row is None:
        raise NotFound(f"Service {binary} on host {host} could not be found.")
    return Service(**row._mapping)


def disabled_hosts(conn: sa.Connection) -> set[str]:
    """The hosts whose pools get nothing new."""
    found = sa.select(column.host).where(column.binary == VOLUME, column.disabled)
    return set(conn.execute(found).scalars())
