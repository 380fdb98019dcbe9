"""Migration records, in the cell database. They are changed in the transactions of the operations that move servers,
so that a record and its server never tell different stories."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.domain.flavor import Flavor
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.states import VmState

migrations = sa.Table(
    "migrations",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("instance_uuid", Uuid, nullable=False),
    sa.Column("user_id", sa.String(64)),
    sa.Column("project_id", sa.String(64)),
    sa.Column("migration_type", sa.String(32), nullable=False),
    sa.Column("status", sa.String(32), nullable=False),
    sa.Column("source_compute", sa.String(255)),
    sa.Column("source_node", sa.String(255)),
    sa.Column("dest_compute", sa.String(255)),
    sa.Column("dest_node", sa.String(255)),
    sa.Column("dest_address", sa.String(64)),
    sa.Column("old_flavor", Json(Flavor), nullable=False),
    sa.Column("new_flavor", Json(Flavor), nullable=False),
    sa.Column("old_vm_state", sa.String(32), nullable=False),
    sa.Column("hidden", sa.Boolean, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Index("migrations_instance", "instance_uuid", "status"),
    sa.Index("migrations_destination", "dest_compute", "status"),
    sa.Index("migrations_created", "created_at", "id"),
)


def _migration(row: Any) -> Migration:
    fields = dict(row._mapping)
    return Migration(**fields | {
        "migration_type": MigrationType(row.migration_type), "status": MigrationStatus(row.status),
        "old_vm_state": VmState(row.old_vm_state),
    })


def insert(conn: sa.Connection, migration: Migration) -> None:
    """Store a new record; it gets its number."""
    row = {name: getattr(migration, name) for name in Migration.__struct_fields__ if name != "id"}
    for name in ("migration_type", "status", "old_vm_state"):
        row[name] = row[name].value
    conn.execute(sa.insert(migrations).values(row))


def of_server(
    conn: sa.Connection, instance_uuid: str, statuses: Collection[MigrationStatus] | None = None
) -> list[Migration]:
    """The migrations of a server, newest first. statuses: only those in one of them."""
    query = sa.select(migrations).where(migrations.c.instance_uuid == instance_uuid).order_by(migrations.c.id.desc())
    if statuses is not None:
        query = query.where(migrations.c.status.in_([status.value for status in statuses]))
    return [_migration(row) for row in conn.execute(query)]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which migrations to list; None asks for all. Times are seconds since the epoch, of the last change.

    Args:
        host: source or destination.
    """

    instance_uuid: str | None = None
    host: str | None = None
    source_compute: str | None = None
    status: str | None = None
    migration_type: str | None = None
    user_id: str | None = None
    project_id: str | None = None
    changed_since: float | None = None
    changed_before: float | None = None


def listed(conn: sa.Connection, wanted: Wanted, *, limit: int | None, after: Migration | None) -> list[Migration]:
    """Migrations that may be shown, newest first, at most `limit`, those after one of them if given."""
    table = migrations.c
    query = sa.select(migrations).where(table.hidden.is_(False))
    for name in ("instance_uuid", "source_compute", "status", "migration_type", "user_id", "project_id"):
        value = getattr(wanted, name)
        if value is not None:
            query = query.where(table[name] == value)
    if wanted.host is not None:
        query = query.where(sa.or_(table.source_compute == wanted.host, table.dest_compute == wanted.host))
    changed = sa.func.coalesce(table.updated_at, table.created_at)
    if wanted.changed_since is not None:
        query = query.where(changed >= wanted.changed_since)
    if wanted.changed_before is not None:
        query = query.where(changed <= wanted.changed_before)
    if after is not None:
        query = query.where(sa.or_(
            table.created_at < after.created_at, sa.and_(table.created_at == after.created_at, table.id < after.id)
        ))
    query = query.order_by(table.created_at.desc(), table.id.desc()).limit(limit)
    return [_migration(row) for row in conn.execute(query)]


def find(conn: sa.Connection, uuid: str) -> Migration | None:
    row = conn.execute(sa.select(migrations).where(migrations.c.uuid == uuid)).first()
    return None if row is None else _migration(row)


def finished_on(conn: sa.Connection, host: str, *, before: float) -> list[Migration]:
    """Migrations that brought a server to this host, last changed before that time and not decided yet. Oldest first.
    """
    query = sa.select(migrations).where(
        migrations.c.dest_compute == host, migrations.c.status == MigrationStatus.FINISHED.value,
        migrations.c.updated_at < before,
    )
    return [_migration(row) for row in conn.execute(query.order_by(migrations.c.id))]


def in_error(conn: sa.Connection) -> list[Migration]:
    """Migrations that failed and after which nobody has cleaned up. Oldest first."""
    query = sa.select(migrations).where(migrations.c.status == MigrationStatus.ERROR.value).order_by(migrations.c.id)
    return [_migration(row) for row in conn.execute(query)]


def change(
    conn: sa.Connection, uuid: str, *, now: float, was: Collection[MigrationStatus], **changes: Any
) -> bool:
    """Change a record that is in one of these statuses. Returns False, having changed nothing, if it is not.

    Spec: FND-26, RSZ-04, PER-44.
    """
    statement = (
        sa.update(migrations)
        .where(migrations.c.uuid == uuid, migrations.c.status.in_([status.value for status in was]))
        .values(updated_at=now, **{k: v.value if isinstance(v, MigrationStatus) else v for k, v in changes.items()})
    )
    return bool(conn.execute(statement).rowcount)
