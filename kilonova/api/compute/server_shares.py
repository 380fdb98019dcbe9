"""Shared file systems of servers. A server of another project is refused, not hidden.

Spec: API-042, API-184 to API-187, API-472, API-597.
"""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.api.compute.answers import shares as answers
from kilonova.api.compute.field_types import UUID
from kilonova.api.compute.server_lookup import find_server_of_anyone
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Query
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, optional, required
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.domain.share import LONGEST_TAG, ShareMapping, ShareStatus
from kilonova.operations import attach_share, detach_share
from kilonova.operations.attach_share import ATTACH_SHARE, AttachShare
from kilonova.operations.detach_share import DETACH_SHARE, DetachShare

ATTACH = Object({"share": required(Object({
    "share_id": required(UUID), "tag": optional(Text(1, 255, r"[a-zA-Z0-9-]*")),
}))})


def _row(call: Call, mapping: ShareMapping) -> dict[str, Any]:
    status = mapping.shown_status(call.server.instance.power_state)
    return {"share_id": mapping.share_id, "status": status.value, "tag": mapping.tag}


def _view(call: Call, mapping: ShareMapping) -> dict[str, Any]:
    """Spec: API-472."""
    shown = _row(call, mapping)
    if call.context.is_admin:
        shown |= {"uuid": mapping.uuid, "export_location": mapping.export_location}
    return {"share": shown}


async def index(call: Call) -> Any:
    return {"shares": [_row(call, mapping) for mapping in call.server.instance.shares]}


async def attach(call: Call) -> Any:
    """Answers when the host has been asked. A tag that virtio has no room for is refused."""
    asked = call.body["share"]
    server_records.check_lock(call, call.server.instance)
    server_records.check_state(call.server.instance, "create share", attach_share.STATES)
    share = await call.cloud.shares.show(call.context, asked["share_id"])
    tag = asked.get("tag", share.id)
    if len(tag) > LONGEST_TAG:
        raise InvalidInput(f"Tag {tag!r} is longer than the {LONGEST_TAG} characters that a guest can be shown.")
    request = AttachShare(share_id=share.id, tag=tag, export_location=share.export_location)
    record = await call.cloud.compute.ask_and_wait(call.context, call.server, ATTACH_SHARE, request)
    return _view(call, ShareMapping(
        uuid=record.id, share_id=share.id, tag=tag, export_location=share.export_location,
        status=ShareStatus.INACTIVE,
    ))


async def show(call: Call) -> Any:
    return _view(call, _attached(call))


async def detach(call: Call) -> None:
    """Answers when the share is detached."""
    server_records.check_lock(call, call.server.instance)
    server_records.check_state(call.server.instance, "delete share", detach_share.STATES)
    mapping = _attached(call)
    await call.cloud.compute.ask_and_wait(call.context, call.server, DETACH_SHARE, DetachShare(mapping.share_id))


def _attached(call: Call) -> ShareMapping:
    """Raises NotFound."""
    for mapping in call.server.instance.shares:
        if mapping.share_id == call.path["id"]:
            return mapping
    raise NotFound(f"Share {call.path['id']} is not attached to instance {call.server.instance.uuid}.")


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-server-shares:{name}", audience)


_ALL = "/servers/{server_id}/shares"
_ONE = f"{_ALL}/{{id}}"
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, look_up=find_server_of_anyone,
          rule=_rule("index", Audience.READER), since=97, query=Query(), answer=answers.SHARES),
    Route(method="POST", path=_ALL, handler=attach, look_up=find_server_of_anyone,
          rule=_rule("create", Audience.MEMBER), since=97, body=ATTACH, status=201, answer=answers.SHARE),
    Route(method="GET", path=_ONE, handler=show, look_up=find_server_of_anyone,
          rule=_rule("show", Audience.READER), since=97, query=Query(), answer=answers.SHARE),
    Route(method="DELETE", path=_ONE, handler=detach, look_up=find_server_of_anyone,
          rule=_rule("delete", Audience.MEMBER), since=97),
]
