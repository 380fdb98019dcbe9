"""Create a volume: choose a pool, and make its data, empty or as a copy.

A failed one stays as a record in `error`, without data, until its user deletes it.
"""

from __future__ import annotations

import msgspec

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.operation import Failure
from kilonova.embedded.volume import backups, messages, quotas, snapshots, volume_types, volumes
from kilonova.embedded.volume.backends import fits
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import (
    COPY_LIMIT,
    READS,
    Whereabouts,
    file_of,
    image_metadata,
    remove,
    tell_user,
    whereabouts,
)
from kilonova.embedded.volume.records import GIB, Volume
from kilonova.embedded.volume.service_records import disabled_hosts
from kilonova.embedded.volume.states import BackupStatus, SnapshotStatus, VolumeStatus, shown
from kilonova.engine.operation import Here, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.storage.pool import FromImage, FromVolume, Source

S = VolumeStatus
MADE = (S.CREATING, S.DOWNLOADING)


class CreateVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as it is to be, and what its data are copied from: at most one of the others.

    Args:
        source_volid, snapshot_id of the volume itself tell the same, and stay when the source is gone.
        hosts: the pools that may have it, () for any.
    """

    volume: Volume
    image_id: str | None = None
    backup_id: str | None = None
    hosts: tuple[str, ...] = ()


class Free(msgspec.Struct, frozen=True):
    """Pools that may take the volume, the best first."""

    hosts: tuple[str, ...]


class FromWhich(msgspec.Struct, frozen=True):
    """The pool that the data must come from and what they are called there, "" for none. extra_specs: of the type.
    disabled: backends that get no new volumes."""

    host: str = ""
    name_id: str = ""
    snapshot_id: str = ""
    extra_specs: dict[str, str] = {}
    disabled: tuple[str, ...] = ()


class ImageTold(msgspec.Struct, frozen=True):
    """What the image service says of the image, nothing if there is none. metadata: as the volume tells it."""

    disk_format: str = ""
    metadata: dict[str, str] = {}


def _begin(tx: Tx, run: Run[CreateVolume]) -> None:
    """Spec: EMV-02, EMV-03, EMV-10."""
    volume, conn = run.request.volume, tx.conn
    type_name = None
    if volume.type_id is not None:
        type_name = volume_types.get(conn, volume.type_id).name
    quotas.check_size(conn, volume.project_id, volume.size)
    quotas.check(conn, volume.project_id, {"volumes": 1, "gigabytes": volume.size}, type_name)
    if volume.snapshot_id is not None:
        snapshot = snapshots.get(conn, volume.snapshot_id, lock=True)
        if snapshot.status is not SnapshotStatus.AVAILABLE:
            raise InvalidInput(f"Invalid snapshot: Snapshot {snapshot.id} is {snapshot.status.value}.")
        _need_room(volume.size, snapshot.size, f"snapshot {snapshot.id}")
    elif volume.source_volid is not None:
        source = volumes.get(conn, volume.source_volid, lock=True)
        if source.status not in (S.AVAILABLE, S.IN_USE):
            raise InvalidInput(f"Invalid volume: Volume {source.id} is {source.status.value}.")
        volumes.refuse_migrating(source)
        _need_room(volume.size, source.size, f"volume {source.id}")
    elif run.request.backup_id is not None:
        backup = backups.begin(
            conn, run.request.backup_id, [BackupStatus.AVAILABLE], BackupStatus.RESTORING, tx.now
        )
        _need_room(volume.size, backup.size, f"backup {backup.id}")
    volumes.insert(conn, volume)


def _need_room(size: int, least: int, source: str) -> None:
    if size < least:
        raise InvalidInput(f"A volume of {size} GiB is too small for {source}, which has {least} GiB.")


def _look(tx: Tx, run: Run[CreateVolume]) -> FromWhich:
    """Copies are made within a pool: a copy lies where its source does."""
    volume, conn = run.request.volume, tx.conn
    disabled = tuple(sorted(disabled_hosts(conn)))
    extra_specs = {} if volume.type_id is None else volume_types.get(conn, volume.type_id).extra_specs
    source_id = volume.source_volid
    if volume.snapshot_id is not None:
        source_id = snapshots.get(conn, volume.snapshot_id).volume_id
    if source_id is None:
        return FromWhich(extra_specs=extra_specs, disabled=disabled)
    source = whereabouts(volumes.get(conn, source_id))
    return FromWhich(source.host, source.name_id, volume.snapshot_id or "", extra_specs, disabled)


async def _choose(environment: VolumeEnvironment, run: Run[CreateVolume]) -> Free:
    """The pool with the most space that is not promised yet."""
    which, request = run.output(FromWhich), run.request
    if which.host:
        environment.pool(which.host)
        return Free((which.host,))
    found, why = [], "no storage pool is as its type asks, and open to it"
    for host, pool in environment.pools.items():
        if (request.hosts and host not in request.hosts) or host.partition("#")[0] in which.disabled:
            continue
        if not fits(host, which.extra_specs):
            continue
        capacity, why = await pool.capacity(), "no storage pool has enough space"
        if capacity.free >= request.volume.size * GIB:
            found.append((capacity.total - capacity.provisioned * GIB, host))
    if not found:
        raise KilonovaError(f"No valid backend was found: {why}.")
    return Free(tuple(host for _, host in sorted(found, reverse=True)))


def _chosen(tx: Tx, run: Run[CreateVolume]) -> None:
    volumes.change(tx.conn, run.subject, tx.now, host=run.output(Free).hosts[0])
    if run.request.image_id is not None:
        volumes.move(tx.conn, run.subject, [S.CREATING], S.DOWNLOADING, tx.now)


async def _ask_image(environment: VolumeEnvironment, run: Run[CreateVolume]) -> ImageTold:
    if run.request.image_id is None:
        return ImageTold()
    image = await environment.images.show(None, run.request.image_id)
    return ImageTold(image.disk_format, image_metadata(image))


async def _make(environment: VolumeEnvironment, run: Run[CreateVolume]) -> Whereabouts:
    volume, which, request = run.request.volume, run.output(FromWhich), run.request
    host, staged = run.output(Free).hosts[0], environment.staged(run.id)
    source: Source | None = None
    passphrase = environment.passphrase(volume.encryption_key_id)
    if which.host:
        source, passphrase = FromVolume(which.name_id, which.snapshot_id), None
    elif request.backup_id is not None:
        source = FromImage(environment.backup(request.backup_id), "qcow2")
    elif request.image_id is not None:
        file = await file_of(environment.images, request.image_id, staged)
        source = FromImage(file, run.output(ImageTold).disk_format)
    try:
        await environment.pool(host).create(volume.name_id, volume.size, source, passphrase=passphrase)
    finally:
        await remove(staged)
    return Whereabouts(host, volume.name_id, volume.size, volume.encryption_key_id)


async def _unmake(environment: VolumeEnvironment, run: Run[CreateVolume]) -> None:
    await remove(environment.staged(run.id))
    await environment.pool(run.output(Free).hosts[0]).delete(run.request.volume.name_id)


def _created(tx: Tx, run: Run[CreateVolume]) -> None:
    """Spec: EMV-04, EMV-08. Somebody may have reserved it while its image was written."""
    metadata = run.output(ImageTold).metadata
    if metadata:
        volumes.change(tx.conn, run.subject, tx.now, bootable=True, image_metadata=metadata)
    _give_back(tx, run)
    volumes.move(tx.conn, run.subject, MADE, shown(volumes.attached(tx.conn, run.subject)), tx.now)


def _not_created(tx: Tx, run: Run[CreateVolume], failure: Failure) -> None:
    _give_back(tx, run)
    volumes.change(tx.conn, run.subject, tx.now, host=None)
    volumes.move(tx.conn, run.subject, (*MADE, S.RESERVED), S.ERROR, tx.now)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


def _give_back(tx: Tx, run: Run[CreateVolume]) -> None:
    if run.request.backup_id is not None:
        backups.move(tx.conn, run.request.backup_id, [BackupStatus.RESTORING], BackupStatus.AVAILABLE, tx.now)


CREATE = Operation(
    name="create volume",
    about="volume",
    request=CreateVolume,
    begins=_begin,
    steps=(
        Record("look", _look, undo=READS),
        Here("choose pool", _choose, undo=READS, recorded=_chosen),
        Here("ask for image", _ask_image, undo=READS),
        Here("make data", _make, undo=_unmake, timeout=COPY_LIMIT),
    ),
    ends=_created,
    fails=_not_created,
)
