"""What users are told of what went wrong in the background: units of work."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.records import Message

table = schema.messages
column = table.c

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
    conn.execute(table.insert().values(msgspec.structs.asdict(made)))


def visible(conn: sa.Connection, caller: RequestContext, message_id: str) -> Message:
    """Raises NotFound."""
    row = None
    if "\0" not in message_id:
        row = conn.execute(sa.select(table).where(column.id == message_id)).one_or_none()
    if row is None or (not caller.is_admin and row.project_id != caller.project_id):
        raise NotFound(f"Message {message_id} could not be found.")
    return Message(**row._mapping)


def of_resource(conn: sa.Connection, resource_id: str) -> list[Message]:
    """Newest first."""
    rows = conn.execute(
        sa.select(table).where(column.resource_uuid == resource_id).order_by(column.created_at.desc(), column.id)
    )
    return [Message(**row._mapping) for row in rows]


def delete(conn: sa.Connection, message_id: str) -> None:
    conn.execute(table.delete().where(column.id == message_id))
