"""Tidy: give back what a server holds beside what it runs on, once nothing else works on it.

A reset of its states takes a server out of a rescue, out of a resize that nobody has decided on, or off its shelf,
without the operation that would have put things away; an audit may find such things, too. It goes forward only: what
the host or a service cannot or will not remove now is owed. What the guest runs from is never touched: a rescue disk
that it has goes when it is started from its own.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.agent.steps.rescue import TIDY_DISKS, TidyArgs
from kilonova.db import instances, migration_records
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import Instance
from kilonova.domain.migration import Migration, MigrationStatus
from kilonova.domain.operation import Failure
from kilonova.domain.states import VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.moves import close
from kilonova.operations.records import blame, give_back
from kilonova.operations.server_images import remove_image
from kilonova.operations.shelf import IMAGE_KEY, without_label

M, V = MigrationStatus, VmState
FORWARD = NoUndo("what belongs to nothing is not brought back")
ALONE = (V.ACTIVE, V.STOPPED, V.PAUSED, V.SUSPENDED, V.ERROR)
"""vm_states in which a server needs nothing beside the disks of its guest, and holds one claim."""


class TidyServer(msgspec.Struct, frozen=True):
    """unshelved: it was on a shelf, with its disks, and the image is needed no more."""

    unshelved: bool = False


class Surplus(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be given back.

    Args:
        host: where things may lie beside its disks, None for nowhere. migration: one that holds a claim.
        kept: what a resize has kept goes, too. image: the one of its shelf.
    """

    host: str | None = None
    migration: str = ""
    kept: bool = False
    image: str = ""


def after_reset(tx: Tx, before: Instance) -> TidyServer | None:
    """What follows a reset of a server's states, None if it cannot leave anything behind. A resize that something has
    put in error counts as one that nobody has decided on.

    Args:
        before: the server as it was.
    """
    found = migration_records.of_server(tx.conn, before.uuid)
    if before.vm_state is V.RESIZED and found and found[0].status is M.ERROR:
        migration_records.change(tx.conn, found[0].uuid, now=tx.now, was=(M.ERROR,), status=M.FINISHED)
    resized = before.vm_state is V.RESIZED or any(migration.status is M.FINISHED for migration in found)
    shelved = before.vm_state is V.SHELVED
    working = cell_journal.holder(tx.conn, before.uuid) is not None
    return TidyServer(unshelved=shelved) if resized or shelved or before.rescue is not None or working else None


async def _release(env: Environment, run: Run[TidyServer]) -> Surplus:
    """It is looked for when its turn has come: whatever ran before has ended or is undone."""
    surplus = await env.database.read(lambda conn: _surplus(conn, run))
    if surplus.migration:
        await env.placement.release(surplus.migration)
    return surplus


def _surplus(conn: sa.Connection, run: Run[TidyServer]) -> Surplus:
    """The image of a server that is on no host is all there is of it, and stays."""
    try:
        instance = instances.get(conn, run.subject)
    except InstanceNotFound:
        return Surplus()
    if instance.vm_state not in ALONE or instance.host is None:
        return Surplus()
    found = migration_records.of_server(conn, run.subject)
    undecided = [migration.uuid for migration in found if migration.status is M.FINISHED]
    return Surplus(
        host=instance.host, migration=undecided[0] if undecided else "", kept=not _goes_back(instance, found),
        image=instance.system_metadata.get(IMAGE_KEY, "") if run.request.unshelved else "",
    )


def _goes_back(instance: Instance, found: list[Migration]) -> bool:
    """Whether a revert has failed after the server got its old flavor: what was kept may be the disks it should have,
    and somebody has to look."""
    return bool(found) and found[0].status is M.ERROR and found[0].old_flavor == instance.flavor != found[0].new_flavor


async def _drop_image(env: Environment, run: Run[TidyServer]) -> None:
    image = run.output(Surplus).image
    if image:
        await remove_image(env, run.subject, image)


def _tidy(tx: Tx, run: Run[TidyServer]) -> None:
    """A server that is gone took everything with it."""
    surplus = run.output(Surplus)
    if surplus.migration:
        close(tx, run.subject, (M.FINISHED,), M.CONFIRMED)
    try:
        metadata = instances.get(tx.conn, run.subject).system_metadata
    except InstanceNotFound:
        return
    if surplus.host is not None:
        changes = {"system_metadata": without_label(metadata)} if surplus.image else {}
        give_back(tx, run, owned=instances.ANY, rescue=None, **changes)


def _failed(tx: Tx, run: Run[TidyServer], failure: Failure) -> None:
    """No step of it fails for good, so somebody has ended it. An audit finds what is left."""
    blame(tx, run, failure)


TIDY = Operation(
    name="tidy",
    request=TidyServer,
    waited_for=True,
    no_return="release old claim",
    steps=(
        Here("release old claim", _release, undo=FORWARD, persistent=True),
        OnHost("tidy disks", lambda run: run.output(Surplus).host, TIDY_DISKS,
               lambda run: TidyArgs(uuid=run.subject, kept=run.output(Surplus).kept),
               undo=FORWARD, owed=True, owed_anyway=True),
        Here("drop image", _drop_image, undo=FORWARD, owed=True),
    ),
    ends=_tidy,
    fails=_failed,
)
