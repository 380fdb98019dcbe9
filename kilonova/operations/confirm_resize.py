"""Confirm a resize: the server keeps its new flavor, and what was kept of the old one goes.

It goes forward only. The guest runs on whatever happens: if its old disks cannot be removed, the server is active (or
stopped) all the same, with a fault, and its host owes the removal; the migration is in error until that is done.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.resize import DROP_DISKS, DropDisksArgs
from kilonova.db import instances, migration_records
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import Instance
from kilonova.domain.migration import MigrationStatus
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.debt import DebtRequest
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.moves import DECIDABLE, DELETES, close, conclude, undecided
from kilonova.operations.notices import announce
from kilonova.operations.records import blame_debt, fail, give_back, take

M = MigrationStatus
OWNED = (TaskState.RESIZE_CONFIRMING,)
LOOK, REMOVE_OLD = "look", "remove old disks"
FORWARD = NoUndo("a confirm goes forward only")


class ConfirmResize(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class Leftover(msgspec.Struct, frozen=True, kw_only=True):
    """What is to go: of which migration, and on which host."""

    migration: str
    host: str | None


def _begin(tx: Tx, run: Run[ConfirmResize]) -> None:
    """The migration is taken by its stored status, in the transaction that takes the server. Spec: RSZ-01 to RSZ-04."""
    take(tx, run.subject, action="confirmResize", becomes=TaskState.RESIZE_CONFIRMING, vm=(VmState.RESIZED,))
    migration = undecided(tx, run.subject)
    migration_records.change(tx.conn, migration.uuid, now=tx.now, was=DECIDABLE, status=M.CONFIRMING)


def _look(tx: Tx, run: Run[ConfirmResize]) -> Leftover:
    (migration,) = migration_records.of_server(tx.conn, run.subject, (M.CONFIRMING,))
    return Leftover(migration=migration.uuid, host=migration.source_compute)


async def _release(env: Environment, run: Run[ConfirmResize]) -> None:
    """However long that takes. Spec: RSZ-15, RSZ-21, RSZ-22."""
    await env.placement.release(run.output(Leftover).migration)


def _settled(tx: Tx, run: Run[ConfirmResize]) -> VmState:
    """Spec: RSZ-12."""
    off = instances.get(tx.conn, run.subject).power_state is PowerState.SHUTDOWN
    return VmState.STOPPED if off else VmState.ACTIVE


def _confirmed(tx: Tx, run: Run[ConfirmResize]) -> None:
    """The migration is marked last, in one transaction with the server. One that is being deleted keeps its task, one
    that is gone changes nothing. Spec: RSZ-05, RSZ-12, RSZ-13, RSZ-17 to RSZ-19."""
    refused = blame_debt(tx, run, REMOVE_OLD)
    close(tx, run.subject, (M.CONFIRMING,), M.ERROR if refused else M.CONFIRMED)
    try:
        state = _settled(tx, run)
    except InstanceNotFound:
        return
    conclude(tx, run, owned=OWNED, vm_state=state)


def _removed_later(tx: Tx, run: Run[DebtRequest]) -> None:
    """What the host refused is done: nothing is wrong with the migration any more. Spec: RSZ-19."""
    look = next(entry for entry in run.request.parent.entries if entry.step == LOOK)
    migration = msgspec.json.decode(look.output, type=Leftover).migration
    migration_records.change(tx.conn, migration, now=tx.now, was=(M.ERROR,), status=M.CONFIRMED)


def _failed(tx: Tx, run: Run[ConfirmResize], failure: Failure) -> None:
    """Spec: RSZ-06."""
    if run.find(Leftover) is None:  # nothing was given up
        close(tx, run.subject, (M.CONFIRMING,), M.FINISHED)
        fail(tx, run, failure, owned=OWNED)
        return
    close(tx, run.subject, (M.CONFIRMING,), M.ERROR)
    try:
        state = _settled(tx, run)
    except InstanceNotFound:
        return
    fail(tx, run, failure, owned=OWNED, vm_state=state)
    give_back(tx, run, owned=DELETES, vm_state=state)


def _source(run: Run[ConfirmResize], instance: Instance) -> str | None:
    """The host that the server comes from. Spec: RSZ-07."""
    leftover = run.find(Leftover)
    return leftover.host if leftover is not None and leftover.host is not None else instance.host


CONFIRM_RESIZE = Operation(
    name="confirm-resize",
    action="confirmResize",
    event="compute_confirm_resize",
    notices=announce("resize_confirm", older="resize.confirm", host=_source),
    request=ConfirmResize,
    begins=_begin,
    no_return=LOOK,
    steps=(
        Record(LOOK, _look, undo=FORWARD),
        Here("release old claim", _release, undo=FORWARD, persistent=True),
        OnHost(REMOVE_OLD, lambda run: run.output(Leftover).host, DROP_DISKS,
               lambda run: DropDisksArgs(uuid=run.subject, keep=run.output(Leftover).migration),
               undo=FORWARD, owed=True, owed_anyway=True, paid=_removed_later),
    ),
    ends=_confirmed,
    fails=_failed,
)
