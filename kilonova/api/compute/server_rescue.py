"""Rescuing a server, and bringing it back. Spec: API-121, API-122."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute import server_image, server_records
from kilonova.api.compute.answers.servers import ADMIN_PASSWORD
from kilonova.api.compute.feature_blocks import refuse_with_tpm
from kilonova.api.compute.field_types import UUID
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_create import generate_password
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Object, Text, nullable, optional
from kilonova.db import block_devices
from kilonova.domain.errors import Conflict, ImageNotFound, InstanceNotRescuable
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.operations.rescue import RESCUABLE, RESCUE, RescueServer
from kilonova.operations.unrescue import UNRESCUE, UnrescueServer
from kilonova.shapes.resources import is_volume_backed

OF_VOLUMES = 87
"""The microversion since which servers that boot from volumes are rescued. Spec: API-587."""
ATTACHED_HOW = ("hw_rescue_device", "hw_rescue_bus")
"""Properties of a rescue image that say how its disk stands beside the others."""


async def rescue(call: Call) -> dict[str, str]:
    body: dict[str, Any] = call.body["rescue"] or {}
    instance = call.server.instance
    refuse_with_tpm(instance, "rescue")
    server_records.check_lock(call, instance)
    server_records.check_state(instance, "rescue", RESCUABLE)
    if "rescue_image_ref" in body:
        image = await server_image.find_image(call, body["rescue_image_ref"])
    else:
        image = await _own_image(call, instance)
    if is_volume_backed(instance.block_devices):
        _check_of_volume(call, instance, image)
    await _check_volumes(call, instance)
    password = body.get("adminPass") or generate_password()
    await call.cloud.compute.ask(call.context, call.server, RESCUE, RescueServer(image=image, admin_password=password))
    return {"adminPass": password} if call.cloud.options.enable_instance_password else {}


def _check_of_volume(call: Call, instance: Instance, image: Image) -> None:
    """Raises InstanceNotRescuable: the root volume would not keep its place."""
    if call.version < OF_VOLUMES:
        raise InstanceNotRescuable(instance.uuid, "Cannot rescue a volume-backed instance.")
    if not any(name in image.properties for name in ATTACHED_HOW):
        raise InstanceNotRescuable(
            instance.uuid, f"image {image.id} does not say how it is attached ({' or '.join(ATTACHED_HOW)})."
        )


async def _check_volumes(call: Call, instance: Instance) -> None:
    """Raises Conflict: a volume of the server is not in use, so that it would be missing."""
    assert call.server.cell is not None
    for device in await call.server.cell.database.read(lambda conn: block_devices.of_server(conn, instance.uuid)):
        if device.volume_id is not None:
            volume = await call.cloud.volumes.volume(None, device.volume_id)
            if volume.status != "in-use":
                raise Conflict(f"Invalid volume: volume {volume.id} must be in-use, but is {volume.status}.")


def _candidates(instance: Instance) -> Iterator[str]:
    """Images that suit a server, best first. Spec: RSC-06."""
    base = instance.system_metadata.get("image_base_image_ref", "")
    yield from (image_id for image_id in (base, instance.image_ref) if image_id)


async def _own_image(call: Call, instance: Instance) -> Image:
    """Raises InstanceNotRescuable if none is left. Spec: RSC-06, RSC-07."""
    for image_id in _candidates(instance):
        try:
            image = await call.cloud.images.show(call.context, image_id)
        except ImageNotFound:
            continue
        if image.status == "active":
            return image
    raise InstanceNotRescuable(instance.uuid, "the image it was made from is gone; name a rescue image.")


async def unrescue(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, UNRESCUE, UnrescueServer())


_BODY = nullable(Object({"adminPass": optional(Text()), "rescue_image_ref": optional(UUID)}))

ROUTES = [
    server_action("rescue", rescue, Rule("os-rescue", Audience.MEMBER), _BODY, status=200,
                  answer=ADMIN_PASSWORD),
    server_action("unrescue", unrescue, Rule("os-unrescue", Audience.MEMBER)),
]
