"""How operations take, settle and fault instance records: guarded saves, in the journal's transaction.

An operation owns the task states it sets. It clears or changes a record only while one of them is stored; any
other means that another operation has taken the record over, which is left alone. Spec: FND-10 to FND-17.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from typing import Any

import msgspec

from kilonova.agent.steps.power import Powered
from kilonova.db import instances
from kilonova.domain.errors import (
    InstanceInvalidState,
    InstanceNeverLaunched,
    InstanceNotFound,
    InstanceNotReady,
    StaleState,
    Unreachable,
)
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Tx
from kilonova.engine.run import Run


def check(
    tx: Tx, uuid: str, *, action: str, vm: Collection[VmState], task: Collection[TaskState | None] = (None,),
    needs_host: bool = False,
) -> Instance:
    """Begin: check the states the action is allowed in. A server that was never launched has no guest to act on.

    Args:
        action: its name in the error text. vm, task: the states allowed. needs_host: refuse without one.

    Raises:
        InstanceNotFound, InstanceNotReady, InstanceInvalidState, InstanceNeverLaunched.
        Spec: API-062, API-063, API-065, API-070.
    """
    instance = instances.get(tx.conn, uuid)
    if needs_host and instance.host is None:
        raise InstanceNotReady(uuid)
    check_states(instance, action=action, vm=vm, task=task)
    return instance


def check_states(
    instance: Instance, *, action: str, vm: Collection[VmState], task: Collection[TaskState | None] = (None,)
) -> None:
    """Raises InstanceInvalidState, InstanceNeverLaunched: the action is not allowed now. Arguments as of `check`."""
    if instance.vm_state not in vm:
        raise InstanceInvalidState(instance.uuid, action, "vm_state", instance.vm_state.value)
    if instance.task_state not in task:
        stored = instance.task_state.value if instance.task_state else "None"
        raise InstanceInvalidState(instance.uuid, action, "task_state", stored)
    if instance.launched_at is None:
        raise InstanceNeverLaunched(instance.uuid, action)


def take(
    tx: Tx, uuid: str, *, action: str, becomes: TaskState, vm: Collection[VmState],
    task: Collection[TaskState | None] = (None,), needs_host: bool = False,
) -> Instance:
    """The same, and store its task state."""
    check(tx, uuid, action=action, vm=vm, task=task, needs_host=needs_host)
    return instances.update(tx.conn, uuid, now=tx.now, task_state=becomes)


def settle(tx: Tx, run: Run[Any], *, owned: Collection[TaskState | None], **changes: Any) -> Instance:
    """Change the record while this operation still owns it. Raises StaleState, InstanceNotFound otherwise."""
    return instances.update(tx.conn, run.subject, now=tx.now, task=owned, **changes)


def give_back(tx: Tx, run: Run[Any], *, owned: Collection[TaskState | None], **changes: Any) -> None:
    """Undo a change of the record, unless it is gone or another operation has taken it over."""
    with contextlib.suppress(StaleState, InstanceNotFound):
        settle(tx, run, owned=owned, **changes)


def observe(tx: Tx, run: Run[Any], power_state: PowerState) -> None:
    """Store what a guest was seen to be: that is true whoever owns the record. Spec: PWR-14, RBT-17."""
    with contextlib.suppress(InstanceNotFound):
        instances.update(tx.conn, run.subject, now=tx.now, power_state=power_state)


def left_after(run: Run[Any], step: str) -> PowerState | None:
    """What a step on a host that was undone has left of the guest; None if nobody could look."""
    entry = run.entry(step, undo=True)
    if entry is None or entry.state is not EntryState.DONE:
        return None
    return msgspec.json.decode(entry.output, type=Powered).power_state


def fail(
    tx: Tx, run: Run[Any], failure: Failure, *, owned: Collection[TaskState | None],
    vm: Collection[VmState] = instances.ANY, **changes: Any,
) -> None:
    """End a failed operation: no task, the given changes, and a fault that says why.

    A record that is gone, or that another operation has taken over, is left as it is. One that somebody
    cancelled gets no fault. Spec: FND-11, FND-12, FND-18, FND-19, FND-39.
    """
    try:
        instances.update(tx.conn, run.subject, now=tx.now, task=owned, vm=vm, task_state=None, **changes)
    except (StaleState, InstanceNotFound):
        return
    blame(tx, run, failure)


def blame_debt(tx: Tx, run: Run[Any], step: str) -> bool:
    """Store why a step on a host is still to be done, if its host refused it. A host that was out of reach pays when it
    is back, and nobody needs to know. Returns whether it refused."""
    entry = run.entry(step)
    refused = entry is not None and entry.state is EntryState.OWED and entry.failure is not None
    if entry is None or entry.failure is None or not refused or entry.failure.kind == Unreachable.__name__:
        return False
    blame(tx, run, entry.failure)
    return True


def blame(tx: Tx, run: Run[Any], failure: Failure) -> None:
    """Store why an operation failed that leaves the record as it is. One that was cancelled gets no fault."""
    if not failure.cancelled:
        fault = Fault(code=failure.status, message=failure.message, details=failure.details, created_at=tx.now)
        instances.add_fault(tx.conn, run.subject, run.id, fault)
