"""The embedded volume service: what the HTTP API and the compute service ask of it.

Records are read by the units of work beside this module; whatever changes data is an operation.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import msgspec
import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.db.upgrade import ensure
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.volume import attachments, backups, schema, service_records, snapshots, volume_types, volumes
from kilonova.embedded.volume.attaching import Attaching
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.moving import Moving
from kilonova.embedded.volume.new_volumes import NewVolume, describe
from kilonova.embedded.volume.operations.attach import export_of
from kilonova.embedded.volume.operations.backup import (
    CREATE_BACKUP,
    DELETE_BACKUP,
    RESTORE_BACKUP,
    CreateBackup,
    DeleteBackup,
    RestoreBackup,
)
from kilonova.embedded.volume.operations.create import CREATE, CreateVolume
from kilonova.embedded.volume.operations.delete import DELETE, DeleteVolume
from kilonova.embedded.volume.operations.environment import ComputeServers, VolumeEnvironment, VolumeKeys
from kilonova.embedded.volume.operations.extend import EXTEND, ExtendVolume
from kilonova.embedded.volume.operations.image import CREATE_IMAGE, REIMAGE, UPLOAD, ReimageVolume, UploadVolume
from kilonova.embedded.volume.operations.snapshot import (
    CREATE_SNAPSHOT,
    DELETE_SNAPSHOT,
    REVERT,
    CreateSnapshot,
    DeleteSnapshot,
    RevertVolume,
)
from kilonova.embedded.volume.records import GIB, Backup, Snapshot, Volume
from kilonova.embedded.volume.states import AttachStatus, BackupStatus, SnapshotStatus, VolumeStatus
from kilonova.embedded.volume.work import NotYet, VolumeWork
from kilonova.engine.runner import POLL
from kilonova.services.image import ImageService, NewImage
from kilonova.shapes.image_disks import root_snapshot
from kilonova.storage.pool import Export, StoragePool

S = VolumeStatus
IMAGE_ATTRIBUTES = frozenset({
    "image_id", "image_name", "checksum", "container_format", "disk_format", "min_disk", "min_ram", "size",
})
"""What a volume tells of its image beside that image's properties."""



class EmbeddedVolumes:
    """The volume service of one machine.

    Await `start` before the first use and `close` after the last.

    Args:
        pools: by their hosts, `host@backend#pool`. directory: of the service's own files.
        keys: None if no volume can be encrypted.
        default_type: name of the type of volumes that are made without one, in projects that have no other for that.
        poll, checkpoint: see `kilonova.engine`.
    """

    def __init__(
        self, database: Database, pools: Mapping[str, StoragePool], directory: Path, clock: Clock,
        images: ImageService, compute: ComputeServers, keys: VolumeKeys | None = None, *,
        default_type: str = volume_types.DEFAULT, random: Random | None = None, poll: float = POLL,
        checkpoint: Callable[[str], None] = lambda _place: None,
    ) -> None:
        self.database = database
        self.clock = clock
        self.default_type = default_type
        self.environment = VolumeEnvironment(database, pools, images, compute, keys, clock, directory)
        self.work = VolumeWork(self.environment, random or Random(), poll=poll, checkpoint=checkpoint)
        self.attachments = Attaching(self.environment, self.work)
        self.moves = Moving(self.environment, self.work)

    async def start(self) -> None:
        """Make the tables, give the pools the exports of all attachments, go on with what was interrupted.

        Spec: EMV-11, EMV-46.
        """
        await ensure(self.database, schema.VOLUME)
        hosts = sorted({host.partition("#")[0] for host in self.environment.pools})
        now = self.clock.now()

        def prepare(conn: sa.Connection) -> None:
            volume_types.make_default(conn, now)
            service_records.announce(conn, hosts, now)

        await self.database.write(prepare)
        exports = await self.database.read(recorded_exports)
        for host, pool in self.environment.pools.items():
            await pool.start(exports.get(host, ()))
        await self.work.runner.start()

    async def close(self) -> None:
        """Stop at once. Guests keep their volumes; operations go on with the next start."""
        await self.work.runner.close()
        for pool in self.environment.pools.values():
            await pool.close()

    # --- volumes ---------------------------------------------------------------------------------

    async def create(self, caller: RequestContext, new: NewVolume) -> Volume:
        """Accept a new volume, which is being made.

        From the image of a server that boots from a volume, which has no data, it is made of the snapshot that the
        image names.

        Raises:
            InvalidInput: the size, several sources, an image that is not active or not understood. VolumeNotFound,
            VolumeSnapshotNotFound, VolumeTypeNotFound, ImageNotFound, BackupNotFound. VolumeOverQuota.
        Spec: EMV-02, EMV-03, EMV-08 to EMV-10, EMV-45.
        """
        if caller.project_id is None:
            raise InvalidInput("A volume belongs to a project.")
        if sum(one is not None for one in (new.snapshot_id, new.source_volid, new.image_id, new.backup_id)) > 1:
            raise InvalidInput("A volume has at most one source.")
        least = 0
        if new.image_id is not None:
            image = await self.environment.images.show(caller, new.image_id)
            if image.status != "active":
                raise InvalidInput(f"Image {image.id} is not active.")
            least = image.min_disk
            if (snapshot := root_snapshot(image.properties)) is not None:
                new = msgspec.structs.replace(new, image_id=None, snapshot_id=snapshot)
        now = self.clock.now()
        volume = await self.database.read(lambda conn: describe(conn, caller, new, now, self.default_type))
        if volume.size < least:
            raise InvalidInput(f"The image needs {least} GiB; {volume.size} GiB were asked for.")
        if volume.encryption_key_id is not None and self.environment.keys is None:
            raise InvalidInput("Encrypted volumes need a key manager, and there is none.")
        request = CreateVolume(volume=volume, image_id=new.image_id, backup_id=new.backup_id, hosts=new.hosts)
        await self.work.begin(caller, CREATE, volume.id, request)
        return volume

    async def delete(
        self, caller: RequestContext, volume_id: str, *, cascade: bool = False, force: bool = False
    ) -> None:
        """Begin to delete a volume. Raises VolumeNotFound; InvalidVolume. Spec: EMV-05."""
        await self.work.begin(
            caller, DELETE, volume_id, DeleteVolume(cascade=cascade, force=force), join=True,
            check=lambda conn: volumes.visible(conn, caller, volume_id),
        )

    async def extend(self, caller: RequestContext, volume_id: str, size: int, *, online: bool = True) -> None:
        """Begin to extend a volume. size: GiB. online: also one that is in use.

        Raises:
            VolumeNotFound. InvalidVolume. InvalidInput: it is not smaller. VolumeOverQuota.
        """
        await self.work.begin(
            caller, EXTEND, volume_id, ExtendVolume(size, online),
            check=lambda conn: volumes.visible(conn, caller, volume_id),
        )

    async def extend_completion(self, caller: RequestContext, volume_id: str, *, error: bool) -> None:
        """Compute has seen a larger volume, or failed to. Raises VolumeNotFound. Spec: EMV-29."""
        now = self.clock.now()

        def unit(conn: sa.Connection) -> None:
            volumes.visible(conn, caller, volume_id, lock=True)
            if error:
                volumes.move(conn, volume_id, [S.EXTENDING, S.IN_USE], S.ERROR_EXTENDING, now)

        await self.database.write(unit)

    async def reset_status(
        self, caller: RequestContext, volume_id: str, *, status: VolumeStatus | None = None,
        attach_status: AttachStatus | None = None, migration_status: str | msgspec.UnsetType | None = msgspec.UNSET,
    ) -> None:
        """Say what a volume is, whatever it is. migration_status: `none` is None. Raises VolumeNotFound."""
        values: dict[str, object] = {}
        if status is not None:
            values |= {"status": status, "previous_status": None}
        if attach_status is not None:
            values["attach_status"] = attach_status
        if migration_status is not msgspec.UNSET:
            values["migration_status"] = None if migration_status == "none" else migration_status
        now = self.clock.now()

        def unit(conn: sa.Connection) -> None:
            volumes.visible(conn, caller, volume_id)
            volumes.change(conn, volume_id, now, **values)

        await self.database.write(unit)

    async def set_readonly(self, caller: RequestContext, volume_id: str, *, readonly: bool) -> None:
        """Raises VolumeNotFound; InvalidVolume: it is not available. Spec: EMV-25."""
        now = self.clock.now()

        def unit(conn: sa.Connection) -> None:
            volume = volumes.visible(conn, caller, volume_id, lock=True)
            if not volumes.move(conn, volume_id, [S.AVAILABLE], S.AVAILABLE, now, readonly=readonly):
                raise InvalidVolume(volume_id, f"must be available, but is {volume.status.value}")

        await self.database.write(unit)

    # --- images ----------------------------------------------------------------------------------

    async def upload(self, caller: RequestContext, volume_id: str, image: NewImage, *, force: bool = False) -> None:
        """Begin to make an image of a volume; it is there when this returns, and its data come later. Its properties
        are those of the volume's image and those given.

        Raises:
            VolumeNotFound. InvalidVolume. InvalidInput: the format. What the image service refuses it for.
        Spec: EMV-31.
        """
        volume = await self.database.read(lambda conn: volumes.visible(conn, caller, volume_id))
        kept = {name: value for name, value in volume.image_metadata.items() if name not in IMAGE_ATTRIBUTES}
        image = msgspec.structs.replace(image, properties=kept | image.properties)
        accepted = await self.work.begin(caller, UPLOAD, volume_id, UploadVolume(image=image, in_use=force))
        with contextlib.suppress(NotYet):  # it will be there
            await self.work.reach(accepted, CREATE_IMAGE)

    async def reimage(
        self, caller: RequestContext, volume_id: str, image_id: str, *, reserved: bool = False, join: bool = False
    ) -> None:
        """Begin to replace a volume's data by an image; servers that have reserved it are told.

        Args:
            reserved: also of a volume that is reserved. join: if it is being done already, that is as good.

        Raises:
            VolumeNotFound, ImageNotFound. InvalidVolume. InvalidInput: the image does not fit. Spec: EMV-38, EMV-39.
        """
        image = await self.environment.images.show(caller, image_id)
        volume = await self.database.read(lambda conn: volumes.visible(conn, caller, volume_id))
        if image.status != "active":
            raise InvalidInput(f"Image {image_id} is not active.")
        if max(image.min_disk * GIB, image.virtual_size or image.size) > volume.size * GIB:
            raise InvalidInput(f"Image {image_id} does not fit into volume {volume_id} of {volume.size} GiB.")
        await self.work.begin(caller, REIMAGE, volume_id, ReimageVolume(image_id, reserved), join=join)

    # --- snapshots -------------------------------------------------------------------------------

    async def create_snapshot(
        self, caller: RequestContext, volume_id: str, *, name: str | None = None, description: str | None = None,
        metadata: dict[str, str] | None = None, force: bool = False, snapshot_id: str | None = None,
    ) -> Snapshot:
        """Accept a snapshot, which is being taken.

        Args:
            force: also of a volume in use. snapshot_id: for a call that may be repeated: the snapshot's.

        Raises:
            VolumeNotFound. InvalidVolume, InvalidSnapshot. VolumeOverQuota. Spec: EMV-07, EMV-10.
        """
        now = self.clock.now()
        volume = await self.database.read(lambda conn: volumes.visible(conn, caller, volume_id))
        snapshot = Snapshot(
            id=snapshot_id or str(uuid.uuid4()), volume_id=volume_id, project_id=volume.project_id,
            user_id=caller.user_id, name=name, description=description, size=volume.size,
            status=SnapshotStatus.CREATING,
            metadata=metadata or {}, created_at=now, updated_at=now,
        )
        await self.work.begin(
            caller, CREATE_SNAPSHOT, snapshot.id, CreateSnapshot(snapshot=snapshot, in_use=force)
        )
        return snapshot

    async def delete_snapshot(self, caller: RequestContext, snapshot_id: str, *, force: bool = False) -> None:
        """Begin to delete a snapshot. Raises VolumeSnapshotNotFound; InvalidSnapshot."""
        await self.work.begin(
            caller, DELETE_SNAPSHOT, snapshot_id, DeleteSnapshot(force), join=True,
            check=lambda conn: snapshots.visible(conn, caller, snapshot_id),
        )

    async def revert(self, caller: RequestContext, volume_id: str, snapshot_id: str) -> None:
        """Begin to give a volume the data of its latest snapshot.

        Raises:
            VolumeNotFound. InvalidVolume: it is not available. InvalidSnapshot: it is not its latest one.
        """
        await self.work.begin(
            caller, REVERT, volume_id, RevertVolume(snapshot_id),
            check=lambda conn: volumes.visible(conn, caller, volume_id),
        )

    # --- backups ---------------------------------------------------------------------------------

    async def create_backup(
        self, caller: RequestContext, volume_id: str, *, name: str | None = None, description: str | None = None,
        container: str | None = None, snapshot_id: str | None = None, force: bool = False,
    ) -> Backup:
        """Accept a backup, which is being made. force: also of a volume in use.

        Raises:
            VolumeNotFound, VolumeSnapshotNotFound. InvalidVolume. VolumeOverQuota.
        """
        now = self.clock.now()

        def read(conn: sa.Connection) -> tuple[Volume, Snapshot | None]:
            found = snapshots.visible(conn, caller, snapshot_id) if snapshot_id is not None else None
            if found is not None and found.volume_id != volume_id:
                raise InvalidInput(f"Snapshot {snapshot_id} is not one of volume {volume_id}.")
            return volumes.visible(conn, caller, volume_id), found

        volume, snapshot = await self.database.read(read)
        backup = Backup(
            id=str(uuid.uuid4()), volume_id=volume_id, snapshot_id=snapshot_id, project_id=volume.project_id,
            user_id=caller.user_id, name=name, description=description, container=container or "volumebackups",
            size=snapshot.size if snapshot else volume.size, status=BackupStatus.CREATING,
            bootable=volume.bootable, volume_metadata=volume.metadata, image_metadata=volume.image_metadata,
            data_at=snapshot.created_at if snapshot else now, created_at=now, updated_at=now,
        )
        await self.work.begin(caller, CREATE_BACKUP, volume_id, CreateBackup(backup=backup, in_use=force))
        return backup

    async def delete_backup(self, caller: RequestContext, backup_id: str, *, force: bool = False) -> None:
        """Begin to delete a backup. Raises BackupNotFound; InvalidBackup."""
        await self.work.begin(
            caller, DELETE_BACKUP, backup_id, DeleteBackup(force), join=True,
            check=lambda conn: backups.visible(conn, caller, backup_id),
        )

    async def restore_backup(
        self, caller: RequestContext, backup_id: str, *, volume_id: str | None = None, name: str | None = None
    ) -> Volume:
        """Begin to write a backup to a volume, or (None) to a new one. Returns the volume.

        Raises:
            BackupNotFound, VolumeNotFound. InvalidBackup. InvalidVolume: it is not available, or too small.
        """
        backup = await self.database.read(lambda conn: backups.visible(conn, caller, backup_id))
        if volume_id is None:
            new = NewVolume(size=backup.size, name=name or f"restore_backup_{backup_id}", backup_id=backup_id)
            return await self.create(caller, new)
        volume = await self.database.read(lambda conn: volumes.visible(conn, caller, volume_id))
        await self.work.begin(caller, RESTORE_BACKUP, volume_id, RestoreBackup(backup_id))
        return volume


def recorded_exports(conn: sa.Connection) -> dict[str, list[Export]]:
    """The exports that there are to be, by the host of their pool."""
    found: dict[str, list[Export]] = {}
    for one in attachments.with_connectors(conn):
        volume = volumes.get(conn, one.volume_id)
        found.setdefault(volume.host or "", []).append(export_of(one.id, volume.name_id, one.mode))
    return found
