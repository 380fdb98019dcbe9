"""Attachments: what servers hold volumes by, since 3.27. Spec: section 5.4, EMV-13 to EMV-25."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import empty_response, json_object, json_response
from kilonova.embedded.volume import attachments, schema
from kilonova.embedded.volume.api import listing
from kilonova.embedded.volume.api.call import Access, Call, Method, text
from kilonova.embedded.volume.api.records import lists, shows
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.records import Attachment

SINCE = 27
COMPLETE_SINCE = 44
MODE_SINCE = 54

column = schema.attachments.c

KIND = listing.Kind(
    table=schema.attachments, record=Attachment, name="attachment",
    sorts={
        "id": column.id, "created_at": column.created_at, "status": sa.type_coerce(column.status, sa.Text),
        "volume_id": column.volume_id, "instance_id": sa.func.coalesce(column.instance_id, ""),
    },
    filters={
        "volume_id": listing.equal(column.volume_id), "instance_id": listing.equal(column.instance_id),
        "status": listing.equal(column.status), "attach_status": listing.equal(column.status),
    },
)


class AttachmentBody(msgspec.Struct, forbid_unknown_fields=True):
    volume_uuid: str
    instance_uuid: str | None = None
    connector: dict[str, Any] | None = None
    mode: str | None = None


class ConnectorBody(msgspec.Struct, forbid_unknown_fields=True):
    connector: dict[str, Any]


def methods() -> list[Method]:
    return [
        Method("GET", "/attachments", lists(KIND, _brief), since=SINCE),
        Method("GET", "/attachments/detail", lists(KIND, _full), since=SINCE),
        Method("POST", "/attachments", _create, Access.MEMBER, since=SINCE),
        Method("GET", "/attachments/{id}", shows(KIND, attachments.visible, _full), since=SINCE),
        Method("PUT", "/attachments/{id}", _update, Access.MEMBER, since=SINCE),
        Method("DELETE", "/attachments/{id}", _delete, Access.MEMBER, since=SINCE),
        Method("POST", "/attachments/{id}/action", _complete, Access.MEMBER, since=COMPLETE_SINCE),
    ]


def _brief(_call: Call, attachment: Attachment) -> dict[str, Any]:
    return {"id": attachment.id, "status": attachment.status.value, "instance": attachment.instance_id,
            "volume_id": attachment.volume_id}


def _full(call: Call, attachment: Attachment) -> dict[str, Any]:
    """connection_info: flat, {} while nobody connects. Spec: EMV-20."""
    return _brief(call, attachment) | {
        "attached_at": time(attachment.attached_at) or "", "detached_at": "", "attach_mode": attachment.mode,
        "connection_info": attachment.connection or {},
    }


async def _create(call: Call) -> Response:
    """Spec: EMV-13, EMV-25: before 3.54 the mode is what the connector says."""
    body = await call.body("attachment", AttachmentBody)
    if body.mode is not None and call.version < MODE_SINCE:
        raise InvalidInput("An attachment has a mode of its own from version 3.54 on.")
    mode = body.mode or (body.connector or {}).get("mode")
    made = await call.volumes.attachments.create(
        call.who, body.volume_uuid, text("instance_uuid", body.instance_uuid, 36, 1),
        connector=body.connector or None, mode=mode,
    )
    return json_response({"attachment": _full(call, made)})


async def _update(call: Call) -> Response:
    body = await call.body("attachment", ConnectorBody)
    if not body.connector:
        raise InvalidInput("The connector says who connects: it must not be empty.")
    made = await call.volumes.attachments.update(call.who, call.path(), body.connector)
    return json_response({"attachment": _full(call, made)})


async def _complete(call: Call) -> Response:
    if set(await json_object(call.request)) != {"os-complete"}:
        raise InvalidInput("The only action of attachments is os-complete.")
    await call.volumes.attachments.complete(call.who, call.path())
    return empty_response()


async def _delete(call: Call) -> Response:
    left = await call.volumes.attachments.delete(call.who, call.path(), by_service=call.by_service)
    return json_response({"attachments": [_brief(call, one) for one in left]})
