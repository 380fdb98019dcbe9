"""The volume service of OpenStack, Cinder, over its API v3.

All is asked with an account of the compute service, also what the steps of operations ask, long after the request of
a user: its token is shown as that of a service, too, without which Cinder lets nobody take a volume from a server.
What a user may see is decided here, by the project of his context. Only what counts against a quota of the user's
project (volumes, snapshots) is made with a token for that project.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidVolume,
    NotFound,
    NotSupported,
    OverQuota,
    Retryable,
    VolumeAttachmentNotFound,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.services import cinder_answers as answers
from kilonova.services.cinder_answers import KEY
from kilonova.services.openstack import FAMILIES, AccountOptions, OpenStackCalls, account, check_address
from kilonova.services.volumes import (
    BEING_MADE,
    Attachment,
    Encryption,
    NewSnapshot,
    NewVolume,
    Snapshot,
    Volume,
    for_take_over,
)

LEAST = 44
"""N of the oldest version 3.N that will do: since then an attachment is completed. Spec: EMV-19."""
MODES, REIMAGE, EXTEND_COMPLETION = 54, 68, 71
"""Versions that brought what only some calls need."""
REPORTED = "90%"
"""What the part of the hypervisor is of taking or deleting a snapshot."""


class VolumeServiceOptions(AccountOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The volume service."""

    endpoint: str = ""
    """URL of Cinder without its version, for example `http://192.0.2.1:8776`; empty for the volumes of the own storage
    pools."""
    username: str = ""
    """User as whom the service is asked, who must have the roles `admin` and `service`, and a role in the projects
    for which servers make volumes (inherited from their domain, for example)."""


class Calls(Protocol):
    """What makes requests: `OpenStackCalls`."""

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None,
        headers: Mapping[str, str] | None = None, project: str = "",
    ) -> Any: ...


class Cinder:
    """A `VolumeService`. calls: make requests below its endpoint."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._newest = 0

    async def _ask(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None, since: int = LEAST,
        project: str = "",
    ) -> Any:
        """since: N of the version 3.N that brought what is asked for. Raises NotSupported: it is older."""
        if self._newest < since:
            self._newest = await self._read_version()
        if self._newest < since:
            raise NotSupported(
                f"The volume service has version 3.{self._newest} of its API; 3.{since} is needed.",
                hint="update the volume service",
            )
        return await self._calls(
            method, f"/v3/{{project}}{path}", query=query, body=body, project=project,
            headers={"OpenStack-API-Version": f"volume 3.{since}"},
        )

    async def _read_version(self) -> int:
        """N of the newest version 3.N, 0 if there is none."""
        offered = answers.read(await self._calls("GET", "/"), answers.Versions).versions
        found = [one.version.removeprefix("3.") for one in offered if one.version.startswith("3.")]
        return max((int(minor) for minor in found if minor.isdecimal()), default=0)

    # --- volumes ---------------------------------------------------------------------------------

    async def volume(self, context: RequestContext | None, volume_id: str) -> Volume:
        with _about(VolumeNotFound(volume_id)):
            found = answers.read(await self._ask("GET", f"/volumes/{_id(volume_id)}"), answers.OneVolume).volume
        if _hidden(context, found.project_id):
            raise VolumeNotFound(volume_id)
        return answers.volume(found)

    async def check_type(self, context: RequestContext, type_: str | None) -> None:
        if type_ is None:
            return
        found = answers.read(await self._ask("GET", "/types", query={"is_public": "None"}), answers.ManyTypes)
        if all(type_ not in (one.id, one.name) for one in found.volume_types):
            raise NotFound(f"Volume type {type_} could not be found.")

    async def volumes(self, context: RequestContext, *, limit: int, offset: int) -> list[Volume]:
        answer = await self._ask("GET", "/volumes/detail", query=_page(context, limit, offset))
        found = answers.read(answer, answers.ManyVolumes).volumes
        return [answers.volume(one) for one in found if not (one.migration_status or "").startswith("target:")]

    async def create_volume(self, context: RequestContext, new: NewVolume) -> Volume:
        found = await self._volume_of(new.key)
        if found is not None and found.project_id == context.project_id:
            return found
        wanted = {
            "size": new.size, "name": new.name, "description": new.description, "imageRef": new.image_id,
            "snapshot_id": new.snapshot_id, "volume_type": new.volume_type,
            "availability_zone": new.availability_zone, "metadata": new.metadata | {KEY: new.key},
        }
        body = {"volume": {name: value for name, value in wanted.items() if value is not None}}
        made = await self._ask("POST", "/volumes", body=body, project=context.project_id or "")
        return await self.volume(None, answers.read(made, answers.MadeVolume).volume.id)

    async def _volume_of(self, key: str) -> Volume | None:
        query = {"all_tenants": "1", "metadata": str({KEY: key})}
        found = answers.read(await self._ask("GET", "/volumes/detail", query=query), answers.ManyVolumes).volumes
        return next((answers.volume(one) for one in found if one.metadata.get(KEY) == key), None)

    async def discard_volume(self, key: str) -> None:
        found = await self._volume_of(key)
        if found is not None and found.status in BEING_MADE:
            raise Retryable(f"Volume {found.id} is still being made.")
        if found is not None:
            await self.delete_volume(found.id)

    async def delete_volume(self, volume_id: str) -> None:
        try:
            with _changing(VolumeNotFound(volume_id)):
                await self._ask("DELETE", f"/volumes/{_id(volume_id)}")
        except VolumeNotFound:
            return
        except InvalidVolume:
            if await self._status(volume_id) not in ("deleting", None):
                raise

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        try:
            await self._act(
                volume_id, "os-extend_volume_completion", {"error": error}, since=EXTEND_COMPLETION
            )
        except InvalidVolume:
            if await self._status(volume_id) == "extending":
                raise

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        try:
            answer = await self._act(
                volume_id, "os-migrate_volume_completion", {"new_volume": new_volume_id, "error": error}
            )
        except VolumeNotFound:  # the new one is gone once it was told
            return (await self.volume(None, volume_id)).id
        return answers.read(answer, answers.Saved).save_volume_id

    async def reimage(self, volume_id: str, image_id: str) -> None:
        try:
            await self._act(
                volume_id, "os-reimage", {"image_id": image_id, "reimage_reserved": True}, since=REIMAGE
            )
        except InvalidVolume:
            if await self._status(volume_id) != "downloading":
                raise

    async def encryption(self, volume_id: str) -> Encryption | None:
        with _about(VolumeNotFound(volume_id)):
            answer = await self._ask("GET", f"/volumes/{_id(volume_id)}/encryption")
        return answers.encryption(answers.read(answer, answers.EncryptionAnswer))

    async def passphrase(self, volume_id: str) -> str:
        if await self.encryption(volume_id) is None:
            raise NotFound(f"Volume {volume_id} is not encrypted.")
        raise NotSupported(f"The key manager that has the key of volume {volume_id} cannot be asked.")

    async def _act(self, volume_id: str, action: str, fields: dict[str, Any], since: int = LEAST) -> Any:
        with _changing(VolumeNotFound(volume_id)):
            return await self._ask("POST", f"/volumes/{_id(volume_id)}/action", body={action: fields}, since=since)

    async def _status(self, volume_id: str) -> str | None:
        """None if the volume is gone."""
        with contextlib.suppress(VolumeNotFound):
            return (await self.volume(None, volume_id)).status
        return None

    # --- attachments -----------------------------------------------------------------------------

    async def attachment(self, attachment_id: str) -> Attachment:
        with _about(VolumeAttachmentNotFound(attachment_id)):
            return _attachment(await self._ask("GET", f"/attachments/{_id(attachment_id)}"))

    async def attachments(self, instance_uuid: str) -> list[Attachment]:
        query = {"all_tenants": "1", "instance_id": instance_uuid}
        answer = await self._ask("GET", "/attachments/detail", query=query)
        return [answers.attachment(one) for one in answers.read(answer, answers.ManyAttachments).attachments]

    async def create_attachment(
        self, volume_id: str, instance_uuid: str, known: Collection[str], *,
        connector: dict[str, Any] | None = None, read_only: bool = False,
    ) -> Attachment:
        held = [one for one in await self.attachments(instance_uuid) if one.volume_id == volume_id]
        made = for_take_over(held, instance_uuid, known, connected=connector is not None)
        if made is None:
            wanted = {"volume_uuid": volume_id, "instance_uuid": instance_uuid} | ({"mode": "ro"} if read_only else {})
            with _changing(VolumeNotFound(volume_id)):
                answer = await self._ask(
                    "POST", "/attachments", body={"attachment": wanted}, since=MODES if read_only else LEAST
                )
            made = _attachment(answer)
        return made if connector is None else await self.update_attachment(made.id, connector)

    async def update_attachment(self, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        with _changing(VolumeAttachmentNotFound(attachment_id)):
            answer = await self._ask(
                "PUT", f"/attachments/{_id(attachment_id)}", body={"attachment": {"connector": connector}}
            )
        return _attachment(answer)

    async def complete_attachment(self, attachment_id: str) -> None:
        with _changing(VolumeAttachmentNotFound(attachment_id)):
            await self._ask("POST", f"/attachments/{_id(attachment_id)}/action", body={"os-complete": {}})

    async def delete_attachment(self, attachment_id: str) -> None:
        with contextlib.suppress(NotFound):
            await self._ask("DELETE", f"/attachments/{_id(attachment_id)}")

    async def discard_attachments(self, volume_id: str, instance_uuid: str, known: Collection[str]) -> None:
        for one in await self.attachments(instance_uuid):
            if one.volume_id == volume_id and one.id not in known:
                await self.delete_attachment(one.id)

    async def begin_detaching(self, volume_id: str) -> None:
        try:
            await self._act(volume_id, "os-begin_detaching", {})
        except InvalidVolume:
            if await self._status(volume_id) != "detaching":
                raise

    async def roll_detaching(self, volume_id: str) -> None:
        try:
            await self._act(volume_id, "os-roll_detaching", {})
        except VolumeNotFound:
            return
        except InvalidVolume:
            if await self._status(volume_id) == "detaching":
                raise

    # --- snapshots -------------------------------------------------------------------------------

    async def snapshot(self, context: RequestContext | None, snapshot_id: str) -> Snapshot:
        with _about(VolumeSnapshotNotFound(snapshot_id)):
            found = answers.read(await self._ask("GET", f"/snapshots/{_id(snapshot_id)}"), answers.OneSnapshot).snapshot
        if _hidden(context, found.project_id):
            raise VolumeSnapshotNotFound(snapshot_id)
        return answers.snapshot(found)

    async def snapshots(self, context: RequestContext, *, limit: int, offset: int) -> list[Snapshot]:
        answer = await self._ask("GET", "/snapshots/detail", query=_page(context, limit, offset))
        return [answers.snapshot(one) for one in answers.read(answer, answers.ManySnapshots).snapshots]

    async def create_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        found = await self._snapshot_of(new.volume_id, new.key)
        if found is not None:
            return found
        wanted = {"volume_id": new.volume_id, "name": new.name, "description": new.description, "force": True,
                  "metadata": {KEY: new.key}}
        with _about(VolumeNotFound(new.volume_id)):
            made = await self._ask("POST", "/snapshots", body={"snapshot": wanted}, project=context.project_id or "")
        return await self.snapshot(None, answers.read(made, answers.MadeSnapshot).snapshot.id)

    async def _snapshot_of(self, volume_id: str, key: str) -> Snapshot | None:
        query = {"all_tenants": "1", "volume_id": volume_id}
        found = answers.read(await self._ask("GET", "/snapshots/detail", query=query), answers.ManySnapshots).snapshots
        return next((answers.snapshot(one) for one in found if one.metadata.get(KEY) == key), None)

    async def discard_snapshot(self, volume_id: str, key: str) -> None:
        found = await self._snapshot_of(volume_id, key)
        if found is not None and found.status in BEING_MADE:
            raise Retryable(f"Snapshot {found.id} is still being taken.")
        if found is not None:
            await self.delete_snapshot(found.id)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        try:
            await self._ask("DELETE", f"/snapshots/{_id(snapshot_id)}")
        except NotFound:
            return
        except InvalidInput:
            if await self._snapshot_status(snapshot_id) not in ("deleting", None):
                raise

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        body = {"os-update_snapshot_status": {"status": status, "progress": REPORTED}}
        try:
            await self._ask("POST", f"/snapshots/{_id(snapshot_id)}/action", body=body)
        except NotFound:
            return
        except InvalidInput:
            if await self._snapshot_status(snapshot_id) in ("creating", "deleting"):
                raise

    async def _snapshot_status(self, snapshot_id: str) -> str | None:
        """None if the snapshot is gone."""
        with contextlib.suppress(VolumeSnapshotNotFound):
            return (await self.snapshot(None, snapshot_id)).status
        return None


def _page(context: RequestContext, limit: int, offset: int) -> dict[str, str]:
    """Which of the project's are asked for."""
    return {
        "all_tenants": "1", "project_id": context.project_id or "", "sort": "created_at:desc", "limit": str(limit),
        "offset": str(offset),
    }


def _attachment(answer: Any) -> Attachment:
    return answers.attachment(answers.read(answer, answers.OneAttachment).attachment)


def _id(text: str) -> str:
    """An id as part of a path. Raises NotFound: it can be none."""
    try:
        return str(uuid.UUID(text))
    except ValueError as error:
        raise NotFound(f"{text!r} is no id.") from error


@contextlib.contextmanager
def _about(missing: NotFound) -> Iterator[None]:
    """What is not found is this."""
    try:
        yield
    except NotFound as error:
        raise missing from error


@contextlib.contextmanager
def _changing(missing: NotFound) -> Iterator[None]:
    """What is not found is this; what is refused is so because of the volume's state."""
    try:
        with _about(missing):
            yield
    except (InvalidInput, Conflict) as error:
        raise InvalidVolume(error.message, hint=error.hint) from error


def _hidden(context: RequestContext | None, project_id: str | None) -> bool:
    return context is not None and not context.is_admin and context.project_id != project_id


def cinder(options: VolumeServiceOptions) -> Cinder:
    """The service that is configured, which is not asked before it is needed.

    Raises:
        InvalidInput: the options contradict themselves, or the password cannot be read.
    """
    check_address("volume_service.endpoint", options.endpoint)
    return Cinder(OpenStackCalls(
        "volume", options.endpoint, account("volume_service", options), {}, authority=options.authority,
        families={**FAMILIES, 403: Forbidden, 413: OverQuota}, as_service=True,
    ))
