"""What users are told of what went wrong in the background: units of work."""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import MessageNotFound
from kilonova.embedded.volume.owned import OwnedRecords
from kilonova.embedded.volume.records import Message

table = schema.messages
column = table.c

_records = OwnedRecords(table, Message, MessageNotFound)
visible = _records.visible
delete = _records.delete

KEPT = 30 * 86400.0
"""Seconds for which a message is kept."""

VOLUME, SNAPSHOT, BACKUP = "VOLUME", "VOLUME_SNAPSHOT", "VOLUME_BACKUP"
"""Types of what a message is about."""


def tell(
    conn: sa.Connection, project_id: str, request_id: str, resource_type: str, resource_id: str, event: str,
    message: str, now: float,
) -> None:
    """Keep a message, and forget old ones. event: stable name of what went wrong."""
    conn.execute(table.delete().where(column.guaranteed_until < now))
    made = Message(
        id=str(uuid.uuid4()), project_id=project_id, request_id=request_id, resource_type=resource_type,
        resource_uuid=resource_id, event_id=event, user_message=message, created_at=now, guaranteed_until=now + KEPT,
    )
    _records.insert(conn, made)


def of_resource(conn: sa.Connection, resource_id: str) -> list[Message]:
    """Newest first."""
    rows = conn.execute(
        sa.select(table).where(column.resource_uuid == resource_id).order_by(column.created_at.desc(), column.id)
    )
    return [Message(**row._mapping) for row in rows]
