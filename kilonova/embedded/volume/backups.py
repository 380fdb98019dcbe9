"""The records of backups: units of work. Their data are files outside all pools."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import BackupNotFound, InvalidBackup
from kilonova.embedded.volume.records import Backup
from kilonova.embedded.volume.states import BackupStatus

table = schema.backups
column = table.c


def insert(conn: sa.Connection, backup: Backup) -> None:
    conn.execute(table.insert().values(msgspec.structs.asdict(backup)))


def get(conn: sa.Connection, backup_id: str, *, lock: bool = False) -> Backup:
    """Raises BackupNotFound."""
    row = None
    if "\0" not in backup_id:
        query = sa.select(table).where(column.id == backup_id)
        row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise BackupNotFound(backup_id)
    return Backup(**row._mapping)


def visible(conn: sa.Connection, caller: RequestContext, backup_id: str, *, lock: bool = False) -> Backup:
    """A backup that the caller may see. Raises BackupNotFound."""
    found = get(conn, backup_id, lock=lock)
    if not caller.is_admin and found.project_id != caller.project_id:
        raise BackupNotFound(backup_id)
    return found


def change(conn: sa.Connection, backup_id: str, now: float, **values: Any) -> None:
    """Change what depends on no status. Raises BackupNotFound."""
    if not conn.execute(table.update().where(column.id == backup_id).values(updated_at=now, **values)).rowcount:
        raise BackupNotFound(backup_id)


def move(
    conn: sa.Connection, backup_id: str, before: Collection[BackupStatus], status: BackupStatus, now: float,
    **values: Any,
) -> bool:
    """Give a backup a status. False, and nothing is changed, if it has none of `before`."""
    guarded = table.update().where(column.id == backup_id, column.status.in_(before))
    return bool(conn.execute(guarded.values(status=status, updated_at=now, **values)).rowcount)


def begin(
    conn: sa.Connection, backup_id: str, before: Collection[BackupStatus], status: BackupStatus, now: float
) -> Backup:
    """Take a backup for an operation. Returns it as it was.

    Raises:
        BackupNotFound. InvalidBackup: it has none of the statuses `before`.
    """
    backup = get(conn, backup_id, lock=True)
    if backup.status not in before or not move(conn, backup_id, [backup.status], status, now):
        wanted = " or ".join(sorted(one.value for one in before))
        raise InvalidBackup(backup_id, f"must be {wanted}, but is {backup.status.value}")
    return backup


def delete(conn: sa.Connection, backup_id: str) -> None:
    conn.execute(table.delete().where(column.id == backup_id))
