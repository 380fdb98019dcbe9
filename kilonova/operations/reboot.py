"""Reboot. Soft asks the guest to shut down and starts it again; hard cuts the power and makes it anew.

A soft reboot becomes a hard one when the guest does not obey in time, is off already, or when the agent died
between shutdown and start; the journal of the step tells which it was. A hard reboot may take over from a soft
one that is still waiting for the guest, and from one that pauses, unpauses,
suspends or resumes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.power import HARD_REBOOT, LOOK, SOFT_REBOOT, GuestRef, Powered, RebootArgs, Rebooted
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, Host, describe, find_host
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER
from kilonova.operations.records import fail, observe, settle, take
from kilonova.operations.shares import LOOK_FOR_SHARES
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER

log = structlog.get_logger(__name__)

T, V = TaskState, VmState
SOFT = (T.REBOOTING, T.REBOOT_PENDING, T.REBOOT_STARTED)
HARD = (T.REBOOTING_HARD, T.REBOOT_PENDING_HARD, T.REBOOT_STARTED_HARD)
STANDS = NoUndo("a reboot that failed leaves the guest as it is; its state is recorded")


class RebootServer(msgspec.Struct, frozen=True):
    """wait: seconds until a guest that does not obey is rebooted hard. recovery: the host was restarted; a rescued
    server is started again, too."""

    wait: float = 0.0
    recovery: bool = False


def _begin_soft(tx: Tx, run: Run[RebootServer]) -> None:
    take(tx, run.subject, action="reboot", becomes=T.REBOOTING, vm=(V.ACTIVE,))


def _begin_hard(tx: Tx, run: Run[RebootServer]) -> None:
    rescued = (V.RESCUED,) if run.request.recovery else ()
    take(
        tx, run.subject, action="reboot", becomes=T.REBOOTING_HARD,
        vm=(V.ACTIVE, V.STOPPED, V.PAUSED, V.SUSPENDED, V.ERROR, *rescued),
        task=(None, *SOFT, T.REBOOTING_HARD, T.RESUMING, T.UNPAUSING, T.PAUSING, T.SUSPENDING),
    )


def _pending_soft(tx: Tx, run: Run[RebootServer]) -> None:
    """Spec: RBT-04, RBT-08."""
    settle(tx, run, owned=SOFT, task_state=T.REBOOT_PENDING, power_state=run.output(Powered).power_state)


def _pending_hard(tx: Tx, run: Run[RebootServer]) -> None:
    """Spec: RBT-05, RBT-08."""
    settle(tx, run, owned=HARD, task_state=T.REBOOT_PENDING_HARD, power_state=run.output(Powered).power_state)


def _started_soft(tx: Tx, run: Run[RebootServer]) -> None:
    """Spec: RBT-11."""
    settle(tx, run, owned=(T.REBOOT_PENDING,), task_state=T.REBOOT_STARTED)


def _started_hard(tx: Tx, run: Run[RebootServer]) -> None:
    settle(tx, run, owned=(T.REBOOT_PENDING_HARD,), task_state=T.REBOOT_STARTED_HARD)


def _judge(_tx: Tx, run: Run[RebootServer]) -> None:
    """A hypervisor that failed fails the operation, whatever state the guest is in. Spec: RBT-17."""
    rebooted = run.output(Rebooted)
    if rebooted.error:
        raise KilonovaError(rebooted.error)


def _settled(tx: Tx, run: Run[RebootServer]) -> VmState:
    """Where a reboot ends: a rescued server stays rescued. Spec: RBT-10."""
    return V.RESCUED if instances.get(tx.conn, run.subject).vm_state is V.RESCUED else V.ACTIVE


def _rebooted(tx: Tx, run: Run[RebootServer]) -> None:
    """launched_at is not touched; a record that is gone needs nothing. Spec: RBT-13, RBT-14, RBT-19."""
    started = T.REBOOT_STARTED_HARD if run.record.kind == HARD_REBOOT_OPERATION else T.REBOOT_STARTED
    try:
        settle(tx, run, owned=(started,), vm_state=_settled(tx, run), task_state=None,
               power_state=run.output(Rebooted).power_state, network_info=run.output(Described).guest.vifs)
    except InstanceNotFound:
        log.warning("server gone when its reboot ended", instance=run.subject)


def _failed(tx: Tx, run: Run[RebootServer], failure: Failure) -> None:
    """A guest that runs all the same is ACTIVE, one that is off after it was touched is in ERROR; one that was
    never touched keeps its state, unless it went down with its host. Spec: RBT-06, RBT-15 to RBT-18, INI-122,
    INI-172."""
    rebooted = run.find(Rebooted)
    changes: dict[str, Any] = {}
    if rebooted is not None:
        running = rebooted.power_state is PowerState.RUNNING
        changes = {"vm_state": _settled(tx, run) if running else V.ERROR, "power_state": rebooted.power_state}
    elif (run.request.recovery or run.entry("reboot guest") is not None) and not failure.cancelled:
        changes = {"vm_state": V.ERROR}
    fail(tx, run, failure, owned=HARD if run.record.kind == HARD_REBOOT_OPERATION else SOFT, **changes)
    if rebooted is not None:
        observe(tx, run, rebooted.power_state)


def stuck(conn: sa.Connection, options: OperationOptions, now: float) -> list[str]:
    """Servers whose soft reboot has gone on for too long, whatever else was written meanwhile; a hard one takes its
    place. A hard reboot has a limit of its own. Spec: PER-25, PER-26, PER-30."""
    if options.reboot_timeout <= 0:
        return []
    found = []
    for uuid in instances.with_tasks(conn, SOFT):
        holder = cell_journal.holder(conn, uuid)
        if holder is not None and holder[0].created_at < now - options.reboot_timeout:
            found.append(uuid)
    return found


HARD_REBOOT_OPERATION = "hard-reboot"

SOFT_REBOOT_SERVER = Operation(
    name="soft-reboot",
    action="reboot",
    event="compute_reboot_instance",
    notices=announce("reboot"),
    request=RebootServer,
    begins=_begin_soft,
    steps=(
        Record("find host", find_host, undo=STANDS),
        OnHost("look at guest", lambda run: run.output(Host).host, LOOK, lambda run: GuestRef(uuid=run.subject),
               undo=STANDS, recorded=_pending_soft),
        Here("describe guest", describe, undo=STANDS),
        *LOOK_FOR_SHARES,
        Record("started", _started_soft, undo=STANDS),
        OnHost("reboot guest", lambda run: run.output(Described).host, SOFT_REBOOT,
               lambda run: RebootArgs(guest=run.output(Described).guest, wait=run.request.wait), undo=STANDS,
               timeout=900),
        Record("judge", _judge, undo=STANDS),
    ),
    ends=_rebooted,
    fails=_failed,
)

HARD_REBOOT_SERVER = Operation(
    name=HARD_REBOOT_OPERATION,
    action="reboot",
    event="compute_reboot_instance",
    notices=announce("reboot"),
    request=RebootServer,
    preempts=(
        SOFT_REBOOT_SERVER.name, PAUSE_SERVER.name, UNPAUSE_SERVER.name, SUSPEND_SERVER.name, RESUME_SERVER.name,
    ),
    begins=_begin_hard,
    steps=(
        Record("find host", find_host, undo=STANDS),
        OnHost("look at guest", lambda run: run.output(Host).host, LOOK, lambda run: GuestRef(uuid=run.subject),
               undo=STANDS, recorded=_pending_hard),
        Here("describe guest", describe, undo=STANDS),
        *LOOK_FOR_SHARES,
        Record("started", _started_hard, undo=STANDS),
        OnHost("reboot guest", lambda run: run.output(Described).host, HARD_REBOOT,
               lambda run: RebootArgs(guest=run.output(Described).guest), undo=STANDS),
        Record("judge", _judge, undo=STANDS),
    ),
    ends=_rebooted,
    fails=_failed,
)
