"""Extend a volume. Servers that use it are told, so that their guests see the new size."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.domain.operation import Failure
from kilonova.embedded.volume import attachments, messages, quotas, volume_types, volumes
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import READS, Whereabouts, look, tell_user
from kilonova.embedded.volume.states import AttachStatus, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run

log = structlog.get_logger(__name__)

S = VolumeStatus
EXTENDED = "volume-extended"


class ExtendVolume(msgspec.Struct, frozen=True):
    """size: GiB. online: also while servers use it."""

    size: int
    online: bool = True


class Users(msgspec.Struct, frozen=True):
    """Servers that are to be told."""

    servers: tuple[str, ...]


def _begin(tx: Tx, run: Run[ExtendVolume]) -> None:
    """Spec: EMV-26, EMV-27."""
    volume, size = volumes.get(tx.conn, run.subject, lock=True), run.request.size
    if size <= volume.size:
        raise InvalidInput(f"New size for extend must be greater than current size ({volume.size} GiB).")
    volumes.refuse_migrating(volume)
    type_name = volume_types.get(tx.conn, volume.type_id).name if volume.type_id else None
    quotas.check_size(tx.conn, volume.project_id, size)
    quotas.check(tx.conn, volume.project_id, {"gigabytes": size - volume.size}, type_name)
    allowed = (S.AVAILABLE, S.IN_USE) if run.request.online else (S.AVAILABLE,)
    volumes.begin(tx.conn, volume.id, allowed, S.EXTENDING, tx.now)


async def _grow(environment: VolumeEnvironment, run: Run[ExtendVolume]) -> None:
    there = run.output(Whereabouts)
    await environment.pool(there.host).extend(there.name_id, run.request.size)


def _grown(tx: Tx, run: Run[ExtendVolume]) -> None:
    volumes.change(tx.conn, run.subject, tx.now, size=run.request.size)


def _find_users(tx: Tx, run: Run[ExtendVolume]) -> Users:
    found = attachments.of_volume(tx.conn, run.subject)
    servers = {one.instance_id for one in found if one.instance_id and one.status is AttachStatus.ATTACHED}
    volumes.finish(tx.conn, run.subject, S.EXTENDING, tx.now)
    return Users(tuple(sorted(servers)))


async def _tell(environment: VolumeEnvironment, run: Run[ExtendVolume]) -> None:
    """A server that does not want to know sees the new size when it starts again. Spec: EMV-27, EMV-29."""
    for server in run.output(Users).servers:
        try:
            await environment.compute.tell(EXTENDED, server, volume=run.subject)
        except (NotFound, InvalidInput) as error:
            log.info("a server was not told of its larger volume", server=server, volume=run.subject, why=str(error))


def _extended(_tx: Tx, _run: Run[ExtendVolume]) -> None:
    return None


def _not_extended(tx: Tx, run: Run[ExtendVolume], failure: Failure) -> None:
    volumes.move(tx.conn, run.subject, [S.EXTENDING], S.ERROR_EXTENDING, tx.now, previous_status=None)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


EXTEND = Operation(
    name="extend volume",
    about="volume",
    request=ExtendVolume,
    begins=_begin,
    no_return="give back",
    steps=(
        Record("look", look, undo=READS),
        Here("grow", _grow, undo=NoUndo("a volume never shrinks"), recorded=_grown, timeout=600),
        Record("give back", _find_users, undo=NoUndo("it was given back as it is")),
        Here("tell servers", _tell, undo=NoUndo("the volume is larger"), owed=True),
    ),
    ends=_extended,
    fails=_not_extended,
)
