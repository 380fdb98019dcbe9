"""The volume service of another process of the control plane, called over the bus."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from kilonova.bus.protocol import Bus
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.services.remote import RemoteService, ServiceCalls, signatures
from kilonova.services.volumes import (
    Attachment,
    Encryption,
    NewSnapshot,
    NewVolume,
    Snapshot,
    Volume,
    VolumeService,
)

NAME = "volume"
SIGNATURES = signatures(
    VolumeService, [name for name, _ in inspect.getmembers(VolumeService, inspect.iscoroutinefunction)]
)


class VolumeCalls(ServiceCalls):
    """Answers for a volume service."""

    def __init__(self, service: VolumeService, bus: Bus) -> None:
        super().__init__(NAME, service, SIGNATURES, bus)


class RemoteVolumes:
    """A `VolumeService` that another process has."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._service = RemoteService(NAME, SIGNATURES, bus, clock)

    async def volume(self, context: RequestContext | None, volume_id: str) -> Volume:
        found: Volume = await self._service.call("volume", context, volume_id)
        return found

    async def check_type(self, context: RequestContext, type_: str | None) -> None:
        await self._service.call("check_type", context, type_)

    async def volumes(self, context: RequestContext, *, limit: int, offset: int) -> list[Volume]:
        found: list[Volume] = await self._service.call("volumes", context, limit, offset)
        return found

    async def create_volume(self, context: RequestContext, new: NewVolume) -> Volume:
        made: Volume = await self._service.call("create_volume", context, new)
        return made

    async def discard_volume(self, key: str) -> None:
        await self._service.call("discard_volume", key)

    async def delete_volume(self, volume_id: str) -> None:
        await self._service.call("delete_volume", volume_id)

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        await self._service.call("extend_completed", volume_id, error)

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        kept: str = await self._service.call("migration_completed", volume_id, new_volume_id, error)
        return kept

    async def reimage(self, volume_id: str, image_id: str) -> None:
        await self._service.call("reimage", volume_id, image_id)

    async def encryption(self, volume_id: str) -> Encryption | None:
        found: Encryption | None = await self._service.call("encryption", volume_id)
        return found

    async def passphrase(self, volume_id: str) -> str:
        passphrase: str = await self._service.call("passphrase", volume_id)
        return passphrase

    async def attachment(self, attachment_id: str) -> Attachment:
        found: Attachment = await self._service.call("attachment", attachment_id)
        return found

    async def attachments(self, instance_uuid: str) -> list[Attachment]:
        found: list[Attachment] = await self._service.call("attachments", instance_uuid)
        return found

    async def create_attachment(
        self, volume_id: str, instance_uuid: str, known: Collection[str], *,
        connector: dict[str, Any] | None = None, read_only: bool = False,
    ) -> Attachment:
        made: Attachment = await self._service.call(
            "create_attachment", volume_id, instance_uuid, known, connector, read_only
        )
        return made

    async def update_attachment(self, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        updated: Attachment = await self._service.call("update_attachment", attachment_id, connector)
        return updated

    async def complete_attachment(self, attachment_id: str) -> None:
        await self._service.call("complete_attachment", attachment_id)

    async def delete_attachment(self, attachment_id: str) -> None:
        await self._service.call("delete_attachment", attachment_id)

    async def discard_attachments(self, volume_id: str, instance_uuid: str, known: Collection[str]) -> None:
        await self._service.call("discard_attachments", volume_id, instance_uuid, known)

    async def begin_detaching(self, volume_id: str) -> None:
        await self._service.call("begin_detaching", volume_id)

    async def roll_detaching(self, volume_id: str) -> None:
        await self._service.call("roll_detaching", volume_id)

    async def snapshot(self, context: RequestContext | None, snapshot_id: str) -> Snapshot:
        found: Snapshot = await self._service.call("snapshot", context, snapshot_id)
        return found

    async def snapshots(self, context: RequestContext, *, limit: int, offset: int) -> list[Snapshot]:
        found: list[Snapshot] = await self._service.call("snapshots", context, limit, offset)
        return found

    async def create_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        made: Snapshot = await self._service.call("create_snapshot", context, new)
        return made

    async def discard_snapshot(self, volume_id: str, key: str) -> None:
        await self._service.call("discard_snapshot", volume_id, key)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._service.call("delete_snapshot", snapshot_id)

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        await self._service.call("report_snapshot", snapshot_id, status)
