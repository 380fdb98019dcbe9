"""Backups: copy a volume's data to a file outside its pool, write them back, delete them."""

from __future__ import annotations

import asyncio

import msgspec

from kilonova.domain.operation import Failure
from kilonova.embedded.volume import backups, messages, quotas, snapshots, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.delete import GONE
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import (
    COPY_LIMIT,
    READS,
    Whereabouts,
    look,
    remove,
    tell_user,
)
from kilonova.embedded.volume.records import Backup
from kilonova.embedded.volume.states import BackupStatus, SnapshotStatus, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.storage.pool import FromImage, FromVolume

S, B = VolumeStatus, BackupStatus


class CreateBackup(msgspec.Struct, frozen=True, kw_only=True):
    """A backup as it is to be. in_use: also of a volume that servers use."""

    backup: Backup
    in_use: bool = False


class DeleteBackup(msgspec.Struct, frozen=True):
    """force: whatever its status is."""

    force: bool = False


class RestoreBackup(msgspec.Struct, frozen=True):
    backup_id: str


def _begin_create(tx: Tx, run: Run[CreateBackup]) -> None:
    asked, conn = run.request.backup, tx.conn
    volume = volumes.get(conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    if volume.encrypted:
        raise InvalidVolume(volume.id, "is encrypted; backups of such volumes are not offered")
    quotas.check(conn, asked.project_id, {"backups": 1, "backup_gigabytes": volume.size})
    if asked.snapshot_id is not None:
        snapshots.begin(conn, asked.snapshot_id, [SnapshotStatus.AVAILABLE], SnapshotStatus.BACKING_UP, tx.now)
        volumes.begin(conn, volume.id, [S.AVAILABLE, S.IN_USE], S.BACKING_UP, tx.now)
    else:
        allowed = (S.AVAILABLE, S.IN_USE) if run.request.in_use else (S.AVAILABLE,)
        volumes.begin(conn, volume.id, allowed, S.BACKING_UP, tx.now)
    backups.insert(conn, asked)


async def _copy(environment: VolumeEnvironment, run: Run[CreateBackup]) -> None:
    there, backup = run.output(Whereabouts), run.request.backup
    target, staged = environment.backup(backup.id), environment.staged(run.id)
    for path in (target, staged):
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    source = FromVolume(there.name_id, backup.snapshot_id or "")
    await environment.pool(there.host).write_image(source, staged, "qcow2")
    await asyncio.to_thread(staged.replace, target)


async def _remove_copy(environment: VolumeEnvironment, run: Run[CreateBackup]) -> None:
    await remove(environment.staged(run.id))
    await remove(environment.backup(run.request.backup.id))


def _created(tx: Tx, run: Run[CreateBackup]) -> None:
    backups.move(tx.conn, run.request.backup.id, [B.CREATING], B.AVAILABLE, tx.now)
    _give_back(tx, run)


def _not_created(tx: Tx, run: Run[CreateBackup], failure: Failure) -> None:
    backups.move(tx.conn, run.request.backup.id, [B.CREATING], B.ERROR, tx.now, fail_reason=failure.message)
    _give_back(tx, run)
    tell_user(tx, run, messages.BACKUP, run.request.backup.id, failure)


def _give_back(tx: Tx, run: Run[CreateBackup]) -> None:
    snapshot = run.request.backup.snapshot_id
    if snapshot is not None:
        snapshots.move(tx.conn, snapshot, [SnapshotStatus.BACKING_UP], SnapshotStatus.AVAILABLE, tx.now)
    volumes.finish(tx.conn, run.subject, S.BACKING_UP, tx.now)


CREATE_BACKUP = Operation(
    name="create backup",
    about="volume",
    request=CreateBackup,
    begins=_begin_create,
    steps=(
        Record("look", look, undo=READS),
        Here("copy", _copy, undo=_remove_copy, timeout=COPY_LIMIT),
    ),
    ends=_created,
    fails=_not_created,
)


def _begin_delete(tx: Tx, run: Run[DeleteBackup]) -> None:
    allowed = (B.AVAILABLE, B.ERROR, B.ERROR_DELETING)
    backups.begin(tx.conn, run.subject, tuple(B) if run.request.force else allowed, B.DELETING, tx.now)


async def _delete(environment: VolumeEnvironment, run: Run[DeleteBackup]) -> None:
    await remove(environment.backup(run.subject))


def _deleted(tx: Tx, run: Run[DeleteBackup]) -> None:
    backups.delete(tx.conn, run.subject)


def _not_deleted(tx: Tx, run: Run[DeleteBackup], failure: Failure) -> None:
    backups.move(tx.conn, run.subject, [B.DELETING], B.ERROR_DELETING, tx.now, fail_reason=failure.message)
    tell_user(tx, run, messages.BACKUP, run.subject, failure)


DELETE_BACKUP = Operation(
    name="delete backup",
    about="backup",
    request=DeleteBackup,
    begins=_begin_delete,
    no_return="delete",
    steps=(Here("delete", _delete, undo=GONE),),
    ends=_deleted,
    fails=_not_deleted,
)


def _begin_restore(tx: Tx, run: Run[RestoreBackup]) -> None:
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    backup = backups.begin(tx.conn, run.request.backup_id, [B.AVAILABLE], B.RESTORING, tx.now)
    if volume.encrypted:
        raise InvalidVolume(volume.id, "is encrypted; backups of such volumes are not offered")
    if volume.size < backup.size:
        raise InvalidVolume(volume.id, f"has {volume.size} GiB, too little for a backup of {backup.size} GiB")
    volumes.begin(tx.conn, volume.id, [S.AVAILABLE, S.ERROR_RESTORING], S.RESTORING_BACKUP, tx.now)


async def _restore(environment: VolumeEnvironment, run: Run[RestoreBackup]) -> None:
    there = run.output(Whereabouts)
    source = FromImage(environment.backup(run.request.backup_id), "qcow2")
    await environment.pool(there.host).replace(there.name_id, source)


def _restored(tx: Tx, run: Run[RestoreBackup]) -> None:
    backup = backups.get(tx.conn, run.request.backup_id)
    backups.move(tx.conn, backup.id, [B.RESTORING], B.AVAILABLE, tx.now)
    volumes.finish(tx.conn, run.subject, S.RESTORING_BACKUP, tx.now, bootable=backup.bootable,
                   metadata=backup.volume_metadata, image_metadata=backup.image_metadata)


def _not_restored(tx: Tx, run: Run[RestoreBackup], failure: Failure) -> None:
    backups.move(tx.conn, run.request.backup_id, [B.RESTORING], B.AVAILABLE, tx.now)
    volumes.move(tx.conn, run.subject, [S.RESTORING_BACKUP], S.ERROR_RESTORING, tx.now, previous_status=None)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


RESTORE_BACKUP = Operation(
    name="restore backup",
    about="volume",
    request=RestoreBackup,
    begins=_begin_restore,
    no_return="restore",
    steps=(
        Record("look", look, undo=READS),
        Here("restore", _restore, undo=NoUndo("what the volume held is not kept"), timeout=COPY_LIMIT),
    ),
    ends=_restored,
    fails=_not_restored,
)
