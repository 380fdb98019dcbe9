"""Block device mappings of servers, in the cell database beside their servers.

A mapping is known by its own uuid; two of one server never have the same volume or the same device name. A row is
removed as soon as its volume is detached, so that none tells of a volume that its server has lost; deleting a server
leaves the rows whose volumes are not free yet. Spec: BDM-31, RBN-10.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import EnumValue, Timestamp, Uuid
from kilonova.db.upsert import insert_new
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import DeviceNameTaken, NotFound, Retryable, VolumeAttachedAlready, VolumeNotAttached

block_device_mappings = sa.Table(
    "block_device_mappings",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("instance_uuid", Uuid, nullable=False),
    sa.Column("source_type", sa.String(16), nullable=False),
    sa.Column("destination_type", sa.String(16), nullable=False),
    sa.Column("boot_index", sa.Integer),
    sa.Column("image_id", sa.String(255)),
    sa.Column("volume_id", sa.String(255), index=True),
    sa.Column("snapshot_id", sa.String(255)),
    sa.Column("volume_size", sa.Integer),
    sa.Column("volume_type", sa.String(255)),
    sa.Column("guest_format", sa.String(255)),
    sa.Column("device_name", sa.String(255)),
    sa.Column("device_type", sa.String(255)),
    sa.Column("disk_bus", sa.String(255)),
    sa.Column("delete_on_termination", sa.Boolean, nullable=False),
    sa.Column("tag", sa.String(255)),
    sa.Column("attachment_id", Uuid),
    sa.Column("connection_info", sa.Text),
    sa.Column("encrypted", sa.Boolean, nullable=False),
    sa.Column("encryption_format", sa.String(128)),
    sa.Column("encryption_secret_uuid", Uuid),
    sa.Column("state", EnumValue(AttachState), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.UniqueConstraint("instance_uuid", "volume_id"),
    sa.UniqueConstraint("instance_uuid", "device_name"),
)

_table = block_device_mappings.c
_FIELDS = BlockDevice.__struct_fields__


def _device(row: Any) -> BlockDevice:
    return BlockDevice(**{name: getattr(row, name) for name in _FIELDS})


def insert(conn: sa.Connection, instance_uuid: str, device: BlockDevice, *, now: float) -> None:
    """Store a new mapping; one that is stored already is left as it is (the call is repeatable).

    Args:
        now: seconds since the epoch.

    Raises:
        VolumeAttachedAlready: the server has the volume. DeviceNameTaken: another disk of it has the name.
        Retryable: and that went away meanwhile.
    """
    row = {name: getattr(device, name) for name in _FIELDS}
    row |= {"instance_uuid": instance_uuid, "created_at": now}
    if insert_new(conn, block_device_mappings, row) is not None:
        return
    others = of_server(conn, instance_uuid)
    if all(other.uuid != device.uuid for other in others):
        _check_unique(instance_uuid, device, others)
        raise Retryable(f"What stood against block device {device.uuid} was removed in this moment.")


def _check_unique(instance_uuid: str, device: BlockDevice, others: Collection[BlockDevice]) -> None:
    for other in others:
        if device.volume_id is not None and other.volume_id == device.volume_id:
            raise VolumeAttachedAlready(device.volume_id, instance_uuid)
        if device.device_name is not None and other.device_name == device.device_name:
            raise DeviceNameTaken(device.device_name, instance_uuid)


def get(conn: sa.Connection, uuid: str) -> BlockDevice:
    """One mapping. Raises NotFound."""
    row = conn.execute(sa.select(block_device_mappings).where(_table.uuid == uuid)).first()
    if row is None:
        raise NotFound(f"Block device {uuid} could not be found.")
    return _device(row)


def of_volume(conn: sa.Connection, instance_uuid: str, volume_id: str) -> BlockDevice:
    """The mapping of a volume that a server has. Raises VolumeNotAttached."""
    found = conn.execute(sa.select(block_device_mappings).where(
        _table.instance_uuid == instance_uuid, _table.volume_id == volume_id
    )).first()
    if found is None:
        raise VolumeNotAttached(volume_id, instance_uuid)
    return _device(found)


def of_server(conn: sa.Connection, instance_uuid: str) -> list[BlockDevice]:
    """All mappings of a server, oldest first."""
    return of_servers(conn, [instance_uuid])[instance_uuid]


def of_servers(conn: sa.Connection, instance_uuids: Collection[str]) -> dict[str, list[BlockDevice]]:
    """All mappings of each of those servers, oldest first."""
    found: dict[str, list[BlockDevice]] = {uuid: [] for uuid in instance_uuids}
    query = sa.select(block_device_mappings).where(_table.instance_uuid.in_(instance_uuids))
    for row in conn.execute(query.order_by(_table.id)):
        found[row.instance_uuid].append(_device(row))
    return found


def shown_of(conn: sa.Connection, instance_uuids: Collection[str]) -> dict[str, list[tuple[str, bool]]]:
    """What lists of servers show of their volumes: id, and whether it is deleted with the server; oldest first."""
    found: dict[str, list[tuple[str, bool]]] = {}
    query = sa.select(_table.instance_uuid, _table.volume_id, _table.delete_on_termination)
    query = query.where(_table.instance_uuid.in_(instance_uuids), _table.volume_id.is_not(None)).order_by(_table.id)
    for row in conn.execute(query):
        found.setdefault(row.instance_uuid, []).append((row.volume_id, row.delete_on_termination))
    return found


def with_volume(conn: sa.Connection, volume_id: str) -> dict[str, BlockDevice]:
    """The mappings of a volume, by the uuid of their server: several for a volume that several servers may have."""
    query = sa.select(block_device_mappings).where(_table.volume_id == volume_id)
    return {row.instance_uuid: _device(row) for row in conn.execute(query.order_by(_table.id))}


def update(
    conn: sa.Connection, uuid: str, *, now: float, was: Collection[AttachState], **changes: Any
) -> BlockDevice | None:
    """Change a mapping that is in one of these states. Who changes its volume or name holds the server's record, as
    `instances.get` with `lock` does.

    Args:
        now: seconds since the epoch. changes: names of fields of BlockDevice and their new values.

    Returns:
        The changed mapping; None, having changed nothing, if there is none in such a state.

    Raises:
        VolumeAttachedAlready, DeviceNameTaken: as of `insert`.
    """
    row = conn.execute(
        sa.select(block_device_mappings)
        .where(_table.uuid == uuid, _table.state.in_(tuple(was))).with_for_update()
    ).first()
    if row is None:
        return None
    changed = BlockDevice(**{name: getattr(row, name) for name in _FIELDS} | changes)
    others = [other for other in of_server(conn, row.instance_uuid) if other.uuid != uuid]
    _check_unique(row.instance_uuid, changed, others)
    conn.execute(sa.update(block_device_mappings).where(_table.uuid == uuid).values(updated_at=now, **changes))
    return changed


def remove(conn: sa.Connection, uuid: str) -> None:
    """Remove a mapping; none is fine."""
    conn.execute(sa.delete(block_device_mappings).where(_table.uuid == uuid))


def remove_all(conn: sa.Connection, instance_uuid: str) -> None:
    """Remove all mappings of a server; none is fine."""
    conn.execute(sa.delete(block_device_mappings).where(_table.instance_uuid == instance_uuid))
