"""Restore: bring a soft-deleted server back as it was; one that ran is powered on."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, Powered, PowerOffArgs
from kilonova.db import instances
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, describe
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, observe, settle, take

V = VmState
OWNED = (TaskState.RESTORING,)
STAYS_OFF = (V.STOPPED, V.SHELVED, V.SHELVED_OFFLOADED)
"""What was off before the delete is off after the restore. Spec: DEL-82."""


class RestoreServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class Restored(msgspec.Struct, frozen=True):
    """What the server becomes."""

    vm_state: VmState


def _begin(tx: Tx, run: Run[RestoreServer]) -> None:
    """Spec: DEL-80, API-136."""
    take(tx, run.subject, action="restore", becomes=TaskState.RESTORING, vm=(V.SOFT_DELETED,))


def _find(tx: Tx, run: Run[RestoreServer]) -> Restored:
    """Memory is gone with the power: what was paused or suspended runs anew."""
    deletion = instances.get(tx.conn, run.subject).soft_deletion
    before = deletion.vm_state if deletion is not None else V.ACTIVE
    return Restored(before if before in (*STAYS_OFF, V.RESIZED) else V.ACTIVE)


def _stays_off(run: Run[RestoreServer]) -> bool:
    """Nothing to power on, nothing to describe."""
    return run.output(Restored).vm_state in STAYS_OFF


def _host(run: Run[RestoreServer]) -> str | None:
    described = run.find(Described)
    return described.host if described is not None else None


def _restored(tx: Tx, run: Run[RestoreServer]) -> None:
    """Spec: DEL-77."""
    changes: dict[str, Any] = {}
    if (described := run.find(Described)) is not None:
        changes = {"network_info": described.guest.vifs, "power_state": run.output(Powered).power_state}
    settle(tx, run, owned=OWNED, vm_state=run.output(Restored).vm_state, task_state=None, soft_deletion=None,
           **changes)


def _off_again(tx: Tx, run: Run[RestoreServer]) -> None:
    """What is not restored does not run: nobody would notice."""
    observe(tx, run, PowerState.SHUTDOWN)


def _failed(tx: Tx, run: Run[RestoreServer], failure: Failure) -> None:
    """vm_state stays SOFT_DELETED. Spec: DEL-79."""
    fail(tx, run, failure, owned=OWNED)


RESTORE = Operation(
    name="restore",
    action="restore",
    event="compute_restore_instance",
    notices=announce("restore"),
    request=RestoreServer,
    begins=_begin,
    steps=(
        Record("find", _find, undo=NoUndo("changes nothing")),
        Here("describe guest", describe, undo=NoUndo("changes nothing"), given=_stays_off),
        OnHost("power on", _host, POWER_ON, lambda run: GuestArgs(run.output(Described).guest),
               undo=POWER_OFF, undo_args=lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0),
               undone=_off_again, undo_owed=True),
    ),
    ends=_restored,
    fails=_failed,
)
