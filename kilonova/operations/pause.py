"""Pause and unpause: the guest stands still in the memory of its host, and goes on.

What fails is taken back on the host, so that the guest is again what its record says.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.pause import HOLD, PAUSE, RELEASE
from kilonova.agent.steps.power import RESUME, GuestRef, Powered
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, left_after, observe, settle, take

PAUSING, UNPAUSING = (TaskState.PAUSING,), (TaskState.UNPAUSING,)
READS = NoUndo("changes nothing")


class PauseServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class UnpauseServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


def _begin_pause(tx: Tx, run: Run[PauseServer]) -> None:
    take(tx, run.subject, action="pause", becomes=TaskState.PAUSING, vm=(VmState.ACTIVE,))


def _begin_unpause(tx: Tx, run: Run[UnpauseServer]) -> None:
    take(tx, run.subject, action="unpause", becomes=TaskState.UNPAUSING, vm=(VmState.PAUSED,))


def _look_before_pause(tx: Tx, run: Run[msgspec.Struct]) -> Host:
    """The server must still be this operation's before its guest is touched. Spec: SUS-04."""
    settle(tx, run, owned=PAUSING)
    return find_host(tx, run)


def _look_before_unpause(tx: Tx, run: Run[msgspec.Struct]) -> Host:
    """Spec: SUS-04."""
    settle(tx, run, owned=UNPAUSING)
    return find_host(tx, run)


def _paused(tx: Tx, run: Run[PauseServer]) -> None:
    """Spec: SUS-01."""
    settle(tx, run, owned=PAUSING, vm_state=VmState.PAUSED, task_state=None,
           power_state=run.output(Powered).power_state)


def _unpaused(tx: Tx, run: Run[UnpauseServer]) -> None:
    """Spec: SUS-02."""
    settle(tx, run, owned=UNPAUSING, vm_state=VmState.ACTIVE, task_state=None,
           power_state=run.output(Powered).power_state)


def _not_paused(tx: Tx, run: Run[PauseServer], failure: Failure) -> None:
    """vm_state stays. Spec: SUS-03, SUS-04."""
    fail(tx, run, failure, owned=PAUSING)
    _observe_guest(tx, run, "pause guest")


def _not_unpaused(tx: Tx, run: Run[UnpauseServer], failure: Failure) -> None:
    """vm_state stays. Spec: SUS-03, SUS-04."""
    fail(tx, run, failure, owned=UNPAUSING)
    _observe_guest(tx, run, "unpause guest")


def _observe_guest(tx: Tx, run: Run[PauseServer] | Run[UnpauseServer], step: str) -> None:
    state = left_after(run, step)
    if state is not None:
        observe(tx, run, state)


PAUSE_SERVER = Operation(
    name="pause",
    action="pause",
    event="compute_pause_instance",
    notices=announce("pause"),
    request=PauseServer,
    begins=_begin_pause,
    steps=(
        Record("find host", _look_before_pause, undo=READS),
        OnHost("pause guest", lambda run: run.output(Host).host, PAUSE, lambda run: GuestRef(uuid=run.subject),
               undo=RELEASE, undo_owed=True),
    ),
    ends=_paused,
    fails=_not_paused,
)

UNPAUSE_SERVER = Operation(
    name="unpause",
    action="unpause",
    event="compute_unpause_instance",
    notices=announce("unpause"),
    request=UnpauseServer,
    begins=_begin_unpause,
    steps=(
        Record("find host", _look_before_unpause, undo=READS),
        OnHost("unpause guest", lambda run: run.output(Host).host, RESUME, lambda run: GuestRef(uuid=run.subject),
               undo=HOLD, undo_owed=True),
    ),
    ends=_unpaused,
    fails=_not_unpaused,
)
