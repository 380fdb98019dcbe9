"""Volumes as JSON. Clients check the exact set of keys. Spec: EMI-10, EMI-14, EMV-12, section 5.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from kilonova.domain.clock import iso_microseconds
from kilonova.embedded.volume import schema, service_records
from kilonova.embedded.volume.api.call import Call
from kilonova.embedded.volume.records import Attachment, Service, Volume
from kilonova.embedded.volume.states import AttachStatus


def time(at: float | None) -> str | None:
    return None if at is None else iso_microseconds(at)


class Around:
    """What the records of volumes leave out and their views tell: types, attachments, services."""

    def __init__(self, conn: sa.Connection, found: Sequence[Volume]) -> None:
        t, a = schema.types.c, schema.attachments
        ids = {one.type_id for one in found if one.type_id is not None}
        self.types = dict(conn.execute(sa.select(t.id, t.name).where(t.id.in_(ids))).all())
        rows = conn.execute(
            sa.select(a).where(a.c.volume_id.in_([one.id for one in found]), a.c.status == AttachStatus.ATTACHED)
            .order_by(a.c.created_at, a.c.id)
        )
        self.attachments: dict[str, list[Attachment]] = {}
        for row in rows:
            self.attachments.setdefault(row.volume_id, []).append(Attachment(**row._mapping))
        self.services: dict[str, Service] = {
            one.host: one for one in service_records.every(conn) if one.binary == service_records.VOLUME
        }


def brief(call: Call, volume: Volume) -> dict[str, Any]:
    return {"id": volume.id, "name": volume.name, "links": call.links(f"/volumes/{volume.id}")}


def changed(call: Call, volume: Volume, around: Around) -> dict[str, Any]:
    """As the answers to creating and changing one show it."""
    admin, at_least = call.who.is_admin, call.version
    view: dict[str, Any] = {
        "id": volume.id, "name": volume.name, "description": volume.description, "size": volume.size,
        "status": volume.status.value, "availability_zone": volume.availability_zone,
        "created_at": time(volume.created_at), "updated_at": time(volume.updated_at),
        "links": call.links(f"/volumes/{volume.id}"),
        "metadata": volume.metadata | ({} if volume.readonly is None else {"readonly": str(volume.readonly)}),
        "volume_type": around.types.get(volume.type_id or ""), "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid, "consistencygroup_id": None, "user_id": volume.user_id,
        "encrypted": volume.encrypted, "multiattach": volume.multiattach, "replication_status": None,
        "bootable": str(volume.bootable).lower(),
        "attachments": [_attachment(one, admin) for one in around.attachments.get(volume.id, ())],
        "migration_status": volume.migration_status if admin else None,
    }
    if at_least >= 13:
        view["group_id"] = None
    if at_least >= 21 and admin:
        view["provider_id"] = None
    if at_least >= 48:
        service = around.services.get((volume.host or "").partition("#")[0])
        view |= {"service_uuid": service.id if service else None, "shared_targets": False}
    if at_least >= 61 and admin:
        view["cluster_name"] = None
    if at_least >= 63:
        view["volume_type_id"] = volume.type_id
    if at_least >= 64 and volume.encrypted:
        view["encryption_key_id"] = volume.encryption_key_id
    if at_least >= 65:
        view["consumes_quota"] = volume.migration_target_of is None
    return view


def shown(call: Call, volume: Volume, around: Around) -> dict[str, Any]:
    """As it is shown and listed."""
    view = changed(call, volume, around) | {"os-vol-tenant-attr:tenant_id": volume.project_id}
    if volume.image_metadata:
        view["volume_image_metadata"] = volume.image_metadata
    if call.who.is_admin:
        view |= {
            "os-vol-host-attr:host": volume.host, "os-vol-mig-status-attr:migstat": volume.migration_status,
            "os-vol-mig-status-attr:name_id": volume.name_id if volume.name_id != volume.id else None,
        }
    return view


def _attachment(attachment: Attachment, admin: bool) -> dict[str, Any]:
    return {
        "id": attachment.volume_id, "volume_id": attachment.volume_id, "attachment_id": attachment.id,
        "server_id": attachment.instance_id, "host_name": _host(attachment) if admin else None,
        "device": attachment.mountpoint, "attached_at": time(attachment.attached_at),
    }


def _host(attachment: Attachment) -> str | None:
    """Who has it: as os-attach told, or as its connector does."""
    told = attachment.host_name or (attachment.connector or {}).get("host")
    return None if told is None else str(told)
