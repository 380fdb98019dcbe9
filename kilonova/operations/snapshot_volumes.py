"""Snapshot of a server that boots from a volume: snapshots of all its volumes, and an image that names them.

The image has no data. The volume service takes the snapshots while the guest goes on; if its image wants that, its file
systems are held still until they are taken, for a limited time. Whatever goes wrong before the image is complete, the
snapshots and the image go again. An image that is deleted later leaves its snapshots, which are the user's.
"""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.freeze import FREEZE, THAW, FreezeArgs
from kilonova.agent.steps.snapshot import ACTIVATE
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import KilonovaError, StaleState
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.debt import FOREVER
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.notices import announce_image
from kilonova.operations.records import give_back, settle, take
from kilonova.operations.server_images import CREATE_IMAGE, delete_image
from kilonova.operations.snapshot import ALLOWED, SnapshotServer, failed, snapshot_args
from kilonova.services.volumes import BEING_MADE, NewSnapshot
from kilonova.shapes.image_disks import ImageDisk, disk_of, properties_of
from kilonova.shapes.quiesce import Quiesce

log = structlog.get_logger(__name__)

T, V = TaskState, VmState
OWNED = (T.IMAGE_SNAPSHOT,)
LOOK = 0.5
"""Seconds between two looks at snapshots. Spec: QUI-05."""
FROZEN = 30.0
"""Seconds for which a guest stays frozen at most until its snapshots are taken. Spec: QUI-10."""


class ToCopy(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has.

    Args:
        host: where it is. running: its guest may have to be frozen. volumes: without what may be secret of them.
        local: its other disks. project_id, user_id: whose the snapshots are.
    """

    host: str
    running: bool
    volumes: tuple[BlockDevice, ...]
    local: tuple[BlockDevice, ...]
    project_id: str
    user_id: str


class Taken(msgspec.Struct, frozen=True):
    """The disks of the image, and the snapshots that they are made from."""

    disks: tuple[ImageDisk, ...]
    snapshots: tuple[str, ...]


def _begin(tx: Tx, run: Run[SnapshotServer]) -> None:
    take(tx, run.subject, action="createImage", becomes=T.IMAGE_SNAPSHOT_PENDING, vm=ALLOWED, needs_host=True)


def _look(tx: Tx, run: Run[SnapshotServer]) -> ToCopy:
    instance = settle(tx, run, owned=(T.IMAGE_SNAPSHOT_PENDING,), task_state=T.IMAGE_SNAPSHOT)
    assert instance.host is not None
    volumes = block_devices.of_server(tx.conn, run.subject)
    return ToCopy(
        host=instance.host, running=instance.vm_state is V.ACTIVE,
        volumes=tuple(msgspec.structs.replace(one, connection_info=None) for one in volumes),
        local=tuple(one for one in instance.block_devices if not one.is_volume),
        project_id=instance.project_id, user_id=instance.user_id,
    )


def _freezes(run: Run[SnapshotServer]) -> str | None:
    """The host of a guest whose file systems are held still."""
    found = run.output(ToCopy)
    return found.host if found.running and run.request.quiesce is not Quiesce.NO else None


def _freeze_args(run: Run[SnapshotServer]) -> FreezeArgs:
    return FreezeArgs(run.subject, run.request.quiesce)


def _key(run: Run[SnapshotServer], volume: BlockDevice) -> str:
    return str(uuid.uuid5(uuid.UUID(run.id), volume.uuid))


async def _take(env: Environment, run: Run[SnapshotServer]) -> Taken:
    found = run.output(ToCopy)
    asker = run.record.asker
    owner = RequestContext(request_id=asker.request_id, user_id=found.user_id, project_id=found.project_id)
    disks, snapshots = [], []
    for volume in found.volumes:
        assert volume.volume_id is not None
        made = await env.volumes.create_snapshot(owner, NewSnapshot(
            key=_key(run, volume), volume_id=volume.volume_id, name=f"snapshot for {run.request.image.name}"
        ))
        disks.append(disk_of(volume, snapshot_id=made.id, size=made.size))
        snapshots.append(made.id)
    return Taken((*disks, *map(disk_of, found.local)), tuple(snapshots))


async def _discard(env: Environment, run: Run[SnapshotServer]) -> None:
    """Also those of which no answer ever told the id."""
    for volume in run.output(ToCopy).volumes:
        assert volume.volume_id is not None
        await env.volumes.discard_snapshot(volume.volume_id, _key(run, volume))


async def _hold(env: Environment, run: Run[SnapshotServer]) -> None:
    """The guest is let go when its snapshots are taken, or at the limit, or when nobody can say. Spec: QUI-05, QUI-07,
    QUI-10."""
    until = env.clock.monotonic() + FROZEN
    try:
        while await _being_taken(env, run):
            if env.clock.monotonic() >= until:
                log.warning("guest thawed before its snapshots were taken", instance=run.subject, seconds=FROZEN)
                return
            await env.clock.sleep(LOOK)
    except KilonovaError as error:
        log.warning("guest thawed, for nobody tells of its snapshots", instance=run.subject, error=str(error))


async def _wait(env: Environment, run: Run[SnapshotServer]) -> None:
    """Raises KilonovaError: a snapshot could not be taken. StaleState: nobody needs it, the server is deleted."""
    while await _being_taken(env, run):
        await env.clock.sleep(LOOK)
        await env.database.read(lambda conn: _check_wanted(conn, run.subject))
    for snapshot in run.output(Taken).snapshots:
        status = (await env.volumes.snapshot(None, snapshot)).status
        if status != "available":
            raise KilonovaError(f"Snapshot {snapshot} of a volume of the server is {status}.")


def _check_wanted(conn: sa.Connection, server: str) -> None:
    if instances.get(conn, server).task_state not in OWNED:
        raise StaleState(f"Instance {server} was taken over by another operation.")


async def _being_taken(env: Environment, run: Run[SnapshotServer]) -> bool:
    return any([
        (await env.volumes.snapshot(None, snapshot)).status in BEING_MADE for snapshot in run.output(Taken).snapshots
    ])


async def _create_image(env: Environment, run: Run[SnapshotServer]) -> None:
    """The record of the image, with what its disks are. Spec: EMG-30, API-124."""
    image = run.request.image
    properties = image.properties | properties_of(run.output(Taken).disks)
    await env.images.create(msgspec.structs.replace(image, properties=properties, disk_format="raw"))


def _made(tx: Tx, run: Run[SnapshotServer]) -> None:
    """An image that is complete is kept, whatever is becoming of the server. Spec: SNP-15, SNP-16."""
    give_back(tx, run, owned=OWNED, task_state=None)


READS = NoUndo("changes nothing")

SNAPSHOT_VOLUMES = Operation(
    name="snapshot-volumes",
    action="createImage",
    event="compute_snapshot_instance",
    notices=announce_image(),
    request=SnapshotServer,
    begins=_begin,
    no_return="activate image",
    steps=(
        Record("look", _look, undo=READS),
        OnHost("freeze guest", _freezes, FREEZE, _freeze_args, undo=THAW, undo_owed=True),
        Here("take snapshots", _take, undo=_discard, undo_owed=True),
        Here("hold guest", _hold, undo=READS, timeout=2 * FROZEN, given=lambda run: _freezes(run) is None),
        OnHost("thaw guest", _freezes, THAW, _freeze_args, undo=NoUndo("it is to be thawed")),
        Here(CREATE_IMAGE, _create_image, undo=delete_image, undo_owed=True),
        Here("wait for snapshots", _wait, undo=READS, timeout=FOREVER),
        OnHost("activate image", lambda run: run.output(ToCopy).host, ACTIVATE, snapshot_args,
               undo=NoUndo("the image goes as a whole")),
    ),
    ends=_made,
    fails=failed,
)
