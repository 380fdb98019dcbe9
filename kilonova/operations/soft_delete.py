"""Soft delete: switch the guest off and keep everything, until the server is restored or its time is over.

Deletes are soft while the option `reclaim_instance_interval` is set. A host that does not answer owes the
switching off: the server is soft-deleted for its user at once, and no later work on it overtakes that debt.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.agent.steps.power import POWER_OFF, PoweredOff, PowerOffArgs
from kilonova.db import instances
from kilonova.domain.errors import InstanceInvalidState, InstanceNeverLaunched
from kilonova.domain.instance import SoftDeletion
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import fail, observe, settle

OWNED = (TaskState.SOFT_DELETING,)


class SoftDeleteServer(msgspec.Struct, frozen=True, kw_only=True):
    """grace: seconds for a clean shutdown, 0 for none. interval: seconds between signals. Spec: DEL-72."""

    grace: float
    interval: float


class Found(msgspec.Struct, frozen=True):
    """What the record said when its turn came, after whatever ran before was undone."""

    host: str | None
    deletion: SoftDeletion


def _begin(tx: Tx, run: Run[SoftDeleteServer]) -> None:
    """Accepted in every state but a delete for good; a server that never ran has nothing to keep. What it takes the
    place of still owns the record, and gives back what it changed there, until it has ended. Spec: DEL-62."""
    instance = instances.get(tx.conn, run.subject)
    if instance.task_state is TaskState.DELETING:
        raise InstanceInvalidState(run.subject, "delete", "task_state", TaskState.DELETING.value)
    if instance.launched_at is None:
        raise InstanceNeverLaunched(run.subject, "delete")
    if instance.task_state is None:
        instances.update(tx.conn, run.subject, now=tx.now, task_state=TaskState.SOFT_DELETING)


def _find(tx: Tx, run: Run[SoftDeleteServer]) -> Found:
    """A server that is soft-deleted already keeps the time of that. Spec: DEL-82."""
    instance = instances.update(tx.conn, run.subject, now=tx.now, task_state=TaskState.SOFT_DELETING)
    deletion = instance.soft_deletion or SoftDeletion(at=tx.now, vm_state=instance.vm_state)
    return Found(instance.host, deletion)


def _observed(tx: Tx, run: Run[SoftDeleteServer]) -> None:
    """The host has come back and switched the guest off. Spec: DEL-57."""
    observe(tx, run, run.output(PoweredOff).power_state)


def _deleted(tx: Tx, run: Run[SoftDeleteServer]) -> None:
    """Spec: DEL-67, DEL-71."""
    settle(tx, run, owned=OWNED, vm_state=VmState.SOFT_DELETED, task_state=None,
           soft_deletion=run.output(Found).deletion)
    off = run.find(PoweredOff)
    if off is not None:
        observe(tx, run, off.power_state)


def _failed(tx: Tx, run: Run[SoftDeleteServer], failure: Failure) -> None:
    """vm_state stays. Spec: DEL-69, DEL-74."""
    fail(tx, run, failure, owned=OWNED)
    off = run.find(PoweredOff)
    if off is not None:
        observe(tx, run, off.power_state)


def overdue(conn: sa.Connection, options: OperationOptions, now: float) -> list[str]:
    """Servers at rest that have been soft-deleted for longer than they are kept; to be deleted for good.

    Spec: DEL-71, DEL-75, PER-73, PER-74, PER-79.
    """
    if options.reclaim_instance_interval <= 0:
        return []
    kept = now - options.reclaim_instance_interval
    found = instances.soft_deleted(conn)
    return [i.uuid for i in found if i.soft_deletion is not None and i.soft_deletion.at < kept]


SOFT_DELETE = Operation(
    name="soft-delete",
    action="delete",
    event="compute_soft_delete_instance",
    notices=announce("soft_delete"),
    request=SoftDeleteServer,
    preempts=("*",),
    supersedes=("tidy",),
    begins=_begin,
    steps=(
        Record("find", _find, undo=NoUndo("changes nothing")),
        OnHost("power off", lambda run: run.output(Found).host, POWER_OFF,
               lambda run: PowerOffArgs(uuid=run.subject, grace=run.request.grace, interval=run.request.interval),
               undo=NoUndo("a guest that went off stays off; its power state is observed"), timeout=900, owed=True,
               paid=_observed),
    ),
    ends=_deleted,
    fails=_failed,
)
