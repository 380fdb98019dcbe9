"""Rebuilding a server: everything is checked here, as for a new one. Spec: API-126, API-616."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.api.call import Answer, Call
from kilonova.api.compute import quota_check, server_image, server_records
from kilonova.api.compute.block_devices import check_room, refuse_certificates
from kilonova.api.compute.feature_blocks import refuse_other_encryption, refuse_rebuild_with_shares, refuse_with_tpm
from kilonova.api.compute.personality import check_files, injected_files
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_create import check_disk_config, find_keypair, generate_password, image_metadata
from kilonova.api.compute.server_extras import view_of
from kilonova.api.compute.server_schema import REBUILD as BODY
from kilonova.api.compute.server_view import VIEW_RULES
from kilonova.api.policy import Audience, Rule
from kilonova.db import block_devices
from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.operations.rebuild import REBUILD, REBUILDABLE, Origin, RebuildServer
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME, RebuildRootVolume
from kilonova.shapes.image_disks import disks_in
from kilonova.shapes.resources import is_volume_backed

REBUILD_SERVER = Rule("servers:rebuild", Audience.MEMBER)
TRUSTED_CERTS = Rule("servers:rebuild:trusted_certs", Audience.MEMBER)

_FIELDS = {
    "name": "display_name", "accessIPv4": "access_ip_v4", "accessIPv6": "access_ip_v6", "metadata": "metadata",
    "description": "display_description", "hostname": "hostname",
}
"""Fields of the body that are fields of the record, and whose change says nothing about the guest's disks."""

_IMAGE_PREFIX = "image_"
WRITES_ROOT = 93
"""The microversion since which the image of a rebuild is written into the root volume."""


async def rebuild(call: Call) -> Answer:
    body: dict[str, Any] = call.body["rebuild"]
    server = call.server
    refuse_with_tpm(server.instance, "rebuild")
    refuse_rebuild_with_shares(server.instance)
    server_records.check_lock(call, server.instance)
    server_records.check_state(server.instance, "rebuild", REBUILDABLE)
    if body.get("trusted_image_certificates"):
        call.require(TRUSTED_CERTS)
    image = await server_image.find_image(call, body["imageRef"])
    volume_backed = is_volume_backed(server.instance.block_devices)
    if volume_backed:
        refuse_certificates(body)
        await _check_root_volume(call, image)
        server_image.check_size(image, server.instance.flavor, volume_backed=True)
    else:
        server_image.check_fit(call, image, server.instance.flavor)
    await server_image.check_kernel(call, image)
    if server.instance.image is not None:
        server_image.check_same_place(server.instance.image, image, server.instance.flavor)
    refuse_other_encryption(server.instance, server.instance.flavor, image)
    check_disk_config(body, image)
    await _check_quotas(call, server.instance, body)
    password = body.get("adminPass") or generate_password()
    asked: dict[str, Any] = {
        "before": Origin.of(server.instance), "changes": _changes(body), "admin_password": password,
        "keep_ephemeral": body.get("preserve_ephemeral", False),
        "files": injected_files(body.get("personality") or []),
    }
    if not volume_backed:
        request = RebuildServer(after=await _origin(call, server.instance, body, image), **asked)
        await call.cloud.compute.ask(call.context, server, REBUILD, request)
    elif call.version < WRITES_ROOT:
        request = RebuildServer(after=await _origin(call, server.instance, body), **asked)
        await call.cloud.compute.ask(call.context, server, REBUILD, request)
    else:
        on_volume = msgspec.structs.replace(image, id="")
        after = await _origin(call, server.instance, body, on_volume)
        await call.cloud.compute.ask(
            call.context, server, REBUILD_ROOT_VOLUME, RebuildRootVolume(image_id=image.id, after=after, **asked)
        )
    rebuilt = (await call.cloud.cells.locate(server.instance.uuid)).instance
    shown = (await view_of(call, rebuilt, server.cell)).rebuilt(rebuilt)
    if call.cloud.options.enable_instance_password:
        shown["adminPass"] = password
    return Answer({"server": shown}, headers=(("Location", call.links.own(f"/servers/{rebuilt.uuid}")),))


async def _check_root_volume(call: Call, image: Image) -> None:
    """Whether the image can be written into the volume that a server boots from. Before that could be asked for, what
    is there stays, so that another image would have no effect.

    Raises:
        InvalidInput, VolumeNotFound. Spec: API-126, API-593, EMV-39.
    """
    instance = call.server.instance
    assert call.server.cell is not None
    devices = await call.server.cell.database.read(lambda conn: block_devices.of_server(conn, instance.uuid))
    root = next((device for device in devices if device.boot_index == 0 and device.volume_id is not None), None)
    if root is None or root.volume_id is None:
        raise InvalidInput(f"Server {instance.uuid} has no root volume.")
    volume = await call.cloud.volumes.volume(None, root.volume_id)
    if call.version >= WRITES_ROOT:
        if disks_in(image.properties):
            raise InvalidInput(f"Image {image.id} consists of disks, and cannot be written into a volume.")
        check_room(msgspec.structs.replace(root, volume_size=volume.size), image)
    elif volume.image_metadata.get("image_id") != image.id:
        raise InvalidInput("Unable to rebuild with a different image for a volume-backed server.")


async def _check_quotas(call: Call, instance: Instance, body: dict[str, Any]) -> None:
    """Raises OverQuota. Spec: API-060, API-061."""
    limits = await call.cloud.quotas.limits(instance.project_id, call.context.user_id)
    quota_check.check_metadata(limits, len(body.get("metadata", {})))
    check_files(limits, body.get("personality") or [])


def _changes(body: dict[str, Any]) -> dict[str, Any]:
    changes = {_FIELDS[name]: value for name, value in body.items() if name in _FIELDS}
    if "OS-DCF:diskConfig" in body:
        changes["auto_disk_config"] = body["OS-DCF:diskConfig"] == "AUTO"
    return changes


async def _origin(call: Call, instance: Instance, body: dict[str, Any], image: Image | None = None) -> Origin:
    """What is left out of the body stays as it was; null removes it. image: None if that stays, too."""
    kept = {k: v for k, v in instance.system_metadata.items() if not k.startswith(_IMAGE_PREFIX)}
    changed: dict[str, Any] = {} if image is None else {
        "image": image, "image_ref": image.id, "system_metadata": kept | image_metadata(image),
        "kernel_id": image.properties.get("kernel_id", ""), "ramdisk_id": image.properties.get("ramdisk_id", ""),
    }
    if "key_name" in body:
        keypair = await find_keypair(call, body["key_name"])
        changed["key_name"] = keypair.name if keypair else None
        changed["key_data"] = keypair.public_key if keypair else None
    if "user_data" in body:
        changed["user_data"] = body["user_data"]
    if "trusted_image_certificates" in body:
        asked = body["trusted_image_certificates"]
        changed["trusted_certs"] = tuple(asked) if asked else None
    return msgspec.structs.replace(Origin.of(instance), **changed)


ROUTES = [
    server_action("rebuild", rebuild, REBUILD_SERVER, BODY, rules=(
        TRUSTED_CERTS, server_image.ZERO_DISK, *VIEW_RULES,
    )),
]
