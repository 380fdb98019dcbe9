"""Attaching volumes to servers and detaching them: what compute asks of the volume service.

Spec: EMV-13 to EMV-25, EMV-30.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.embedded.volume import attachments, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.attach import (
    CONNECT,
    DELETE_ATTACHMENT,
    ConnectAttachment,
    DeleteAttachment,
)
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.records import Attachment
from kilonova.embedded.volume.states import IDLE_MIGRATIONS, AttachStatus, VolumeStatus
from kilonova.embedded.volume.work import VolumeWork

S = VolumeStatus


class Attaching:
    """The attachments of one volume service."""

    def __init__(self, environment: VolumeEnvironment, work: VolumeWork) -> None:
        self._environment = environment
        self._database = environment.database
        self._clock = environment.clock
        self._work = work

    async def create(
        self, caller: RequestContext, volume_id: str, instance_id: str | None, *,
        connector: dict[str, Any] | None = None, mode: str | None = None,
    ) -> Attachment:
        """Reserve a volume, and connect it if a connector is given. What cannot be connected is not kept.

        Raises:
            VolumeNotFound. InvalidVolume. InvalidInput: the mode. As `update`.
        """
        now = self._clock.now()
        made = await self._database.write(
            lambda conn: attachments.reserve(conn, caller, volume_id, instance_id, now, mode=mode)
        )
        if connector is None:
            return made
        try:
            return await self.update(caller, made.id, connector)
        except BaseException:
            await self._work.begin(caller, DELETE_ATTACHMENT, made.id, DeleteAttachment(), join=True)
            raise

    async def update(self, caller: RequestContext, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        """Serve the volume to a connector. May be repeated. Spec: EMV-16, EMV-21.

        Raises:
            AttachmentNotFound. InvalidVolume. NotYet. KilonovaError: the pool cannot.
        """
        await self._work.finish(
            caller, CONNECT, attachment_id, ConnectAttachment(connector),
            check=lambda conn: attachments.visible(conn, caller, attachment_id),
        )
        return await self._database.read(lambda conn: attachments.get(conn, attachment_id))

    async def complete(self, caller: RequestContext, attachment_id: str) -> Attachment:
        """The server has the volume. May be repeated. Raises AttachmentNotFound. Spec: EMV-17."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> Attachment:
            attachments.visible(conn, caller, attachment_id)
            return attachments.complete(conn, attachment_id, now)

        return await self._database.write(unit)

    async def delete(
        self, caller: RequestContext, attachment_id: str, *, by_service: bool = True, forced: bool = False
    ) -> list[Attachment]:
        """Serve the volume to this attachment no longer. Returns those that it has left.

        Args:
            by_service: asked with the token of a service; others may not take away what a server uses.
            forced: a volume in error is well again when nobody has it.

        Raises:
            AttachmentNotFound. Conflict: a server uses it. NotYet. KilonovaError: the pool cannot.
        Spec: EMV-18, EMV-21 to EMV-23.
        """
        found = await self._database.read(lambda conn: attachments.visible(conn, caller, attachment_id))
        if not by_service:
            await self._refuse_used(found)
        await self._work.finish(caller, DELETE_ATTACHMENT, attachment_id, DeleteAttachment(forced))
        return await self._database.read(lambda conn: attachments.of_volume(conn, found.volume_id))

    async def _refuse_used(self, found: Attachment) -> None:
        server = found.instance_id
        if server is not None and await self._environment.compute.holds(server, found.volume_id, found.id):
            raise Conflict(f"Server {server} uses attachment {found.id} of volume {found.volume_id}.",
                           hint="detach the volume from the server")

    async def detach(
        self, caller: RequestContext, volume_id: str, attachment_id: str | None, *, by_service: bool = True,
        forced: bool = False,
    ) -> None:
        """End an attachment that is named by its volume (os-detach, os-force_detach). If none is named, and it has
        none, nothing is to be done.

        Raises:
            As `delete`. InvalidInput: it is of another volume, or there are several and none is named. Spec: EMV-24.
        """
        held = await self._database.read(lambda conn: _held(conn, caller, volume_id))
        if attachment_id is None:
            if not held:
                return
            if len(held) == 1:
                attachment_id = held[0].id
        if attachment_id not in {one.id for one in held}:
            raise InvalidInput(f"Volume {volume_id} has no attachment {attachment_id}.")
        await self.delete(caller, attachment_id or "", by_service=by_service, forced=forced)

    async def begin_detaching(self, caller: RequestContext, volume_id: str) -> None:
        """Raises VolumeNotFound; InvalidVolume: it is not in use. Spec: EMV-30."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            volume = volumes.visible(conn, caller, volume_id, lock=True)
            if volume.migration_status not in IDLE_MIGRATIONS:
                return
            if not volumes.move(conn, volume_id, [S.IN_USE], S.DETACHING, now):
                raise InvalidVolume(volume_id, f"must be in-use to be detached, but is {volume.status.value}")

        await self._database.write(unit)

    async def roll_detaching(self, caller: RequestContext, volume_id: str) -> None:
        """It is not detached after all. Raises VolumeNotFound."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            volumes.visible(conn, caller, volume_id, lock=True)
            attachments.follow(conn, volume_id, now, also=(S.DETACHING,))

        await self._database.write(unit)

    async def reserve(self, caller: RequestContext, volume_id: str) -> None:
        """Keep a volume for who will attach it (os-reserve). Raises VolumeNotFound; InvalidVolume."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            volume = volumes.visible(conn, caller, volume_id, lock=True)
            volumes.refuse_migrating(volume)
            if not volumes.move(conn, volume_id, [S.AVAILABLE], S.ATTACHING, now):
                raise InvalidVolume(volume_id, f"must be available, but is {volume.status.value}")

        await self._database.write(unit)

    async def unreserve(self, caller: RequestContext, volume_id: str) -> None:
        """It is not attached after all (os-unreserve). Raises VolumeNotFound."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            volumes.visible(conn, caller, volume_id, lock=True)
            attachments.follow(conn, volume_id, now)

        await self._database.write(unit)

    async def initialize(
        self, caller: RequestContext, volume_id: str, connector: dict[str, Any]
    ) -> Attachment:
        """Serve a reserved volume to a connector that has no attachment (os-initialize_connection).

        Raises:
            As `update`.
        """
        now = self._clock.now()
        host = str(connector.get("host", ""))

        def unit(conn: sa.Connection) -> Attachment:
            volumes.visible(conn, caller, volume_id, lock=True)
            for one in attachments.of_volume(conn, volume_id):
                if one.instance_id is None and one.host_name == host:
                    return one
            return attachments.adopt(conn, caller, volume_id, host, now)

        made = await self._database.write(unit)
        return await self.update(caller, made.id, connector)

    async def terminate(
        self, caller: RequestContext, volume_id: str, connector: dict[str, Any], *, by_service: bool = True
    ) -> None:
        """Serve it to that connector no longer (os-terminate_connection). What is gone already is no error.

        What a server is known to have goes when it is detached.

        Args:
            connector: of all who have the volume, if it names no host.

        Raises:
            As `delete`; then nothing is changed.
        """
        host = connector.get("host")
        held = await self._database.read(lambda conn: _held(conn, caller, volume_id))
        meant = [one for one in held if one.connector is not None and host in (None, one.connector.get("host"))]
        if not by_service:
            for one in meant:
                await self._refuse_used(one)
        for one in meant:
            if one.instance_id is None:
                await self.delete(caller, one.id)

    async def attach(
        self, caller: RequestContext, volume_id: str, *, instance_id: str | None, host_name: str | None,
        mountpoint: str, mode: str | None = None,
    ) -> None:
        """Record who has a volume (os-attach). Raises VolumeNotFound; InvalidVolume; InvalidInput: the mode."""
        now = self._clock.now()

        def unit(conn: sa.Connection) -> None:
            volume = volumes.visible(conn, caller, volume_id, lock=True)
            open_ = [one for one in attachments.of_volume(conn, volume_id)
                     if one.instance_id is None and one.status is not AttachStatus.ATTACHED]
            if not open_ and volume.status not in (S.AVAILABLE, S.ATTACHING) and not volume.multiattach:
                raise InvalidVolume(volume_id, f"must be available or attaching, but is {volume.status.value}")
            one = open_[0] if open_ else attachments.adopt(conn, caller, volume_id, host_name or "", now)
            attachments.own(conn, one.id, now, instance_id=instance_id, host_name=host_name, mountpoint=mountpoint,
                            mode=attachments.mode_of(volume, mode))
            attachments.complete(conn, one.id, now)

        await self._database.write(unit)


def _held(conn: sa.Connection, caller: RequestContext, volume_id: str) -> list[Attachment]:
    volumes.visible(conn, caller, volume_id)
    return attachments.of_volume(conn, volume_id)
