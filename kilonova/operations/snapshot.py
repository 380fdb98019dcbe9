"""Snapshot: make an image of a server's disk while the server goes on as it is.

The image exists, without data, before its user is told its id. The host copies the disk into a file, and sends that
to the image service. Whatever goes wrong, or if the server is deleted meanwhile, file and image go again.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from kilonova.agent.steps.power import LOOK, GuestRef, Powered
from kilonova.agent.steps.snapshot import DISCARD, TAKE, UPLOAD, SnapshotArgs
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.debt import FOREVER
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce_image
from kilonova.operations.records import fail, observe, settle, take
from kilonova.operations.server_images import CREATE_IMAGE, create_image, delete_image, find_image
from kilonova.services.image import NewImage
from kilonova.shapes.quiesce import Quiesce

log = structlog.get_logger(__name__)

T, V = TaskState, VmState
TASKS = (T.IMAGE_SNAPSHOT_PENDING, T.IMAGE_SNAPSHOT, T.IMAGE_BACKUP, T.IMAGE_PENDING_UPLOAD, T.IMAGE_UPLOADING)
ALLOWED = (V.ACTIVE, V.STOPPED, V.PAUSED, V.SUSPENDED)


class SnapshotServer(msgspec.Struct, frozen=True, kw_only=True):
    """image: what is to be made. quiesce: what the server's own image says of its file systems. Spec: QUI-01."""

    image: NewImage
    quiesce: Quiesce = Quiesce.NO


def snapshot_args(run: Run[SnapshotServer]) -> SnapshotArgs:
    """What the host is told."""
    return SnapshotArgs(uuid=run.subject, image_id=run.request.image.id, quiesce=run.request.quiesce)


def _begin(tx: Tx, run: Run[SnapshotServer]) -> None:
    take(tx, run.subject, action="createImage", becomes=T.IMAGE_SNAPSHOT_PENDING, vm=ALLOWED)


def note_guest(tx: Tx, run: Run[Any], *, before: TaskState, after: TaskState) -> None:
    """Work on the host begins. Spec: SNP-11."""
    powered = run.output(Powered)
    if powered.power_state is not PowerState.RUNNING:
        log.warning("guest that is copied does not run", instance=run.subject, power_state=powered.power_state.name)
    settle(tx, run, owned=(before,), task_state=after, power_state=powered.power_state)


def _looked(tx: Tx, run: Run[SnapshotServer]) -> None:
    """Spec: SNP-03."""
    note_guest(tx, run, before=T.IMAGE_SNAPSHOT_PENDING, after=T.IMAGE_SNAPSHOT)


def _taken(tx: Tx, run: Run[SnapshotServer]) -> None:
    """Spec: SNP-14."""
    settle(tx, run, owned=(T.IMAGE_SNAPSHOT, T.IMAGE_BACKUP), task_state=T.IMAGE_PENDING_UPLOAD)


def _uploading(tx: Tx, run: Run[SnapshotServer]) -> None:
    settle(tx, run, owned=(T.IMAGE_PENDING_UPLOAD,), task_state=T.IMAGE_UPLOADING)


def made(tx: Tx, run: Run[SnapshotServer]) -> None:
    """vm_state is not changed. Spec: SNP-15."""
    settle(tx, run, owned=(T.IMAGE_UPLOADING,), task_state=None)
    log.info("image made of server", instance=run.subject, image=run.request.image.id,
             seconds=round(tx.now - run.record.created_at, 1))


def failed(tx: Tx, run: Run[SnapshotServer], failure: Failure) -> None:
    """vm_state is not changed. Spec: SNP-16 to SNP-19, SNP-21, SNP-22, INI-077, INI-102."""
    log.warning("no image made of server", instance=run.subject, image=run.request.image.id, reason=failure.message)
    fail(tx, run, failure, owned=TASKS)
    powered = run.find(Powered)
    if powered is not None:
        observe(tx, run, powered.power_state)


COPY_AND_UPLOAD = (
    OnHost("take snapshot", lambda run: run.output(Host).host, TAKE, snapshot_args, undo=DISCARD, recorded=_taken,
           timeout=FOREVER, undo_owed=True),
    Here("find image", find_image, undo=NoUndo("reads only"), recorded=_uploading),
    OnHost("upload", lambda run: run.output(Host).host, UPLOAD, snapshot_args,
           undo=NoUndo("the image goes as a whole"), timeout=FOREVER),
)
"""They may wait for their turn on the host as long as it takes. Spec: SNP-07."""

SNAPSHOT = Operation(
    name="snapshot",
    action="createImage",
    event="compute_snapshot_instance",
    notices=announce_image(),
    request=SnapshotServer,
    begins=_begin,
    steps=(
        Here(CREATE_IMAGE, create_image, undo=delete_image, undo_owed=True),
        Record("find host", find_host, undo=NoUndo("changes nothing")),
        OnHost("look at guest", lambda run: run.output(Host).host, LOOK, lambda run: GuestRef(uuid=run.subject),
               undo=NoUndo("changes nothing"), recorded=_looked),
        *COPY_AND_UPLOAD,
    ),
    ends=made,
    fails=failed,
)
