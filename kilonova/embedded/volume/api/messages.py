"""What users are told of what went wrong in the background, since 3.3. Spec: section 5.1."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from starlette.responses import Response

from kilonova.embedded.http import empty_response
from kilonova.embedded.volume import messages, schema
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.call import Access, Call, Method
from kilonova.embedded.volume.api.records import lists, shows
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.records import Message

SINCE = 3

column = schema.messages.c

KIND = listing.Kind(
    table=schema.messages, record=Message, name="message",
    sorts={
        "id": column.id, "event_id": column.event_id, "resource_type": column.resource_type,
        "created_at": column.created_at, "guaranteed_until": column.guaranteed_until,
        "request_id": column.request_id, "resource_uuid": column.resource_uuid,
    },
    filters={
        "event_id": listing.equal(column.event_id), "resource_type": listing.equal(column.resource_type),
        "resource_uuid": listing.equal(column.resource_uuid), "request_id": listing.equal(column.request_id),
        "message_level": lambda name, value: sa.literal(value == "ERROR"),
    },
)


def methods() -> list[Method]:
    return [
        Method("GET", "/messages", lists(KIND, _view), since=SINCE),
        Method("GET", "/messages/{id}", shows(KIND, messages.visible, _view), since=SINCE),
        Method("DELETE", "/messages/{id}", _delete, Access.MEMBER, since=SINCE),
    ]


def _view(call: Call, message: Message) -> dict[str, Any]:
    return {
        "id": message.id, "request_id": message.request_id, "message_level": "ERROR", "event_id": message.event_id,
        "user_message": message.user_message, "resource_type": message.resource_type,
        "resource_uuid": message.resource_uuid, "created_at": time(message.created_at),
        "guaranteed_until": time(message.guaranteed_until), "links": call.links(f"/messages/{message.id}"),
    }


async def _delete(call: Call) -> Response:
    def unit(conn: sa.Connection) -> None:
        messages.visible(conn, call.who, call.path())
        messages.delete(conn, call.path())

    await call.write(unit)
    return empty_response()
