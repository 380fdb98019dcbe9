"""Take volume snapshot: let a guest write to a new file of its volume, for a volume service that cannot take a snapshot
of a file while somebody writes to it.

The volume service has made the new file above the one that the guest writes to. When the guest has changed over, the
old file is the snapshot. Before that moment the guest goes on with the old file, and the volume service hears that
there is no snapshot; after it the operation only goes forward: the volume service hears of it, and the record names the
new file before anything else can be done with the server. No state of the server is touched, and its history does not
tell of it: the volume service asks, and is told.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.volume_files import CHECK_FILE, PUT_ABOVE, STAY_BELOW, OverlayArgs
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.volume_files import (
    VolumeFile,
    beside,
    file_of,
    record_file,
    report,
    require_attached,
    require_status,
)


class TakeVolumeSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """new_file: its name, in the directory of the file that the guest writes to."""

    volume_id: str
    snapshot_id: str
    new_file: str


def _begin(tx: Tx, run: Run[TakeVolumeSnapshot]) -> None:
    """Spec: SNP-36."""
    require_attached(tx, run.subject, run.request.volume_id, "volume_snapshot_create")


async def _find(env: Environment, run: Run[TakeVolumeSnapshot]) -> None:
    await require_status(env, run.request.snapshot_id, run.request.volume_id, "creating")


async def _tell_failure(env: Environment, run: Run[TakeVolumeSnapshot]) -> None:
    """Spec: SNP-35, SNP-36, SNP-37."""
    await report(env, run.request.snapshot_id, "error")


def _look(tx: Tx, run: Run[TakeVolumeSnapshot]) -> VolumeFile:
    return file_of(tx, run.subject, run.request.volume_id)


def _host(run: Run[TakeVolumeSnapshot]) -> str:
    return run.output(VolumeFile).host


def _args(run: Run[TakeVolumeSnapshot]) -> OverlayArgs:
    file = run.output(VolumeFile).file
    return OverlayArgs(run.subject, run.request.volume_id, file, beside(file, run.request.new_file))


async def _tell(env: Environment, run: Run[TakeVolumeSnapshot]) -> None:
    """Spec: EMV-41."""
    await report(env, run.request.snapshot_id, "creating")


def _taken(tx: Tx, run: Run[TakeVolumeSnapshot]) -> None:
    """Whenever the guest is started from now on, it goes on with this file."""
    record_file(tx, run.output(VolumeFile).device, _args(run).overlay)


def _failed(_tx: Tx, _run: Run[TakeVolumeSnapshot], _failure: Failure) -> None:
    """Spec: SNP-33."""


TAKE_VOLUME_SNAPSHOT = Operation(
    name="take-volume-snapshot",
    request=TakeVolumeSnapshot,
    waited_for=True,
    begins=_begin,
    no_return="put new file above",
    steps=(
        Here("find snapshot", _find, undo=_tell_failure, undo_owed=True),
        Record("look", _look, undo=NoUndo("changes nothing")),
        OnHost("check guest", _host, CHECK_FILE, _args, undo=STAY_BELOW),
        OnHost("put new file above", _host, PUT_ABOVE, _args,
               undo=NoUndo("the undo of the check finds out which file the guest writes to")),
        Here("tell volume service", _tell, undo=NoUndo("the guest writes to the new file"), owed=True),
    ),
    ends=_taken,
    fails=_failed,
)
