"""Volumes of servers. Spec: API-176 to API-181, API-458."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.api.compute.action_checks import HostDown, host_is_up
from kilonova.api.compute.answers import volumes as answers
from kilonova.api.compute.field_types import TAG, UUID
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.compute.volume_swap import swap
from kilonova.api.microversions import LATEST
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Integer, Object, Text, nullable, optional, required
from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import Conflict, InvalidInput, VolumeNotAttached
from kilonova.operations.attach_volume import ATTACH_VOLUME, CONNECT, SHELVED, STATES, AttachVolume
from kilonova.operations.detach_volume import BEGIN_DETACHING, DETACH_VOLUME, DetachVolume
from kilonova.services.volumes import check_attachable

SWAP = Rule("os-volumes-attachments:swap", Audience.SERVICE)
UPDATE = Rule("os-volumes-attachments:update", Audience.MEMBER)

_DEVICE = nullable(Text(pattern=r"/dev/x?[a-z]?d?[a-z]+[0-9]*"))
ATTACH = Object({"volumeAttachment": required(Object({
    "volumeId": required(UUID),
    "device": optional(_DEVICE),
    "tag": optional(TAG, since=49),
    "delete_on_termination": optional(Boolean(), since=79),
}))})
CHANGE = Object({"volumeAttachment": required(Object({
    "volumeId": required(UUID),
    "id": optional(UUID, since=85),
    "serverId": optional(UUID, since=85),
    "device": optional(_DEVICE, since=85),
    "tag": optional(TAG, since=85),
    "delete_on_termination": optional(Boolean(), since=85),
}))})

async def index(call: Call) -> Any:
    """Those that a page asks for. Spec: API-176."""
    devices = [one for one in await _volumes(call) if call.version < 89 or one.attachment_id is not None]
    first = int(call.query.last("offset", "0"))
    count = min(int(call.query.last("limit", str(len(devices)))), call.cloud.options.max_limit)
    return {"volumeAttachments": [_view(call, one) for one in devices[first:first + count]]}


async def attach(call: Call) -> Any:
    """Answers when the volume is the server's, and nobody else can have it; the guest gets it soon after. Spec:
    API-177."""
    asked = call.body["volumeAttachment"]
    _check(call, "attach_volume")
    volume = await call.cloud.volumes.volume(call.context, asked["volumeId"])
    if volume.multiattach and call.version < 60:
        raise InvalidInput("Multiattach volumes are only supported starting with compute API version 2.60.")
    check_attachable(volume)
    record = await call.cloud.compute.ask_and_wait_for(
        call.context, call.server, ATTACH_VOLUME, AttachVolume(
            volume_id=volume.id, device_name=asked.get("device"), tag=asked.get("tag"),
            delete_on_termination=asked.get("delete_on_termination", False), multiattach=volume.multiattach,
        ), CONNECT,
    )
    if call.version >= 101:
        return None
    for device in await _volumes(call):
        if device.uuid == record.id:
            return {"volumeAttachment": _made(call, device)}
    raise Conflict(
        f"Volume {volume.id} could not be attached to instance {call.server.instance.uuid}.",
        hint="the actions of the server tell why",
    )


async def detach(call: Call) -> None:
    """Answers when nobody else can detach it; the guest may take its time to let go. Spec: API-181."""
    _check(call, "detach_volume")
    host = call.server.instance.host
    if host is not None and not await host_is_up(call, host):
        raise HostDown
    await call.cloud.compute.ask_and_wait_for(
        call.context, call.server, DETACH_VOLUME, DetachVolume(call.path["id"]), BEGIN_DETACHING
    )


async def _volumes(call: Call) -> list[BlockDevice]:
    """The volumes of the server, as its record has them; none while it has no cell."""
    server = call.server
    if server.cell is None:
        return []
    devices = await server.cell.database.read(lambda conn: block_devices.of_server(conn, server.instance.uuid))
    return [one for one in devices if one.volume_id is not None]


def _made(call: Call, device: BlockDevice) -> dict[str, Any]:
    """What is answered to a request to attach: with the older id at all versions, without the newer ones. Spec:
    API-177."""
    shown = {"id": device.volume_id, **_view(call, device)}
    return {name: value for name, value in shown.items() if name not in ("attachment_id", "bdm_uuid")}


def _view(call: Call, device: BlockDevice) -> dict[str, Any]:
    """Spec: API-458."""
    version = call.version
    shown: dict[str, Any] = {"volumeId": device.volume_id, "serverId": call.server.instance.uuid}
    if version < 89:
        shown["id"] = device.volume_id
    if device.device_name is not None:
        shown["device"] = device.device_name
    if version >= 70:
        shown["tag"] = device.tag
    if version >= 79:
        shown["delete_on_termination"] = device.delete_on_termination
    if version >= 89:
        shown |= {"attachment_id": device.attachment_id, "bdm_uuid": device.uuid}
    return shown


def _check(call: Call, action: str) -> None:
    """Shelved servers only from 2.20. Raises InstanceLocked, InstanceInvalidState."""
    instance = call.server.instance
    server_records.check_lock(call, instance)
    server_records.check_state(instance, action, [s for s in STATES if call.version >= 20 or s not in SHELVED])


async def show(call: Call) -> Any:
    """Spec: API-178."""
    device = await _attached(call)
    if call.version >= 89 and device.attachment_id is None:
        raise VolumeNotAttached(call.path["id"], call.server.instance.uuid)
    return {"volumeAttachment": _view(call, device)}


async def change(call: Call) -> None:
    """From 2.85 what stands beside the volume may be changed. The same volume: that is all. Another one: a swap, too.
    Spec: API-179, API-180, EMV-32."""
    wanted = call.body["volumeAttachment"]["volumeId"]
    same = wanted == call.path["id"]
    call.require(UPDATE if same and call.version >= 85 else SWAP)
    device = await _attached(call)
    if call.version >= 85:
        await _update(call, device)
    if not same or call.version < 85:
        await swap(call, device, wanted)


async def _update(call: Call, device: BlockDevice) -> None:
    """At once, whatever the server does: only a delete of it reads what is changed."""
    asked, cell = call.body["volumeAttachment"], call.server.cell
    stored = {
        "id": device.volume_id, "serverId": call.server.instance.uuid, "device": device.device_name, "tag": device.tag
    }
    for name, value in stored.items():
        if name in asked and asked[name] != value:
            raise InvalidInput(f"The {name} property is not mutable")
    if "delete_on_termination" not in asked:
        return
    assert cell is not None
    now, with_server = call.cloud.clock.now(), asked["delete_on_termination"]
    changed = await cell.database.write(lambda conn: block_devices.update(
        conn, device.uuid, now=now, was=tuple(AttachState), delete_on_termination=with_server
    ))
    if changed is None:
        raise VolumeNotAttached(call.path["id"], call.server.instance.uuid)


async def _attached(call: Call) -> BlockDevice:
    """The volume of the path, as the record of the server has it. Raises VolumeNotAttached."""
    for device in await _volumes(call):
        if device.volume_id == call.path["id"]:
            return device
    raise VolumeNotAttached(call.path["id"], call.server.instance.uuid)


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-volumes-attachments:{name}", audience)


_ALL = "/servers/{server_id}/os-volume_attachments"
_ONE = f"{_ALL}/{{id}}"
_ATTACH = Route(method="POST", path=_ALL, handler=attach, look_up=find_server, rule=_rule("create", Audience.MEMBER),
                body=ATTACH, until=100, answer=answers.MADE_ATTACHMENT)
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, look_up=find_server, rule=_rule("index", Audience.READER),
          query=Query({"limit": Param(Integer(0)), "offset": Param(Integer(0))}, strict_since=75),
          answer=answers.ATTACHMENTS),
    _ATTACH,
    msgspec.structs.replace(_ATTACH, since=101, until=LATEST, status=202, answer=None),
    Route(method="GET", path=_ONE, handler=show, look_up=find_server, rule=_rule("show", Audience.READER),
          query=Query(strict_since=None), answer=answers.ATTACHMENT),
    Route(method="PUT", path=_ONE, handler=change, look_up=find_server, rules=(SWAP, UPDATE), body=CHANGE, status=202),
    Route(method="DELETE", path=_ONE, handler=detach, look_up=find_server, rule=_rule("delete", Audience.MEMBER),
          status=202),
]
