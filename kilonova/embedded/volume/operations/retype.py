"""Give a volume another type. If its data would have to lie elsewhere for that, a migration does it instead."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.domain.errors import InvalidInput
from kilonova.domain.operation import Failure
from kilonova.embedded.volume import messages, volume_types, volumes
from kilonova.embedded.volume.backends import fits
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.whereabouts import tell_user
from kilonova.embedded.volume.records import Volume, VolumeType
from kilonova.embedded.volume.states import VolumeStatus
from kilonova.engine.operation import NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run

S = VolumeStatus


class RetypeVolume(msgspec.Struct, frozen=True):
    type_id: str


def must_move(volume: Volume, type_: VolumeType) -> bool:
    """Whether volumes of the type lie in another pool than this one does."""
    return volume.host is not None and not fits(volume.host, type_.extra_specs)


def check_type(conn: sa.Connection, volume: Volume, type_id: str) -> VolumeType:
    """The type that a volume may get. Raises VolumeTypeNotFound; InvalidInput, InvalidVolume. Spec: EMV-34."""
    type_ = volume_types.get(conn, type_id)
    if volume.type_id == type_id:
        raise InvalidInput(f"Volume {volume.id} has the type {type_.name} already.")
    if volume.encrypted or volume_types.encryption(conn, type_id) is not None:
        raise InvalidInput("The encryption of a volume cannot be changed.", hint="copy it to a new volume")
    if type_.multiattach != volume.multiattach and volume.status is not S.AVAILABLE:
        raise InvalidVolume(volume.id, "is attached, so that multiattach cannot be changed")
    return type_


def _begin(tx: Tx, run: Run[RetypeVolume]) -> None:
    volume = volumes.get(tx.conn, run.subject, lock=True)
    volumes.refuse_migrating(volume)
    check_type(tx.conn, volume, run.request.type_id)
    volumes.begin(tx.conn, volume.id, [S.AVAILABLE, S.IN_USE], S.RETYPING, tx.now)


def _change(tx: Tx, run: Run[RetypeVolume]) -> None:
    """Spec: EMV-34."""
    volume, type_ = volumes.get(tx.conn, run.subject), volume_types.get(tx.conn, run.request.type_id)
    if must_move(volume, type_):
        raise InvalidVolume(volume.id, f"cannot become {type_.name} where it is, and may not migrate")
    volumes.change(tx.conn, volume.id, tx.now, type_id=type_.id, multiattach=type_.multiattach)


def _retyped(tx: Tx, run: Run[RetypeVolume]) -> None:
    volumes.finish(tx.conn, run.subject, S.RETYPING, tx.now)


def _not_retyped(tx: Tx, run: Run[RetypeVolume], failure: Failure) -> None:
    volumes.finish(tx.conn, run.subject, S.RETYPING, tx.now)
    tell_user(tx, run, messages.VOLUME, run.subject, failure)


RETYPE = Operation(
    name="retype volume",
    about="volume",
    request=RetypeVolume,
    begins=_begin,
    steps=(Record("change type", _change, undo=NoUndo("it is the last step")),),
    ends=_retyped,
    fails=_not_retyped,
)
