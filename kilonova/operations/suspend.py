"""Suspend and resume: the guest's memory goes to the disk of its host, and comes back.

What fails is taken back on the host. A guest that is then again what its record says keeps its state; any other
puts the server in ERROR, from which a hard reboot starts it anew.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import GuestArgs, GuestRef, Powered
from kilonova.agent.steps.suspend import LULL, ROUSE, SUSPEND, WAKE
from kilonova.db import instances
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, Host, describe, find_host
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, left_after, observe, settle, take

SUSPENDING, RESUMING = (TaskState.SUSPENDING,), (TaskState.RESUMING,)
READS = NoUndo("changes nothing")
FORMER_STATE = "old_vm_state"
"""What a server was before it was suspended, in its system metadata; written and read by these two alone. Spec:
SUS-08, SUS-11, SUS-16."""


class SuspendServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class ResumeServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


def _begin_suspend(tx: Tx, run: Run[SuspendServer]) -> None:
    take(tx, run.subject, action="suspend", becomes=TaskState.SUSPENDING, vm=(VmState.ACTIVE,))


def _begin_resume(tx: Tx, run: Run[ResumeServer]) -> None:
    take(tx, run.subject, action="resume", becomes=TaskState.RESUMING, vm=(VmState.SUSPENDED,))


def _look_before_suspend(tx: Tx, run: Run[msgspec.Struct]) -> Host:
    """The server must still be this operation's before its guest is touched. Spec: SUS-17."""
    settle(tx, run, owned=SUSPENDING)
    return find_host(tx, run)


def _look_before_resume(tx: Tx, run: Run[ResumeServer]) -> None:
    """Spec: SUS-17."""
    settle(tx, run, owned=RESUMING)


def _suspended(tx: Tx, run: Run[SuspendServer]) -> None:
    """Spec: SUS-08."""
    before = instances.get(tx.conn, run.subject)
    kept = {**before.system_metadata, FORMER_STATE: before.vm_state.value}
    settle(tx, run, owned=SUSPENDING, vm_state=VmState.SUSPENDED, task_state=None, system_metadata=kept,
           power_state=run.output(Powered).power_state)


def _resumed(tx: Tx, run: Run[ResumeServer]) -> None:
    """Spec: SUS-11."""
    kept = dict(instances.get(tx.conn, run.subject).system_metadata)
    former = VmState(kept.pop(FORMER_STATE, VmState.ACTIVE.value))
    settle(tx, run, owned=RESUMING, vm_state=former, task_state=None, system_metadata=kept,
           power_state=run.output(Powered).power_state, network_info=run.output(Described).guest.vifs)


def _not_suspended(tx: Tx, run: Run[SuspendServer], failure: Failure) -> None:
    """Spec: SUS-09, SUS-10, SUS-16."""
    _end_as_found(tx, run, failure, SUSPENDING, "suspend guest", PowerState.RUNNING)


def _not_resumed(tx: Tx, run: Run[ResumeServer], failure: Failure) -> None:
    """Spec: SUS-12 to SUS-14."""
    _end_as_found(tx, run, failure, RESUMING, "resume guest", PowerState.SUSPENDED)


def _end_as_found(
    tx: Tx, run: Run[SuspendServer] | Run[ResumeServer], failure: Failure, owned: tuple[TaskState], step: str,
    before: PowerState,
) -> None:
    """vm_state stays if the guest was not touched, or if it is as it was before."""
    left = left_after(run, step)
    if left is before or run.entry(step) is None:
        fail(tx, run, failure, owned=owned)
    else:
        fail(tx, run, failure, owned=owned, vm_state=VmState.ERROR)
    if left is not None:
        observe(tx, run, left)


SUSPEND_SERVER = Operation(
    name="suspend",
    action="suspend",
    event="compute_suspend_instance",
    notices=announce("suspend"),
    request=SuspendServer,
    begins=_begin_suspend,
    steps=(
        Record("find host", _look_before_suspend, undo=READS),
        OnHost("suspend guest", lambda run: run.output(Host).host, SUSPEND, lambda run: GuestRef(uuid=run.subject),
               undo=ROUSE, undo_owed=True, timeout=1800),
    ),
    ends=_suspended,
    fails=_not_suspended,
)

RESUME_SERVER = Operation(
    name="resume",
    action="resume",
    event="compute_resume_instance",
    notices=announce("resume"),
    request=ResumeServer,
    begins=_begin_resume,
    steps=(
        Here("describe guest", describe, undo=READS),
        Record("look again", _look_before_resume, undo=READS),
        OnHost("resume guest", lambda run: run.output(Described).host, WAKE,
               lambda run: GuestArgs(run.output(Described).guest), undo=LULL,
               undo_args=lambda run: GuestRef(uuid=run.subject), undo_owed=True, timeout=1800),
    ),
    ends=_resumed,
    fails=_not_resumed,
)
