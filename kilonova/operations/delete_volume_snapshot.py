"""Delete volume snapshot: merge files of a volume while a guest writes to it, for a volume service that cannot.

The volume service says which files: either what was written since the snapshot goes down into the file of the snapshot,
or the file that the guest writes to takes over what it has from those below. It removes the file that is not needed any
more when it hears that the merge is done. A merge that is cut short leaves the guest all that it has, and can be begun
again: the volume service hears that the snapshot is still there. Neither the states of the server nor its history are
touched: the volume service asks, and is told.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.volume_files import ABORT_MERGE, AWAIT_MERGE, START_MERGE, MergeArgs
from kilonova.agent.steps.watching import between_watches
from kilonova.domain.errors import InvalidInput
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.volumes import FileMerge
from kilonova.operations.environment import Environment
from kilonova.operations.volume_files import VolumeFile, file_of, report, require_attached, require_status

MERGE_LIMIT = 24 * 3600.0
"""Seconds that the hypervisor may merge."""


class DeleteVolumeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """merge: None if the volume service named no files."""

    volume_id: str
    snapshot_id: str
    merge: FileMerge | None


def _begin(tx: Tx, run: Run[DeleteVolumeSnapshot]) -> None:
    """Spec: SNP-36."""
    require_attached(tx, run.subject, run.request.volume_id, "volume_snapshot_delete")


async def _find(env: Environment, run: Run[DeleteVolumeSnapshot]) -> None:
    await require_status(env, run.request.snapshot_id, run.request.volume_id, "deleting")


async def _tell_failure(env: Environment, run: Run[DeleteVolumeSnapshot]) -> None:
    """Spec: SNP-35, SNP-36, SNP-37."""
    await report(env, run.request.snapshot_id, "error_deleting")


def _look(tx: Tx, run: Run[DeleteVolumeSnapshot]) -> VolumeFile:
    merge = run.request.merge
    if merge is None or (merge.file is None and merge.into is not None):
        raise InvalidInput(f"The volume service does not say what to merge for snapshot {run.request.snapshot_id}.")
    return file_of(tx, run.subject, run.request.volume_id)


def _host(run: Run[DeleteVolumeSnapshot]) -> str:
    return run.output(VolumeFile).host


def _args(run: Run[DeleteVolumeSnapshot]) -> MergeArgs:
    assert run.request.merge is not None
    return MergeArgs(run.subject, run.request.volume_id, run.request.merge)


async def _tell(env: Environment, run: Run[DeleteVolumeSnapshot]) -> None:
    """Spec: EMV-41."""
    await report(env, run.request.snapshot_id, "deleting")


def _deleted(_tx: Tx, _run: Run[DeleteVolumeSnapshot]) -> None:
    return None


def _failed(_tx: Tx, _run: Run[DeleteVolumeSnapshot], _failure: Failure) -> None:
    """Spec: SNP-33."""


DELETE_VOLUME_SNAPSHOT = Operation(
    name="delete-volume-snapshot",
    request=DeleteVolumeSnapshot,
    waited_for=True,
    begins=_begin,
    no_return="tell volume service",
    steps=(
        Here("find snapshot", _find, undo=_tell_failure, undo_owed=True),
        Record("look", _look, undo=NoUndo("changes nothing")),
        OnHost("start merge", _host, START_MERGE, _args, undo=ABORT_MERGE),
        OnHost("merge", _host, AWAIT_MERGE, _args, undo=NoUndo("the merge is ended as a whole"), timeout=MERGE_LIMIT,
               retries=2**31, pause=between_watches),
        Here("tell volume service", _tell, undo=NoUndo("the files are merged"), owed=True),
    ),
    ends=_deleted,
    fails=_failed,
)
