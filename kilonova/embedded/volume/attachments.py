"""The records of attachments: units of work. Reserving one and completing one are no more than that."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.volume import schema, volumes
from kilonova.embedded.volume.errors import AttachmentNotFound, InvalidVolume
from kilonova.embedded.volume.owned import OwnedRecords
from kilonova.embedded.volume.records import Attachment, Volume
from kilonova.embedded.volume.states import AttachStatus, VolumeStatus, shown

table = schema.attachments
column = table.c

S = VolumeStatus
FREE = (S.AVAILABLE, S.DOWNLOADING)
SHAREABLE = (*FREE, S.IN_USE, S.RESERVED, S.ATTACHING)
MOVED_BY_ATTACHMENTS = (S.AVAILABLE, S.RESERVED, S.ATTACHING, S.IN_USE)

_records = OwnedRecords(table, Attachment, AttachmentNotFound)
find = _records.find
get = _records.get
visible = _records.visible


def of_volume(conn: sa.Connection, volume_id: str) -> list[Attachment]:
    """Oldest first."""
    rows = conn.execute(sa.select(table).where(column.volume_id == volume_id).order_by(column.created_at, column.id))
    return [Attachment(**row._mapping) for row in rows]


def of_instance(conn: sa.Connection, instance_id: str) -> list[Attachment]:
    """Those of a server, oldest first."""
    rows = conn.execute(
        sa.select(table).where(column.instance_id == instance_id).order_by(column.created_at, column.id)
    )
    return [Attachment(**row._mapping) for row in rows]


def with_connectors(conn: sa.Connection) -> list[Attachment]:
    """All that are to have exports."""
    rows = conn.execute(sa.select(table).where(column.connector.is_not(None)))
    return [Attachment(**row._mapping) for row in rows]


def mode_of(volume: Volume, mode: str | None) -> str:
    """The mode of a new attachment. Raises InvalidInput. Spec: EMV-25."""
    if mode not in (None, "rw", "ro"):
        raise InvalidInput(f"Invalid attach mode {mode!r}: it must be rw or ro.")
    if volume.readonly and mode == "rw":
        raise InvalidVolume(volume.id, "is read-only and cannot be attached in mode rw")
    return "ro" if volume.readonly else mode or "rw"


def reserve(
    conn: sa.Connection, caller: RequestContext, volume_id: str, instance_id: str | None, now: float, *,
    mode: str | None = None, attachment_id: str | None = None,
) -> Attachment:
    """Make an attachment without a connector.

    A server that has an attachment of the volume gets another one at any time: it is moving between hosts, or gets
    its volume anew. Of two other servers that want a volume for themselves one gets it.

    Raises:
        VolumeNotFound. InvalidInput: the mode. InvalidVolume: somebody else has it, or it is not ready.
    Spec: EMV-13, EMV-14, EMV-15, EMV-25.
    """
    volume = volumes.visible(conn, caller, volume_id, lock=True)
    mode = mode_of(volume, mode)
    again = instance_id is not None and any(one.instance_id == instance_id for one in of_volume(conn, volume_id))
    allowed = SHAREABLE if volume.multiattach else FREE
    if not again:
        if volume.migration_target_of is None:
            volumes.refuse_migrating(volume)
        if volume.status not in allowed:
            wanted = " or ".join(one.value for one in allowed)
            raise InvalidVolume(volume_id, f"must be {wanted} to be attached, but is {volume.status.value}")
    made = Attachment(
        id=attachment_id or str(uuid.uuid4()), volume_id=volume_id, project_id=volume.project_id,
        instance_id=instance_id, mode=mode, created_at=now, updated_at=now,
    )
    _records.insert(conn, made)
    if not again:
        follow(conn, volume_id, now, also=FREE)
    return made


def adopt(conn: sa.Connection, caller: RequestContext, volume_id: str, host: str, now: float) -> Attachment:
    """Make an attachment of a volume that is available, or was reserved without one, for a host. Raises
    InvalidVolume."""
    volume = volumes.visible(conn, caller, volume_id, lock=True)
    allowed = SHAREABLE if volume.multiattach else (S.AVAILABLE, S.ATTACHING)
    if volume.status not in allowed or (of_volume(conn, volume_id) and not volume.multiattach):
        raise InvalidVolume(volume_id, f"cannot be connected while it is {volume.status.value}")
    made = Attachment(
        id=str(uuid.uuid4()), volume_id=volume_id, project_id=volume.project_id, host_name=host,
        mode=mode_of(volume, None), status=AttachStatus.ATTACHING, created_at=now, updated_at=now,
    )
    _records.insert(conn, made)
    follow(conn, volume_id, now)
    return made


def own(conn: sa.Connection, attachment_id: str, now: float, **values: Any) -> None:
    """Say whose an attachment is, where and in which mode."""
    conn.execute(table.update().where(column.id == attachment_id).values(updated_at=now, **values))


def follow(
    conn: sa.Connection, volume_id: str, now: float, *, also: tuple[VolumeStatus, ...] = (),
) -> None:
    """Let the volume's status follow its attachments, if it tells of nothing else. also: statuses that go, too.

    A volume in use by one server stays so while another reserves it. Spec: EMV-01.
    """
    whole = volumes.attached(conn, volume_id)
    volumes.change(conn, volume_id, now, attach_status=whole)
    volumes.move(conn, volume_id, (*MOVED_BY_ATTACHMENTS, *also), shown(whole), now)


def connect(conn: sa.Connection, attachment: Attachment, connector: dict[str, Any], now: float) -> None:
    """Record who connects. One that is attached stays so. Spec: EMV-16."""
    status = attachment.status if attachment.status is AttachStatus.ATTACHED else AttachStatus.ATTACHING
    mountpoint = connector.get("mountpoint") or attachment.mountpoint
    conn.execute(table.update().where(column.id == attachment.id).values(
        connector=connector, status=status, mountpoint=mountpoint, updated_at=now,
    ))
    follow(conn, attachment.volume_id, now)


def connected(conn: sa.Connection, attachment_id: str, connection: dict[str, Any], now: float) -> None:
    """Record what the connector needs."""
    conn.execute(table.update().where(column.id == attachment_id).values(connection=connection, updated_at=now))


def mark(conn: sa.Connection, attachment_id: str, status: AttachStatus, now: float) -> None:
    """Give an attachment a status that does not change the volume's."""
    conn.execute(table.update().where(column.id == attachment_id).values(status=status, updated_at=now))


def disconnect(conn: sa.Connection, attachment: Attachment, now: float) -> None:
    """Forget who connects: nothing is exported. It is reserved again."""
    conn.execute(table.update().where(column.id == attachment.id).values(
        connector=None, connection=None, status=AttachStatus.RESERVED, updated_at=now,
    ))
    follow(conn, attachment.volume_id, now)


def complete(conn: sa.Connection, attachment_id: str, now: float) -> Attachment:
    """The server has the volume. Repeating it changes nothing. Raises AttachmentNotFound. Spec: EMV-17."""
    before = get(conn, attachment_id)
    if before.status is not AttachStatus.ATTACHED:
        volumes.get(conn, before.volume_id, lock=True)
        conn.execute(table.update().where(column.id == attachment_id).values(
            status=AttachStatus.ATTACHED, attached_at=now, updated_at=now,
        ))
        follow(conn, before.volume_id, now)
    return get(conn, attachment_id)


def give(conn: sa.Connection, from_: str, to: str, now: float) -> None:
    """Make the attachments of one volume those of another."""
    for one in of_volume(conn, from_):
        connection = one.connection | {"volume_id": to} if one.connection is not None else None
        conn.execute(table.update().where(column.id == one.id).values(
            volume_id=to, connection=connection, updated_at=now,
        ))


def delete(conn: sa.Connection, attachment: Attachment, now: float, *, forced: bool = False) -> list[Attachment]:
    """Forget an attachment whose export is gone. Returns those that the volume has left. forced: also of a volume in
    error, which is well again if it has none left. Spec: EMV-01, EMV-18."""
    volumes.get(conn, attachment.volume_id, lock=True)
    _records.delete(conn, attachment.id)
    left = of_volume(conn, attachment.volume_id)
    follow(conn, attachment.volume_id, now, also=(S.DETACHING, S.ERROR) if forced and not left else (S.DETACHING,))
    return left
