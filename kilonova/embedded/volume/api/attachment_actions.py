"""Actions by which servers were given volumes before there were attachments, and some that they still need.

Spec: section 5.5, EMV-20, EMV-22 to EMV-25, EMV-30.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_response
from kilonova.embedded.volume.api.actions import Action
from kilonova.embedded.volume.api.call import Access, Call, accepted, text


class Attach(msgspec.Struct, forbid_unknown_fields=True):
    mountpoint: str
    instance_uuid: str | None = None
    host_name: str | None = None
    mode: str | None = None


class Detach(msgspec.Struct, forbid_unknown_fields=True):
    attachment_id: str | None = None
    connector: dict[str, Any] | None = None


class Connect(msgspec.Struct, forbid_unknown_fields=True):
    connector: dict[str, Any]


async def _reserve(call: Call, _body: object) -> Response:
    await call.volumes.attachments.reserve(call.who, call.path())
    return accepted()


async def _unreserve(call: Call, _body: object) -> Response:
    await call.volumes.attachments.unreserve(call.who, call.path())
    return accepted()


async def _begin_detaching(call: Call, _body: object) -> Response:
    await call.volumes.attachments.begin_detaching(call.who, call.path())
    return accepted()


async def _roll_detaching(call: Call, _body: object) -> Response:
    await call.volumes.attachments.roll_detaching(call.who, call.path())
    return accepted()


async def _attach(call: Call, body: Attach) -> Response:
    if (body.instance_uuid is None) == (body.host_name is None):
        raise InvalidInput("A volume is attached either to an instance_uuid or to a host_name.")
    await call.volumes.attachments.attach(
        call.who, call.path(), instance_id=text("instance_uuid", body.instance_uuid, 36, 1),
        host_name=text("host_name", body.host_name, least=1),
        mountpoint=text("mountpoint", body.mountpoint, least=1) or "", mode=body.mode,
    )
    return accepted()


async def _detach(call: Call, body: Detach) -> Response:
    await call.volumes.attachments.detach(call.who, call.path(), body.attachment_id, by_service=call.by_service)
    return accepted()


async def _force_detach(call: Call, body: Detach) -> Response:
    await call.volumes.attachments.detach(
        call.who, call.path(), body.attachment_id, by_service=call.by_service, forced=True
    )
    return accepted()


async def _initialize_connection(call: Call, body: Connect) -> Response:
    """Spec: EMV-20: what attachments have in one flat object is nested here."""
    made = await call.volumes.attachments.initialize(call.who, call.path(), body.connector)
    data = dict(made.connection or {})
    kind = data.pop("driver_volume_type", None)
    return json_response({"connection_info": {"driver_volume_type": kind, "data": data}})


async def _terminate_connection(call: Call, body: Connect) -> Response:
    await call.volumes.attachments.terminate(
        call.who, call.path(), body.connector, by_service=call.by_service
    )
    return accepted()


ACTIONS = {
    "os-reserve": Action(None, _reserve),
    "os-unreserve": Action(None, _unreserve),
    "os-begin_detaching": Action(None, _begin_detaching),
    "os-roll_detaching": Action(None, _roll_detaching),
    "os-attach": Action(Attach, _attach),
    "os-detach": Action(Detach, _detach),
    "os-force_detach": Action(Detach, _force_detach, Access.ADMIN),
    "os-initialize_connection": Action(Connect, _initialize_connection),
    "os-terminate_connection": Action(Connect, _terminate_connection),
}
