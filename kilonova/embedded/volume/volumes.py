"""The records of volumes: units of work. Every change of a status is guarded by the one that it follows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from kilonova.domain.errors import VolumeNotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.owned import GuardedRecords
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import IDLE_MIGRATIONS, TARGET, AttachStatus, VolumeStatus, shown, strongest

table = schema.volumes
column = table.c

_records: GuardedRecords[Volume, VolumeStatus] = GuardedRecords(table, Volume, VolumeNotFound, InvalidVolume)
insert = _records.insert
find = _records.find
get = _records.get
visible = _records.visible
change = _records.change
move = _records.move


def begin(
    conn: sa.Connection, volume_id: str, before: Collection[VolumeStatus], status: VolumeStatus, now: float,
    **values: Any,
) -> Volume:
    """Take a volume for an operation that gives it back with `finish`. Returns it as it was.

    Raises:
        VolumeNotFound. InvalidVolume: it has none of the statuses `before`.
    """
    return _records.begin(conn, volume_id, before, status, now, previous_status=column.status, **values)


def of_project(conn: sa.Connection, project_id: str, *, limit: int, offset: int) -> list[Volume]:
    """Newest first, without those that are to replace others."""
    shown_ones = sa.func.coalesce(column.migration_status, "").not_like(f"{TARGET}%")
    return _records.of_project(conn, project_id, shown_ones, limit=limit, offset=offset)


def finish(conn: sa.Connection, volume_id: str, owned: VolumeStatus, now: float, **values: Any) -> None:
    """Give a volume back as its attachments tell, unless somebody reset its status meanwhile."""
    status = shown(attached(conn, volume_id))
    move(conn, volume_id, [owned], status, now, previous_status=None, **values)


def refuse_migrating(volume: Volume) -> None:
    """Raises InvalidVolume."""
    if volume.migration_status not in IDLE_MIGRATIONS:
        raise InvalidVolume(volume.id, f"is part of a migration ({volume.migration_status})")


def attached(conn: sa.Connection, volume_id: str) -> AttachStatus:
    """What the attachments of a volume tell of it as a whole. Spec: EMV-01."""
    c = schema.attachments.c
    return strongest(conn.execute(sa.select(c.status).where(c.volume_id == volume_id)).scalars())


def delete(conn: sa.Connection, volume_id: str) -> None:
    """Forget a volume with its transfer. It has no snapshots and no attachments any more."""
    conn.execute(schema.transfers.delete().where(schema.transfers.c.volume_id == volume_id))
    _records.delete(conn, volume_id)
