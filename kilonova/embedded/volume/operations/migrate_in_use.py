"""Migrate a volume that a server uses: make a hidden target, let compute copy and switch to it, swap identities.

The server keeps the volume that it knows: the target's data and attachment become the volume's own, and the old data
go. If compute cannot do it, the target goes. Spec: EMV-30, EMV-32, EMV-33, EMV-35; 5.6.
"""

from __future__ import annotations

import contextlib
import uuid

import msgspec

from kilonova.domain.errors import VolumeNotFound
from kilonova.domain.operation import event_key
from kilonova.embedded.volume import attachments, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.migrate import (
    MigrateVolume,
    Old,
    delete_old,
    may_migrate,
    migrated,
    not_migrated,
    set_type,
    working,
)
from kilonova.embedded.volume.operations.whereabouts import Whereabouts, look
from kilonova.embedded.volume.states import MIGRATING, STARTING, TARGET, VolumeStatus
from kilonova.engine.operation import Await, Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run

S = VolumeStatus

SWAPPED = "volume-swapped"
"""What compute reports of a target when it has switched to it, or could not."""
SWAP_LIMIT = 24 * 3600.0
"""Seconds in which compute must have copied the volume."""


class Target(msgspec.Struct, frozen=True):
    """The hidden volume, and the server that is to use it."""

    id: str
    server: str


def _begin(tx: Tx, run: Run[MigrateVolume]) -> None:
    volume = may_migrate(tx, run)
    users = {one.instance_id for one in attachments.of_volume(tx.conn, volume.id)}
    if len(users) != 1 or None in users:
        raise InvalidVolume(volume.id, "can be migrated only while exactly one server uses it")
    volumes.begin(
        tx.conn, volume.id, [S.IN_USE], working(run.request, S.IN_USE), tx.now, migration_status=STARTING
    )


def _make_target(tx: Tx, run: Run[MigrateVolume]) -> Target:
    volume = volumes.get(tx.conn, run.subject)
    users = [one.instance_id for one in attachments.of_volume(tx.conn, volume.id) if one.instance_id]
    if not users:
        raise InvalidVolume(volume.id, "was detached meanwhile")
    target = str(uuid.uuid5(uuid.UUID(run.id), "target"))
    volumes.insert(tx.conn, msgspec.structs.replace(
        volume, id=target, name_id=target, host=run.request.host, status=S.CREATING, previous_status=None,
        migration_status=f"{TARGET}{volume.id}", created_at=tx.now, updated_at=tx.now,
    ))
    volumes.change(tx.conn, volume.id, tx.now, migration_status=MIGRATING)
    return Target(target, users[0])


def _drop_target(tx: Tx, run: Run[MigrateVolume]) -> None:
    volumes.delete(tx.conn, run.output(Target).id)


async def _make_data(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    there, target, pool = run.output(Whereabouts), run.output(Target), environment.pool(run.request.host)
    await pool.create(target.id, there.size, passphrase=environment.passphrase(there.key_id))
    await pool.begin_filling(target.id)


async def _drop_data(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    await environment.pool(run.request.host).delete(run.output(Target).id)


def _offer(tx: Tx, run: Run[MigrateVolume]) -> None:
    volumes.move(tx.conn, run.output(Target).id, [S.CREATING], S.AVAILABLE, tx.now)


async def _ask(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    target = run.output(Target)
    await environment.compute.swap_volume(target.server, run.subject, target.id)


async def _withdraw(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    """A server that gave up has let go of the target; one that did not answer is cut off from it."""
    target, pool = run.output(Target).id, environment.pool(run.request.host)
    left = await environment.database.read(lambda conn: attachments.of_volume(conn, target))
    for attachment in left:
        await pool.remove_export(attachment.id, force=True)


def _withdrawn(tx: Tx, run: Run[MigrateVolume]) -> None:
    for attachment in attachments.of_volume(tx.conn, run.output(Target).id):
        attachments.delete(tx.conn, attachment, tx.now)


def _swap(tx: Tx, run: Run[MigrateVolume]) -> Old:
    """The target's data, attachments and place become the volume's."""
    there, target = run.output(Whereabouts), run.output(Target)
    attachments.give(tx.conn, target.id, run.subject, tx.now)
    volumes.delete(tx.conn, target.id)
    volumes.change(tx.conn, run.subject, tx.now, host=run.request.host, name_id=target.id)
    set_type(tx, run)
    return Old(there.host, there.name_id)


async def _end_filling(environment: VolumeEnvironment, run: Run[MigrateVolume]) -> None:
    with contextlib.suppress(VolumeNotFound):  # a user has deleted the volume since
        await environment.pool(run.request.host).end_filling(run.output(Target).id)


MIGRATE_IN_USE = Operation(
    name="migrate volume in use",
    about="volume",
    request=MigrateVolume,
    begins=_begin,
    no_return="swap identities",
    steps=(
        Record("look", look, undo=NoUndo("changes nothing")),
        Record("make target", _make_target, undo=_drop_target),
        Here("make data", _make_data, undo=_drop_data),
        Record("offer target", _offer, undo=NoUndo("the target goes as a whole")),
        Here("ask compute", _ask, undo=_withdraw, undone=_withdrawn),
        Await("swap", lambda run: (event_key(SWAPPED, run.output(Target).id),), timeout=lambda _run: SWAP_LIMIT),
        Record("swap identities", _swap, undo=NoUndo("nothing after it fails")),
        Here("end filling", _end_filling, undo=NoUndo("changes no data"), owed=True),
        Here("delete old data", delete_old, undo=NoUndo("the volume has its new data"), owed=True),
    ),
    ends=migrated,
    fails=not_migrated,
)
