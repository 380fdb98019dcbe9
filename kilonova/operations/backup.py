"""Backup: make an image of a server's disk, then delete the oldest backups of the same type.

What cannot be deleted stays: the new backup is worth more than the order among the old ones.
"""

from __future__ import annotations

import structlog

from kilonova.agent.steps.power import LOOK, GuestRef
from kilonova.domain.errors import KilonovaError, Retryable, ServiceUnavailable
from kilonova.domain.image import Image
from kilonova.domain.states import TaskState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce_image
from kilonova.operations.records import give_back, take
from kilonova.operations.server_images import CREATE_IMAGE, create_image, delete_image
from kilonova.operations.snapshot import ALLOWED, COPY_AND_UPLOAD, SnapshotServer, failed, note_guest

log = structlog.get_logger(__name__)


class BackupServer(SnapshotServer, frozen=True, kw_only=True):
    """rotation: how many backups of the type are kept, the new one included; None keeps all."""

    backup_type: str
    rotation: int | None = None


def _begin(tx: Tx, run: Run[BackupServer]) -> None:
    take(tx, run.subject, action="createBackup", becomes=TaskState.IMAGE_BACKUP, vm=ALLOWED)


def _looked(tx: Tx, run: Run[BackupServer]) -> None:
    """Spec: SNP-24."""
    note_guest(tx, run, before=TaskState.IMAGE_BACKUP, after=TaskState.IMAGE_BACKUP)


def surplus(backups: list[Image], new: str, rotation: int) -> list[str]:
    """Which backups are to go, oldest first. One without data does not count, and goes if it is older than the new.

    Args:
        backups: newest first. new: id of the one that was just made.

    Spec: SNP-27, SNP-30.
    """
    ids = [image.id for image in backups]
    older = ids[ids.index(new):] if new in ids else []
    whole = [image.id for image in backups if image.status == "active"]
    kept = set(whole[:rotation])
    complete = set(whole)
    return [id_ for id_ in reversed(ids) if id_ not in kept and (id_ in complete or id_ in older)]


async def _rotate(env: Environment, run: Run[BackupServer]) -> None:
    """Spec: SNP-25 to SNP-32."""
    request = run.request
    if request.rotation is None:
        return
    image = request.image
    backups = await env.images.backups(image.owner, run.subject, request.backup_type)
    for id_ in surplus(backups, image.id, request.rotation):
        try:
            await env.images.delete(id_)
        except (Retryable, ServiceUnavailable):
            raise
        except KilonovaError as error:
            log.warning("old backup not deleted", instance=run.subject, image=id_, error=str(error))


def _made(tx: Tx, run: Run[BackupServer]) -> None:
    """Nothing is undone any more: a record that another operation has taken over is left alone. Spec: SNP-15,
    SNP-31."""
    give_back(tx, run, owned=(TaskState.IMAGE_UPLOADING,), task_state=None)


BACKUP = Operation(
    name="backup",
    action="createBackup",
    event="compute_backup_instance",
    notices=announce_image(),
    request=BackupServer,
    begins=_begin,
    no_return="rotate",
    steps=(
        Here(CREATE_IMAGE, create_image, undo=delete_image, undo_owed=True),
        Record("find host", find_host, undo=NoUndo("changes nothing")),
        OnHost("look at guest", lambda run: run.output(Host).host, LOOK, lambda run: GuestRef(uuid=run.subject),
               undo=NoUndo("changes nothing"), recorded=_looked),
        *COPY_AND_UPLOAD,
        Here("rotate", _rotate, undo=NoUndo("a backup that was deleted stays deleted"), owed=True),
    ),
    ends=_made,
    fails=failed,
)
