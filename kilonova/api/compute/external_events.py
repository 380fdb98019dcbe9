"""What other services report about servers. Spec: API-262, API-469, EVT-04."""

from __future__ import annotations

from typing import Any

import structlog

from kilonova.api.call import Answer, Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.field_types import UUID
from kilonova.api.microversions import LATEST
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Enum, ListOf, Object, Text, optional, required
from kilonova.db.database import Database
from kilonova.domain.errors import InstanceNotFound, KilonovaError, NotFound
from kilonova.domain.operation import ExternalEvent
from kilonova.operations.interface_refresh import CHANGED, refresh_interfaces

log = structlog.get_logger(__name__)

CREATE = Rule("os-server-external-events:create", Audience.SERVICE)

_SINCE = (
    (1, ("network-changed", "network-vif-plugged", "network-vif-unplugged", "network-vif-deleted")),
    (51, ("volume-extended",)),
    (76, ("power-update",)),
    (82, ("accelerator-request-bound",)),
    (93, ("volume-reimaged",)),
)
"""From which microversion events can be sent."""

_NEEDS_TAG = frozenset({"volume-extended", "accelerator-request-bound"})
_POWER = frozenset({"POWER_ON", "POWER_OFF"})


def _names(until: int) -> Enum:
    return Enum(*(name for since, names in _SINCE if since <= until for name in names))


_STARTS = [since for since, _ in _SINCE]
_ENDS = [*(start - 1 for start in _STARTS[1:]), LATEST]
EVENT = Object({
    "name": tuple(required(_names(end), since=start, until=end) for start, end in zip(_STARTS, _ENDS, strict=True)),
    "server_uuid": required(UUID),
    "status": optional(Enum("failed", "completed", "in-progress")),
    "tag": optional(Text(0, 255)),
})
BODY = Object({"events": required(ListOf(EVENT, 1))})


async def create(call: Call) -> Answer:
    """Each event is taken or refused by itself. Spec: XEV-09."""
    entries = [await _take(call, asked) for asked in call.body["events"]]
    whole = all(entry["code"] == 200 for entry in entries)
    return Answer({"events": entries}, status=200 if whole else 207)


async def _take(call: Call, asked: dict[str, Any]) -> dict[str, Any]:
    entry = {"status": "completed", **asked}
    code = await _told(call, entry)
    return {**entry, "code": code} if code == 200 else {**entry, "code": code, "status": "failed"}


async def _told(call: Call, entry: dict[str, Any]) -> int:
    """Tell the server's operation, if one waits; the code of the entry."""
    try:
        server = await call.cloud.cells.locate(entry["server_uuid"])
    except InstanceNotFound:
        return 404
    if server.cell is None:
        return 404
    name, tag = entry["name"], entry.get("tag", "")
    if (name in _NEEDS_TAG and not tag) or (name == "power-update" and tag not in _POWER):
        return 400
    if server.instance.host is None:
        return 422
    event = ExternalEvent(subject=server.instance.uuid, name=name, tag=tag, status=entry["status"])
    if name == CHANGED:
        await _refresh(call, server.cell.database, event)
    await call.cloud.compute.tell(server, event)
    return 200


async def _refresh(call: Call, cell: Database, event: ExternalEvent) -> None:
    """If the network service cannot be asked, the healing of interfaces does it later. Spec: XEV-02, XEV-09, XEV-14."""
    try:
        await refresh_interfaces(cell, call.cloud.networks, call.cloud.clock, event.subject, event.tag)
    except NotFound as error:
        log.info("interfaces not read anew", instance=event.subject, error=str(error))
    except KilonovaError as error:
        log.warning("interfaces not read anew", instance=event.subject, error=str(error))


ROUTES = [
    Route(method="POST", path="/os-server-external-events", handler=create, rule=CREATE, body=BODY, other_status=207,
          answer=answers.EVENTS),
]
