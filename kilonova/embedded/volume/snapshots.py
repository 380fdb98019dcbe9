"""The records of snapshots: units of work."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import VolumeSnapshotNotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import InvalidSnapshot
from kilonova.embedded.volume.records import Snapshot
from kilonova.embedded.volume.states import SnapshotStatus

table = schema.snapshots
column = table.c


def insert(conn: sa.Connection, snapshot: Snapshot) -> None:
    conn.execute(table.insert().values(msgspec.structs.asdict(snapshot)))


def get(conn: sa.Connection, snapshot_id: str, *, lock: bool = False) -> Snapshot:
    """Raises VolumeSnapshotNotFound."""
    row = None
    if "\0" not in snapshot_id:
        query = sa.select(table).where(column.id == snapshot_id)
        row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise VolumeSnapshotNotFound(snapshot_id)
    return Snapshot(**row._mapping)


def visible(conn: sa.Connection, caller: RequestContext, snapshot_id: str, *, lock: bool = False) -> Snapshot:
    """A snapshot that the caller may see. Raises VolumeSnapshotNotFound."""
    found = get(conn, snapshot_id, lock=lock)
    if not caller.is_admin and found.project_id != caller.project_id:
        raise VolumeSnapshotNotFound(snapshot_id)
    return found


def of_volume(conn: sa.Connection, volume_id: str) -> list[Snapshot]:
    """Oldest first."""
    rows = conn.execute(sa.select(table).where(column.volume_id == volume_id).order_by(column.created_at, column.id))
    return [Snapshot(**row._mapping) for row in rows]


def change(conn: sa.Connection, snapshot_id: str, now: float, **values: Any) -> None:
    """Change what depends on no status. Raises VolumeSnapshotNotFound."""
    if not conn.execute(table.update().where(column.id == snapshot_id).values(updated_at=now, **values)).rowcount:
        raise VolumeSnapshotNotFound(snapshot_id)


def move(
    conn: sa.Connection, snapshot_id: str, before: Collection[SnapshotStatus], status: SnapshotStatus, now: float,
    **values: Any,
) -> bool:
    """Give a snapshot a status. False, and nothing is changed, if it has none of `before`."""
    guarded = table.update().where(column.id == snapshot_id, column.status.in_(before))
    return bool(conn.execute(guarded.values(status=status, updated_at=now, **values)).rowcount)


def begin(
    conn: sa.Connection, snapshot_id: str, before: Collection[SnapshotStatus], status: SnapshotStatus, now: float
) -> Snapshot:
    """Take a snapshot for an operation. Returns it as it was.

    Raises:
        VolumeSnapshotNotFound. InvalidSnapshot: it has none of the statuses `before`.
    """
    snapshot = get(conn, snapshot_id, lock=True)
    if snapshot.status not in before or not move(conn, snapshot_id, [snapshot.status], status, now):
        wanted = " or ".join(sorted(one.value for one in before))
        raise InvalidSnapshot(snapshot_id, f"must be {wanted}, but is {snapshot.status.value}")
    return snapshot


def delete(conn: sa.Connection, snapshot_id: str) -> None:
    conn.execute(table.delete().where(column.id == snapshot_id))
