"""Migrate a volume that nobody uses to another pool: copy its data, then let its record tell of the copy."""

from __future__ import annotations

import uuid

import msgspec

from kilonova.domain.operation import Failure
from kilonova.embedded.volume import attachments, messages, snapshots, volume_types, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.retype import check_type
from kilonova.embedded.volume.operations.whereabouts import (
    COPY_LIMIT,
    READS,
    Whereabouts,
    look,
    remove,
    tell_user,
)
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.states import FAILED, MIGRATING, STARTING, SUCCESS, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.storage.pool import FromImage, FromVolume, ImageFormat

S = VolumeStatus


class MigrateVolume(msgspec.Struct, frozen=True, kw_only=True):
    """host: the other pool. type_id: a type that it gets with that, None to keep its own. lock: keep users away."""

    host: str
    type_id: str | None = None
    lock: bool = False


class Old(msgspec.Struct, frozen=True):
    """Where its data were."""

    host: str
    name_id: str


def may_migrate(tx: Tx, run: Run[MigrateVolume]) -> Volume:
    """Raises InvalidVolume; InvalidInput; VolumeTypeNotFound. Spec: EMV-36."""
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    if volume.host is None or volume.host == run.request.host:
        raise InvalidVolume(volume.id, f"is in {run.request.host} already, or has no data")
    if snapshots.of_volume(tx.conn, volume.id):
        raise InvalidVolume(volume.id, "has snapshots")
    if run.request.type_id is not None:
        check_type(tx.conn, volume, run.request.type_id)
    return volume


def working(request: MigrateVolume, status: VolumeStatus) -> VolumeStatus:
    """What a volume is meanwhile that was `status`."""
    if request.type_id is not None:
        return S.RETYPING
    return S.MAINTENANCE if request.lock else status


def _begin(tx: Tx, run: Run[MigrateVolume]) -> None:
    volume = may_migrate(tx, run)
    if attachments.of_volume(tx.conn, volume.id):
        raise InvalidVolume(volume.id, "is attached")
    volumes.begin(
        tx.conn, volume.id, [S.AVAILABLE], working(run.request, S.AVAILABLE), tx.now, migration_status=STARTING
    )


def _start(tx: Tx, run: Run[MigrateVolume]) -> Whereabouts:
    volumes.change(tx.conn, run.subject, tx.now, migration_status=MIGRATING)
    return look(tx, run)


def _new_name(run: Run[MigrateVolume]) -> str:
    return str(uuid.uuid5(uuid.UUID(run.id), "data"))


async def _copy(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    """A copy of an encrypted volume is encrypted as that one is."""
    there, staged = run.output(Whereabouts), environment.staged(run.id)
    staged.parent.mkdir(parents=True, exist_ok=True)
    form: ImageFormat = "qcow2" if there.key_id is None else "raw"
    try:
        await environment.pool(there.host).write_image(FromVolume(there.name_id), staged, form)
        await environment.pool(run.request.host).create(_new_name(run), there.size, FromImage(staged, form))
    finally:
        await remove(staged)


async def _drop_copy(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    await remove(environment.staged(run.id))
    await environment.pool(run.request.host).delete(_new_name(run))


def _switch(tx: Tx, run: Run[MigrateVolume]) -> Old:
    there = run.output(Whereabouts)
    volumes.change(tx.conn, run.subject, tx.now, host=run.request.host, name_id=_new_name(run))
    set_type(tx, run)
    return Old(there.host, there.name_id)


def set_type(tx: Tx, run: Run[MigrateVolume]) -> None:
    """Give it the type that was asked for with the migration."""
    if run.request.type_id is not None:
        type_ = volume_types.get(tx.conn, run.request.type_id)
        volumes.change(tx.conn, run.subject, tx.now, type_id=type_.id, multiattach=type_.multiattach)


async def delete_old(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    """As a step: remove the data that the volume had before."""
    old = run.output(Old)
    await environment.pool(old.host).delete(old.name_id)


def migrated(tx: Tx, run: Run[MigrateVolume]) -> None:
    """Spec: EMV-35, EMV-37."""
    _give_back(tx, run, SUCCESS)


def not_migrated(tx: Tx, run: Run[MigrateVolume], failure: Failure) -> None:
    """It stays where it was. Spec: EMV-33."""
    _give_back(tx, run, FAILED)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


def _give_back(tx: Tx, run: Run[MigrateVolume], migration_status: str) -> None:
    volumes.change(tx.conn, run.subject, tx.now, migration_status=migration_status)
    for status in (S.RETYPING, S.MAINTENANCE):
        volumes.finish(tx.conn, run.subject, status, tx.now)
    volumes.change(tx.conn, run.subject, tx.now, previous_status=None)
    attachments.follow(tx.conn, run.subject, tx.now)


MIGRATE = Operation(
    name="migrate volume",
    about="volume",
    request=MigrateVolume,
    begins=_begin,
    no_return="switch",
    steps=(
        Record("start", _start, undo=READS),
        Here("copy", _copy, undo=_drop_copy, timeout=COPY_LIMIT),
        Record("switch", _switch, undo=NoUndo("nothing after it fails")),
        Here("delete old data", delete_old, undo=NoUndo("the volume has its new data"), owed=True),
    ),
    ends=migrated,
    fails=not_migrated,
)
