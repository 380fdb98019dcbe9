"""Snapshots: take one, delete one, and give a volume the data of its latest one again.

The first two work on the snapshot, so that a volume can have several taken at once; its other operations keep away
from what is `creating` or `deleting`.
"""

from __future__ import annotations

import msgspec

from kilonova.domain.operation import Failure
from kilonova.embedded.volume import messages, quotas, schema, snapshots, volume_types, volumes
from kilonova.embedded.volume.errors import InvalidSnapshot
from kilonova.embedded.volume.operations.delete import DELETABLE_SNAPSHOTS, GONE, refuse_copied
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import READS, Whereabouts, look, tell_user, whereabouts
from kilonova.embedded.volume.records import Snapshot
from kilonova.embedded.volume.states import SnapshotStatus, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run

S, N = VolumeStatus, SnapshotStatus


class CreateSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot as it is to be. in_use: also of a volume that servers use."""

    snapshot: Snapshot
    in_use: bool = False


class DeleteSnapshot(msgspec.Struct, frozen=True):
    """force: whatever its status is."""

    force: bool = False


class RevertVolume(msgspec.Struct, frozen=True):
    snapshot_id: str


def _begin_create(tx: Tx, run: Run[CreateSnapshot]) -> None:
    """Spec: EMV-07, EMV-10."""
    asked, conn = run.request.snapshot, tx.conn
    volume = volumes.get(conn, asked.volume_id, lock=True)
    volumes.refuse_migrating(volume)
    allowed = (S.AVAILABLE, S.IN_USE) if run.request.in_use else (S.AVAILABLE,)
    if volume.status not in allowed:
        wanted = " or ".join(one.value for one in allowed)
        raise InvalidSnapshot(asked.id, f"needs a volume that is {wanted}; {volume.id} is {volume.status.value}")
    type_name = volume_types.get(conn, volume.type_id).name if volume.type_id else None
    quotas.check(conn, asked.project_id, {"snapshots": 1, "gigabytes": volume.size}, type_name)
    snapshots.insert(conn, asked)


def _of_volume(tx: Tx, run: Run[CreateSnapshot | DeleteSnapshot]) -> Whereabouts:
    return whereabouts(volumes.get(tx.conn, snapshots.get(tx.conn, run.subject).volume_id))


async def _take(environment: VolumeEnvironment, run: Run[CreateSnapshot]) -> None:
    there = run.output(Whereabouts)
    await environment.pool(there.host).create_snapshot(there.name_id, run.subject)


async def _drop(environment: VolumeEnvironment, run: Run[CreateSnapshot | DeleteSnapshot]) -> None:
    there = run.output(Whereabouts)
    await environment.pool(there.host).delete_snapshot(there.name_id, run.subject)


def _taken(tx: Tx, run: Run[CreateSnapshot]) -> None:
    snapshots.move(tx.conn, run.subject, [N.CREATING], N.AVAILABLE, tx.now, progress=100)


def _not_taken(tx: Tx, run: Run[CreateSnapshot], failure: Failure) -> None:
    snapshots.move(tx.conn, run.subject, [N.CREATING], N.ERROR, tx.now)
    tell_user(tx, run, messages.SNAPSHOT, run.subject, failure)


CREATE_SNAPSHOT = Operation(
    name="create snapshot",
    about="snapshot",
    request=CreateSnapshot,
    begins=_begin_create,
    steps=(
        Record("look", _of_volume, undo=READS),
        Here("take", _take, undo=_drop, timeout=600),
    ),
    ends=_taken,
    fails=_not_taken,
)


def _begin_delete(tx: Tx, run: Run[DeleteSnapshot]) -> None:
    snapshot = snapshots.get(tx.conn, run.subject)
    volumes.get(tx.conn, snapshot.volume_id, lock=True)
    refuse_copied(tx.conn, schema.volumes.c.snapshot_id == run.subject, snapshot.volume_id)
    allowed = tuple(SnapshotStatus) if run.request.force else DELETABLE_SNAPSHOTS
    snapshots.begin(tx.conn, run.subject, allowed, N.DELETING, tx.now)


def _deleted(tx: Tx, run: Run[DeleteSnapshot]) -> None:
    snapshots.delete(tx.conn, run.subject)


def _not_deleted(tx: Tx, run: Run[DeleteSnapshot], failure: Failure) -> None:
    snapshots.move(tx.conn, run.subject, [N.DELETING], N.ERROR_DELETING, tx.now)
    tell_user(tx, run, messages.SNAPSHOT, run.subject, failure)


DELETE_SNAPSHOT = Operation(
    name="delete snapshot",
    about="snapshot",
    request=DeleteSnapshot,
    begins=_begin_delete,
    preempts=("create snapshot",),
    no_return="delete",
    steps=(
        Record("look", _of_volume, undo=READS),
        Here("delete", _drop, undo=GONE, timeout=3600),
    ),
    ends=_deleted,
    fails=_not_deleted,
)


def _begin_revert(tx: Tx, run: Run[RevertVolume]) -> None:
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    kept = snapshots.of_volume(tx.conn, volume.id)
    if not kept or kept[-1].id != run.request.snapshot_id:
        raise InvalidSnapshot(run.request.snapshot_id, f"is not the latest one of volume {volume.id}")
    volumes.begin(tx.conn, volume.id, [S.AVAILABLE], S.REVERTING, tx.now)
    snapshots.begin(tx.conn, run.request.snapshot_id, [N.AVAILABLE], N.RESTORING, tx.now)


async def _revert(environment: VolumeEnvironment, run: Run[RevertVolume]) -> None:
    there = run.output(Whereabouts)
    await environment.pool(there.host).revert(there.name_id, run.request.snapshot_id)


def _reverted(tx: Tx, run: Run[RevertVolume]) -> None:
    snapshots.move(tx.conn, run.request.snapshot_id, [N.RESTORING], N.AVAILABLE, tx.now)
    volumes.finish(tx.conn, run.subject, S.REVERTING, tx.now)


def _not_reverted(tx: Tx, run: Run[RevertVolume], failure: Failure) -> None:
    snapshots.move(tx.conn, run.request.snapshot_id, [N.RESTORING], N.AVAILABLE, tx.now)
    volumes.move(tx.conn, run.subject, [S.REVERTING], S.ERROR, tx.now, previous_status=None)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


REVERT = Operation(
    name="revert volume",
    about="volume",
    request=RevertVolume,
    begins=_begin_revert,
    no_return="revert",
    steps=(
        Record("look", look, undo=READS),
        Here("revert", _revert, undo=NoUndo("what the volume held is not kept"), timeout=3600),
    ),
    ends=_reverted,
    fails=_not_reverted,
)
