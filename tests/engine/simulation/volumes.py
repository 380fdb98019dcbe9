"""A volume service outside the simulated processes: keeps its promises, loses answers, fails, takes its time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from random import Random
from typing import Any, TypeVar

import msgspec
from volume_invariants import VolumesSeen

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    InvalidInput,
    InvalidVolume,
    NotFound,
    VolumeAttachmentNotFound,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from kilonova.domain.operation import ExternalEvent
from kilonova.hypervisor.volumes import FileSource, VolumeSource
from kilonova.services.volumes import (
    AttachedServer,
    Attachment,
    Encryption,
    NewSnapshot,
    NewVolume,
    Snapshot,
    Volume,
    for_take_over,
)
from simulation.outside import Outside
from simulation.process import Process, Trouble

T = TypeVar("T")
REIMAGED, EXTENDED = "volume-reimaged", "volume-extended"
TYPE = "one"


class Volumes(Outside):
    """The service itself; it does not crash.

    `calls` are those that arrived. A volume whose id is in `stuck` never
    gets ready, one in `spoilt` ends in error.

    Args:
        announce: tells compute of an event. used: whether a running guest has a volume from this export.
        violations: where to tell of broken promises of who called.
    """

    def __init__(
        self, random: Random, trouble: Trouble, announce: Callable[[ExternalEvent], Awaitable[None]],
        used: Callable[[str], bool], violations: list[str],
    ) -> None:
        super().__init__("volume", random, trouble)
        self.volumes: dict[str, Volume] = {}
        self.held: dict[str, Attachment] = {}
        self.hosts: dict[str, str] = {}
        """By attachment: the host that it is connected to."""
        self.snapshots: dict[str, Snapshot] = {}
        self.images: dict[str, str] = {}
        """By volume: the image that it was last filled with."""
        self.calls: list[tuple[str, str]] = []
        self.stuck: set[str] = set()
        self.spoilt: set[str] = set()
        self.files: set[str] = set()
        """Volumes that are files of the hosts; the others are served."""
        self._made = 0
        self._announce = announce
        self._used = used
        self._violations = violations

    def client(self, process: Process) -> SimVolumes:
        return SimVolumes(self, process)

    def seen(self) -> VolumesSeen:
        """All that there is."""
        return VolumesSeen({id_: one.status for id_, one in self.volumes.items()}, list(self.held.values()))

    def add(self, id_: str = "", **fields: Any) -> str:
        """A volume of a user."""
        id_ = id_ or self._new_id("0")
        self.volumes[id_] = Volume(**{"id": id_, "status": "available", "size": 1, "project_id": "project"} | fields)
        return id_

    def _new_id(self, kind: str) -> str:
        self._made += 1
        return f"{kind}0000000-0000-4000-8000-{self._made:012}"

    # --- volumes ---------------------------------------------------------------------------------

    def find(self, volume_id: str) -> Volume:
        if volume_id not in self.volumes:
            raise VolumeNotFound(volume_id)
        attached = tuple(
            AttachedServer(attachment_id=one.id, server_id=one.instance_uuid, host=self.hosts.get(one.id, ""))
            for one in self.of_volume(volume_id) if one.status == "attached"
        )
        return msgspec.structs.replace(self.volumes[volume_id], attachments=attached)

    def of_volume(self, volume_id: str) -> list[Attachment]:
        return [one for one in self.held.values() if one.volume_id == volume_id]

    def of_server(self, server: str) -> list[Attachment]:
        return [one for one in self.held.values() if one.instance_uuid == server]

    def make(self, context: RequestContext, new: NewVolume) -> Volume:
        if new.key not in self.volumes:
            size = new.size or self.snapshot(new.snapshot_id or "").size
            self.add(
                new.key, name=new.name, status="downloading" if new.image_id else "creating", size=size,
                project_id=context.project_id or "", bootable=new.image_id is not None,
                volume_type=new.volume_type or TYPE, image_metadata={"image_id": new.image_id} if new.image_id else {},
            )
            self.soon(self._finish(new.key, "available"))
        return self.find(new.key)

    async def _finish(self, volume_id: str, status: str) -> None:
        await asyncio.sleep(self._random.random() * 3)
        if volume_id in self.volumes and volume_id not in self.stuck:
            self._status(volume_id, "error" if volume_id in self.spoilt else status)

    def delete(self, volume_id: str) -> None:
        volume = self.volumes.get(volume_id)
        if volume is None:
            return
        if self.of_volume(volume_id) or any(one.volume_id == volume_id for one in self.snapshots.values()):
            raise InvalidVolume(f"Invalid volume: {volume_id} is {volume.status} or has snapshots.")
        del self.volumes[volume_id]

    def extend(self, volume_id: str, size: int, *, waits: bool = False) -> None:
        """A volume in use is larger. waits: the service waits until the guest has seen it."""
        status = "extending" if waits else self.find(volume_id).status
        self.volumes[volume_id] = msgspec.structs.replace(self.volumes[volume_id], size=size, status=status)

    def tell_larger(self, volume_id: str) -> None:
        """The servers that have a volume are told of its size."""
        for server in {one.instance_uuid for one in self.of_volume(volume_id) if one.status == "attached"}:
            self.soon(self._announce(ExternalEvent(subject=server or "", name=EXTENDED, tag=volume_id)))

    def migrate(self, volume_id: str, size: int = 0) -> str:
        """A volume in use is to get the data of a new one, which is the answer. size: another than that of the old."""
        old = self.volumes[volume_id]
        self.volumes[volume_id] = msgspec.structs.replace(old, migration_status="migrating")
        return self.add(
            size=size or old.size, multiattach=old.multiattach, migration_status=f"target:{volume_id}",
        )

    def migrated(self, volume_id: str, new: str, *, error: bool) -> str:
        """The new data take the name of the old ones, or go."""
        target = self.volumes.get(new)
        if target is None:
            return self.find(volume_id).id
        if target.migration_status != f"target:{volume_id}":
            raise InvalidVolume(f"Invalid volume: {volume_id} does not migrate to {new}.")
        if error and self.of_volume(new):
            self._violations.append(f"volume {new} is given up while it has attachments")
        if not error and any(self._used(one.id) for one in self.of_volume(volume_id)):
            self._violations.append(f"the data of volume {volume_id} are removed while a guest uses them")
        for one in self.of_volume(new):
            self.held[one.id] = msgspec.structs.replace(one, volume_id=volume_id)
        del self.volumes[new]
        self.volumes[volume_id] = msgspec.structs.replace(
            self.volumes[volume_id], migration_status="error" if error else "success"
        )
        self._settle(volume_id)
        return volume_id

    def extended(self, volume_id: str, *, error: bool) -> None:
        if self.find(volume_id).status == "extending":
            self._status(volume_id, "error_extending" if error else "in-use")

    def reimage(self, volume_id: str, image_id: str) -> None:
        if self.find(volume_id).status == "downloading":
            return
        if self.volumes[volume_id].status not in ("reserved", "available", "error"):
            raise InvalidVolume(f"Invalid volume: {volume_id} is {self.volumes[volume_id].status}.")
        self._status(volume_id, "downloading")
        self.soon(self._reimage(volume_id, image_id))

    async def _reimage(self, volume_id: str, image_id: str) -> None:
        await asyncio.sleep(1 + self._random.random())
        if volume_id in self.stuck:
            return
        failed = volume_id in self.spoilt
        if not failed:
            self.images[volume_id] = image_id
        self._status(volume_id, "error" if failed else "reserved" if self.of_volume(volume_id) else "available")
        for server in {one.instance_uuid for one in self.of_volume(volume_id)}:
            await self._announce(ExternalEvent(
                subject=server or "", name=REIMAGED, tag=volume_id, status="failed" if failed else "completed",
            ))

    def _status(self, volume_id: str, status: str) -> None:
        self.volumes[volume_id] = msgspec.structs.replace(self.volumes[volume_id], status=status)

    # --- attachments -----------------------------------------------------------------------------

    def attachment(self, id_: str) -> Attachment:
        if id_ not in self.held:
            raise VolumeAttachmentNotFound(id_)
        return self.held[id_]

    def attach(
        self, volume_id: str, server: str, known: Collection[str], connector: dict[str, Any] | None, *, read_only: bool
    ) -> Attachment:
        volume = self.find(volume_id)
        others = self.of_volume(volume_id)
        found = for_take_over(others, server, known, connected=connector is not None)
        if found is None:
            mine = any(one.instance_uuid == server for one in others)
            if not mine and volume.status not in (("available", "in-use") if volume.multiattach else ("available",)):
                raise InvalidVolume(f"Invalid volume: {volume_id} is {volume.status}.")
            found = Attachment(
                id=self._new_id("a"), volume_id=volume_id, instance_uuid=server, status="reserved",
                mode="ro" if read_only else "rw",
            )
            self.held[found.id] = found
            self._settle(volume_id)
        return found if connector is None else self.connect(found.id, connector)

    def connect(self, id_: str, connector: dict[str, Any]) -> Attachment:
        before = self.attachment(id_)
        if self.volumes[before.volume_id].status == "downloading":
            raise InvalidVolume(f"Invalid volume: {before.volume_id} is downloading.")
        self.hosts[id_] = connector["host"]
        elsewhere = {self.hosts.get(one.id) for one in self.of_volume(before.volume_id)} - {None, connector["host"]}
        if elsewhere and not self.volumes[before.volume_id].multiattach:
            self._violations.append(f"volume {before.volume_id} is connected to {elsewhere}, too")
        is_file, multiattach = before.volume_id in self.files, self.volumes[before.volume_id].multiattach
        self.held[id_] = msgspec.structs.replace(
            before, status="attached" if before.status == "attached" else "attaching",
            connection_info={"driver_volume_type": "local", "device_path": f"/pool/{before.volume_id}/base"}
            if is_file else {"driver_volume_type": "nbd", "data": {
                "export": id_, "host": "storage", "port": 10809, "multiattach": multiattach,
            }},
        )
        self._settle(before.volume_id)
        return self.held[id_]

    def move(self, volume_id: str, port: int) -> None:
        """Serve a volume from another port from now on, so that whoever is to use it must ask again where it is."""
        for one in self.of_volume(volume_id):
            if one.connection_info is not None:
                data = one.connection_info["data"] | {"port": port}
                info = one.connection_info | {"data": data}
                self.held[one.id] = msgspec.structs.replace(one, connection_info=info)

    def served(self, host: str, source: VolumeSource) -> int | None:
        """How many bytes a volume has there, None if it is not served to this host."""
        if isinstance(source, FileSource):
            volume_id = source.path.split("/")[2]
            there = any(self.hosts.get(one.id) == host for one in self.of_volume(volume_id))
            return self.volumes[volume_id].size << 30 if there else None
        id_ = source.export
        if id_ not in self.held or self.hosts.get(id_) != host:
            return None
        return self.volumes[self.held[id_].volume_id].size << 30

    def complete(self, id_: str) -> None:
        before = self.attachment(id_)
        self.held[id_] = msgspec.structs.replace(before, status="attached")
        self._settle(before.volume_id)

    def release(self, id_: str) -> None:
        found = self.held.pop(id_, None)
        if found is None:
            return
        if self._used(id_):
            self._violations.append(f"attachment {id_} deleted while a guest uses volume {found.volume_id}")
        self.hosts.pop(id_, None)
        self._settle(found.volume_id)

    def discard(self, volume_id: str, server: str, known: Collection[str]) -> None:
        for one in self.of_server(server):
            if one.volume_id == volume_id and one.id not in known:
                self.release(one.id)

    def _settle(self, volume_id: str) -> None:
        """The status that the attachments of a volume give it."""
        states = {one.status for one in self.of_volume(volume_id)}
        ranked = (("attached", "in-use"), ("attaching", "attaching"), ("reserved", "reserved"))
        if volume_id in self.volumes and self.volumes[volume_id].status not in ("downloading", "creating", "error"):
            self._status(volume_id, next((status for one, status in ranked if one in states), "available"))

    def begin_detaching(self, volume_id: str) -> None:
        if self.find(volume_id).migration_status == "migrating":
            return
        if self.find(volume_id).status not in ("in-use", "detaching"):
            raise InvalidVolume(f"Invalid volume: {volume_id} is {self.volumes[volume_id].status}.")
        self._status(volume_id, "detaching")

    def roll_detaching(self, volume_id: str) -> None:
        if volume_id in self.volumes and self.volumes[volume_id].status == "detaching":
            self._settle(volume_id)

    # --- snapshots -------------------------------------------------------------------------------

    def snapshot(self, snapshot_id: str) -> Snapshot:
        if snapshot_id not in self.snapshots:
            raise VolumeSnapshotNotFound(snapshot_id)
        return self.snapshots[snapshot_id]

    def have_taken(self, volume_id: str, status: str = "creating") -> str:
        """A snapshot that the hypervisor is to take, or to delete."""
        id_ = self._new_id("5")
        self.snapshots[id_] = Snapshot(id=id_, volume_id=volume_id, project_id="project", status=status, size=1)
        return id_

    def report(self, snapshot_id: str, status: str) -> None:
        """The hypervisor has done its part, or could not."""
        if snapshot_id not in self.snapshots:
            return
        before = self.snapshots[snapshot_id].status
        if before not in ("creating", "deleting"):
            return
        if status not in {"creating": ("creating", "error"), "deleting": ("deleting", "error_deleting")}[before]:
            raise InvalidInput(f"Snapshot {snapshot_id} is {before} and cannot become {status}.")
        if status == "deleting":
            del self.snapshots[snapshot_id]
        else:
            after = "available" if status == "creating" else status
            self.snapshots[snapshot_id] = msgspec.structs.replace(self.snapshots[snapshot_id], status=after)

    def take_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        if new.key not in self.snapshots:
            volume = self.find(new.volume_id)
            if volume.status not in ("available", "in-use"):
                raise InvalidInput(f"Volume {new.volume_id} is {volume.status}.")
            self.snapshots[new.key] = Snapshot(
                id=new.key, volume_id=new.volume_id, project_id=context.project_id or "", status="creating",
                size=volume.size, name=new.name,
            )
            self.soon(self._end_snapshot(new.key))
        return self.snapshots[new.key]

    async def _end_snapshot(self, id_: str) -> None:
        await asyncio.sleep(self._random.random() * 2)
        found = self.snapshots.get(id_)
        if found is not None and found.volume_id not in self.stuck:
            status = "error" if found.volume_id in self.spoilt else "available"
            self.snapshots[id_] = msgspec.structs.replace(found, status=status)


class SimVolumes:
    """A process's client of the service. What is made under a key has that as its id."""

    def __init__(self, service: Volumes, process: Process) -> None:
        self._service = service
        self._process = process

    async def _call(self, name: str, about: str, effect: Callable[[], T]) -> T:
        return await self._process.port(self._service.exchange(
            name, lambda: self._service.calls.append((name, about)), effect
        ))

    async def volume(self, context: RequestContext | None, volume_id: str) -> Volume:
        return await self._call("volume", volume_id, lambda: self._service.find(volume_id))

    async def check_type(self, context: RequestContext, type_: str | None) -> None:
        if type_ not in (None, TYPE):
            raise NotFound(f"Volume type {type_} could not be found.")

    async def create_volume(self, context: RequestContext, new: NewVolume) -> Volume:
        return await self._call("create_volume", new.key, lambda: self._service.make(context, new))

    async def discard_volume(self, key: str) -> None:
        await self.delete_volume(key)

    async def delete_volume(self, volume_id: str) -> None:
        await self._call("delete_volume", volume_id, lambda: self._service.delete(volume_id))

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        await self._call("extend_completed", volume_id, lambda: self._service.extended(volume_id, error=error))

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        return await self._call(
            "migration_completed", volume_id, lambda: self._service.migrated(volume_id, new_volume_id, error=error)
        )

    async def reimage(self, volume_id: str, image_id: str) -> None:
        await self._call("reimage", volume_id, lambda: self._service.reimage(volume_id, image_id))

    async def encryption(self, volume_id: str) -> Encryption | None:
        await self._call("encryption", volume_id, lambda: self._service.find(volume_id))
        return None

    async def passphrase(self, volume_id: str) -> str:
        raise NotFound(f"Volume {volume_id} is not encrypted.")

    async def attachment(self, attachment_id: str) -> Attachment:
        return await self._call("attachment", attachment_id, lambda: self._service.attachment(attachment_id))

    async def attachments(self, instance_uuid: str) -> list[Attachment]:
        return await self._call("attachments", instance_uuid, lambda: self._service.of_server(instance_uuid))

    async def create_attachment(
        self, volume_id: str, instance_uuid: str, known: Collection[str], *,
        connector: dict[str, Any] | None = None, read_only: bool = False,
    ) -> Attachment:
        return await self._call("create_attachment", volume_id, lambda: self._service.attach(
            volume_id, instance_uuid, known, connector, read_only=read_only
        ))

    async def update_attachment(self, attachment_id: str, connector: dict[str, Any]) -> Attachment:
        return await self._call(
            "update_attachment", attachment_id, lambda: self._service.connect(attachment_id, connector)
        )

    async def complete_attachment(self, attachment_id: str) -> None:
        await self._call("complete_attachment", attachment_id, lambda: self._service.complete(attachment_id))

    async def delete_attachment(self, attachment_id: str) -> None:
        await self._call("delete_attachment", attachment_id, lambda: self._service.release(attachment_id))

    async def discard_attachments(self, volume_id: str, instance_uuid: str, known: Collection[str]) -> None:
        await self._call("discard_attachments", volume_id, lambda: self._service.discard(
            volume_id, instance_uuid, known
        ))

    async def begin_detaching(self, volume_id: str) -> None:
        await self._call("begin_detaching", volume_id, lambda: self._service.begin_detaching(volume_id))

    async def roll_detaching(self, volume_id: str) -> None:
        await self._call("roll_detaching", volume_id, lambda: self._service.roll_detaching(volume_id))

    async def snapshot(self, context: RequestContext | None, snapshot_id: str) -> Snapshot:
        return await self._call("snapshot", snapshot_id, lambda: self._service.snapshot(snapshot_id))

    async def create_snapshot(self, context: RequestContext, new: NewSnapshot) -> Snapshot:
        return await self._call("create_snapshot", new.key, lambda: self._service.take_snapshot(context, new))

    async def discard_snapshot(self, volume_id: str, key: str) -> None:
        await self.delete_snapshot(key)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        await self._call("delete_snapshot", snapshot_id, lambda: self._service.snapshots.pop(snapshot_id, None))

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        await self._call("report_snapshot", snapshot_id, lambda: self._service.report(snapshot_id, status))
