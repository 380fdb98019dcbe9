"""What servers have done with their volumes, in the cell database: one row for each server and volume.

A guest counts from its start, or from when it got the volume. What it had counted before is kept in the totals, so that
the sum only grows. Spec: VOL-32, PER-69.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Timestamp, Uuid
from kilonova.db.upsert import insert_new
from kilonova.domain.instance import Instance
from kilonova.hypervisor.volumes import VolumeUsage

COUNTERS = VolumeUsage.__struct_fields__
NOTHING = VolumeUsage(**dict.fromkeys(COUNTERS, 0))

volume_usage = sa.Table(
    "volume_usage",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("volume_id", sa.String(255), nullable=False),
    sa.Column("instance_uuid", Uuid, nullable=False),
    sa.Column("project_id", sa.String(255), nullable=False),
    sa.Column("user_id", sa.String(255), nullable=False),
    sa.Column("availability_zone", sa.String(255)),
    sa.Column("refreshed_at", Timestamp, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTERS),
    *(sa.Column(f"total_{name}", sa.BigInteger, nullable=False) for name in COUNTERS),
    sa.UniqueConstraint("instance_uuid", "volume_id"),
)
_table = volume_usage.c


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """All that a server has ever done with a volume. refreshed_at: seconds since the epoch."""

    volume_id: str
    refreshed_at: float
    usage: VolumeUsage


def count(
    conn: sa.Connection, of: Instance, volume_id: str, now_counted: VolumeUsage, *, now: float, ended: bool = False
) -> Counted:
    """Store what a guest has counted.

    Args:
        now: seconds since the epoch. ended: the guest loses the volume, so that it will count from nothing.
    """
    owner = {
        "project_id": of.project_id, "user_id": of.user_id, "availability_zone": of.availability_zone,
        "refreshed_at": now,
    }
    insert_new(conn, volume_usage, {
        "volume_id": volume_id, "instance_uuid": of.uuid, **owner, **dict.fromkeys(COUNTERS, 0),
        **{f"total_{name}": 0 for name in COUNTERS},
    })
    mine = sa.and_(_table.instance_uuid == of.uuid, _table.volume_id == volume_id)
    row = conn.execute(sa.select(volume_usage).where(mine).with_for_update()).one()
    began_anew = any(getattr(now_counted, name) < getattr(row, name) for name in COUNTERS)
    totals = {
        name: getattr(row, f"total_{name}") + (getattr(row, name) if began_anew else 0) for name in COUNTERS
    }
    sums = {name: totals[name] + getattr(now_counted, name) for name in COUNTERS}
    kept = sums if ended else totals
    current = NOTHING if ended else now_counted
    conn.execute(sa.update(volume_usage).where(mine).values(
        **owner, **{name: getattr(current, name) for name in COUNTERS},
        **{f"total_{name}": kept[name] for name in COUNTERS},
    ))
    return Counted(volume_id=volume_id, refreshed_at=now, usage=VolumeUsage(**sums))


def refreshed_since(conn: sa.Connection, since: float) -> set[tuple[str, str]]:
    """Servers and volumes that were counted since then."""
    rows = conn.execute(sa.select(_table.instance_uuid, _table.volume_id).where(_table.refreshed_at >= since))
    return {(row.instance_uuid, row.volume_id) for row in rows}
