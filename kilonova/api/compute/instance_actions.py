"""What was done to a server. Spec: API-168, API-169, API-460, API-461."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_filters import time
from kilonova.api.compute.server_lookup import find_server, find_server_or_deleted
from kilonova.api.compute.server_view import host_id, microseconds
from kilonova.api.paging import effective_limit, next_page
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Integer, Text
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.operations.action_log import Action, ActionEvent

LIST = Rule("os-instance-actions:list", Audience.READER)
SHOW = Rule("os-instance-actions:show", Audience.READER)
EVENTS = Rule("os-instance-actions:events", Audience.ADMIN)
EVENT_DETAILS = Rule("os-instance-actions:events:details", Audience.ADMIN)

QUERY = Query(
    {
        "limit": Param(Integer(0), since=58, single_since=58),
        "marker": Param(Text(), since=58, single_since=58),
        "changes-since": Param(Text(), since=58, single_since=58),
        "changes-before": Param(Text(), since=66, single_since=66),
    },
    strict_since=58,
)


def _shown(call: Call, action: Action) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "action": action.action,
        "instance_uuid": action.instance_uuid,
        "request_id": action.request_id,
        "user_id": action.user_id,
        "project_id": action.project_id,
        "start_time": microseconds(action.start_time),
        "message": action.message,
    }
    if call.version >= 58:
        shown["updated_at"] = microseconds(action.updated_at)
    return shown


def _shown_event(call: Call, event: ActionEvent) -> dict[str, Any]:
    all_seen = call.allows(EVENTS)
    shown: dict[str, Any] = {
        "event": event.event,
        "start_time": microseconds(event.start_time),
        "finish_time": microseconds(event.finish_time),
        "result": event.result,
    }
    if all_seen:
        shown["traceback"] = event.traceback
    if call.version >= 62:
        shown["hostId"] = host_id(call.server.instance.project_id, event.host)
        if all_seen:
            shown["host"] = event.host
    if call.version >= 84 and call.allows(EVENT_DETAILS):
        shown["details"] = event.details
    return shown


async def index(call: Call) -> Any:
    since, before = (
        None if (text := call.query.last(name)) is None else time(name, text)
        for name in ("changes-since", "changes-before")
    )
    if since is not None and before is not None and since > before:
        raise InvalidInput("The value of changes-since must be less than or equal to changes-before.")
    limit = effective_limit(call)
    uuid = call.server.instance.uuid
    try:
        actions = await call.cloud.actions.actions(
            uuid, limit=limit, marker=call.query.last("marker"), changes_since=since, changes_before=before)
    except NotFound as error:
        raise InvalidInput(f"marker [{call.query.last('marker')}] not found") from error
    found: dict[str, Any] = {"instanceActions": [_shown(call, action) for action in actions]}
    if call.version >= 58:
        path = f"/servers/{uuid}/os-instance-actions"
        found |= next_page(call, path, [action.request_id for action in actions], limit, "links")
    return found


async def show(call: Call) -> Any:
    uuid, request_id = call.server.instance.uuid, call.path["id"]
    action = await call.cloud.actions.action(uuid, request_id)
    if action is None:
        raise NotFound(f"Action for request_id {request_id} on instance {uuid} not found")
    shown = _shown(call, action)
    if call.version >= 51 or call.allows(EVENTS):
        shown["events"] = [_shown_event(call, event) for event in action.events]
    return {"instanceAction": shown}


_PATH = "/servers/{server_id}/os-instance-actions"

ROUTES = [
    Route(method="GET", path=_PATH, handler=index, look_up=find_server, rule=LIST, query=QUERY, until=20,
          answer=answers.ACTIONS),
    Route(method="GET", path=_PATH, handler=index, look_up=find_server_or_deleted, rule=LIST, query=QUERY, since=21,
          answer=answers.ACTIONS),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=show, look_up=find_server, rule=SHOW,
          rules=(EVENTS, EVENT_DETAILS), until=20, answer=answers.ACTION),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=show, look_up=find_server_or_deleted, rule=SHOW,
          rules=(EVENTS, EVENT_DETAILS), since=21, answer=answers.ACTION),
]
