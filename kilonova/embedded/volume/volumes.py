"""The records of volumes: units of work. Every change of a status is guarded by the one that it follows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import VolumeNotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import IDLE_MIGRATIONS, AttachStatus, VolumeStatus, shown, strongest

table = schema.volumes
column = table.c


def insert(conn: sa.Connection, volume: Volume) -> None:
    conn.execute(table.insert().values(msgspec.structs.asdict(volume)))


def find(conn: sa.Connection, volume_id: str, *, lock: bool = False) -> Volume | None:
    """lock: nobody else changes it until the transaction ends."""
    if "\0" in volume_id:
        return None
    query = sa.select(table).where(column.id == volume_id)
    row = conn.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else Volume(**row._mapping)


def get(conn: sa.Connection, volume_id: str, *, lock: bool = False) -> Volume:
    """Raises VolumeNotFound."""
    found = find(conn, volume_id, lock=lock)
    if found is None:
        raise VolumeNotFound(volume_id)
    return found


def visible(conn: sa.Connection, caller: RequestContext, volume_id: str, *, lock: bool = False) -> Volume:
    """A volume that the caller may see. Raises VolumeNotFound. Spec: EMV-06."""
    found = get(conn, volume_id, lock=lock)
    if not caller.is_admin and found.project_id != caller.project_id:
        raise VolumeNotFound(volume_id)
    return found


def change(conn: sa.Connection, volume_id: str, now: float, **values: Any) -> None:
    """Change what depends on no status. Raises VolumeNotFound."""
    if not conn.execute(table.update().where(column.id == volume_id).values(updated_at=now, **values)).rowcount:
        raise VolumeNotFound(volume_id)


def move(
    conn: sa.Connection, volume_id: str, before: Collection[VolumeStatus], status: VolumeStatus, now: float,
    **values: Any,
) -> bool:
    """Give a volume a status. False, and nothing is changed, if it has none of `before`."""
    guarded = table.update().where(column.id == volume_id, column.status.in_(before))
    return bool(conn.execute(guarded.values(status=status, updated_at=now, **values)).rowcount)


def begin(
    conn: sa.Connection, volume_id: str, before: Collection[VolumeStatus], status: VolumeStatus, now: float,
    **values: Any,
) -> Volume:
    """Take a volume for an operation that gives it back with `finish`. Returns it as it was.

    Raises:
        VolumeNotFound. InvalidVolume: it has none of the statuses `before`.
    """
    volume = get(conn, volume_id, lock=True)
    if volume.status not in before or not move(
        conn, volume_id, [volume.status], status, now, previous_status=volume.status, **values
    ):
        wanted = " or ".join(sorted(one.value for one in before))
        raise InvalidVolume(volume_id, f"must be {wanted}, but is {volume.status.value}")
    return volume


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
    conn.execute(table.delete().where(column.id == volume_id))
