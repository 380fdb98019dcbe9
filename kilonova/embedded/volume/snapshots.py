"""The records of snapshots: units of work."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.domain.errors import VolumeSnapshotNotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import InvalidSnapshot
from kilonova.embedded.volume.owned import GuardedRecords
from kilonova.embedded.volume.records import Snapshot
from kilonova.embedded.volume.states import SnapshotStatus

table = schema.snapshots
column = table.c

_records: GuardedRecords[Snapshot, SnapshotStatus] = GuardedRecords(
    table, Snapshot, VolumeSnapshotNotFound, InvalidSnapshot
)
insert = _records.insert
get = _records.get
visible = _records.visible
of_project = _records.of_project
change = _records.change
move = _records.move
begin = _records.begin
delete = _records.delete


def of_volume(conn: sa.Connection, volume_id: str) -> list[Snapshot]:
    """Oldest first."""
    rows = conn.execute(sa.select(table).where(column.volume_id == volume_id).order_by(column.created_at, column.id))
    return [Snapshot(**row._mapping) for row in rows]
