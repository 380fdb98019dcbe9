"""Delete a volume, with its snapshots if that is asked for.

It ends whatever works on the volume first. What is deleted does not come back: if the pool fails, the volume is
`error_deleting` and can be deleted again.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.domain.operation import Failure
from kilonova.embedded.volume import attachments, messages, schema, snapshots, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import READS, tell_user
from kilonova.embedded.volume.states import DELETABLE, SnapshotStatus, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run

S = VolumeStatus
GONE = NoUndo("what is deleted does not come back")


class DeleteVolume(msgspec.Struct, frozen=True, kw_only=True):
    """cascade: its snapshots go, too. force: whatever its status is."""

    cascade: bool = False
    force: bool = False


class ToDelete(msgspec.Struct, frozen=True):
    """host: "" if there are no data."""

    host: str
    name_id: str
    snapshots: tuple[str, ...]


def _begin(tx: Tx, run: Run[DeleteVolume]) -> None:
    """Spec: EMV-05."""
    volume, request, conn = volumes.get(tx.conn, run.subject, lock=True), run.request, tx.conn
    if attachments.of_volume(conn, volume.id):
        raise InvalidVolume(volume.id, "is attached")
    if not request.force:
        volumes.refuse_migrating(volume)
        if volume.status not in DELETABLE:
            raise InvalidVolume(volume.id, f"cannot be deleted while it is {volume.status.value}")
    refuse_copied(conn, schema.volumes.c.source_volid == volume.id, volume.id)
    kept = snapshots.of_volume(conn, volume.id)
    if kept and not request.cascade:
        raise InvalidVolume(volume.id, "has snapshots")
    for one in kept:
        refuse_copied(conn, schema.volumes.c.snapshot_id == one.id, volume.id)
        snapshots.begin(conn, one.id, DELETABLE_SNAPSHOTS, SnapshotStatus.DELETING, tx.now)
    volumes.begin(conn, volume.id, [volume.status], S.DELETING, tx.now)


DELETABLE_SNAPSHOTS = (SnapshotStatus.AVAILABLE, SnapshotStatus.ERROR, SnapshotStatus.ERROR_DELETING)


def refuse_copied(conn: sa.Connection, of: sa.ColumnElement[bool], volume_id: str) -> None:
    """Raises InvalidVolume: a volume is being made from it."""
    c = schema.volumes.c
    if conn.execute(sa.select(c.id).where(of, c.status == S.CREATING).limit(1)).first():
        raise InvalidVolume(volume_id, "is being copied to a new volume")


def _look(tx: Tx, run: Run[DeleteVolume]) -> ToDelete:
    volume = volumes.get(tx.conn, run.subject)
    kept = tuple(one.id for one in snapshots.of_volume(tx.conn, volume.id))
    return ToDelete(volume.host or "", volume.name_id, kept)


async def _delete_snapshots(environment: VolumeEnvironment, run: Run[DeleteVolume]) -> None:
    what = run.output(ToDelete)
    for snapshot_id in what.snapshots:
        if what.host:
            await environment.pool(what.host).delete_snapshot(what.name_id, snapshot_id)


def _snapshots_deleted(tx: Tx, run: Run[DeleteVolume]) -> None:
    for snapshot_id in run.output(ToDelete).snapshots:
        snapshots.delete(tx.conn, snapshot_id)


async def _delete_data(environment: VolumeEnvironment, run: Run[DeleteVolume]) -> None:
    what = run.output(ToDelete)
    if what.host:
        await environment.pool(what.host).delete(what.name_id)


def _deleted(tx: Tx, run: Run[DeleteVolume]) -> None:
    volumes.delete(tx.conn, run.subject)


def _not_deleted(tx: Tx, run: Run[DeleteVolume], failure: Failure) -> None:
    for one in snapshots.of_volume(tx.conn, run.subject):
        snapshots.move(tx.conn, one.id, [SnapshotStatus.DELETING], SnapshotStatus.ERROR_DELETING, tx.now)
    volumes.move(tx.conn, run.subject, [S.DELETING], S.ERROR_DELETING, tx.now, previous_status=None)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


DELETE = Operation(
    name="delete volume",
    about="volume",
    request=DeleteVolume,
    begins=_begin,
    preempts=("*",),
    no_return="delete snapshots",
    steps=(
        Record("look", _look, undo=READS),
        Here("delete snapshots", _delete_snapshots, undo=GONE, recorded=_snapshots_deleted, timeout=3600),
        Here("delete data", _delete_data, undo=GONE, timeout=3600),
    ),
    ends=_deleted,
    fails=_not_deleted,
)
