"""Start: power a stopped server on, with its network information read anew."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import POWER_ON, GuestArgs, Powered
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, describe
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, observe, settle, take
from kilonova.operations.shares import LOOK_FOR_SHARES

OWNED = (TaskState.POWERING_ON,)


class StartServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


def _begin(tx: Tx, run: Run[StartServer]) -> None:
    take(tx, run.subject, action="start", becomes=TaskState.POWERING_ON, needs_host=True, vm=(VmState.STOPPED,))


def _started(tx: Tx, run: Run[StartServer]) -> None:
    """Spec: PWR-19."""
    settle(tx, run, owned=OWNED, vm_state=VmState.ACTIVE, task_state=None,
           power_state=run.output(Powered).power_state, network_info=run.output(Described).guest.vifs)


def _failed(tx: Tx, run: Run[StartServer], failure: Failure) -> None:
    """vm_state stays. Spec: PWR-22."""
    fail(tx, run, failure, owned=OWNED)
    powered = run.find(Powered)
    if powered is not None:
        observe(tx, run, powered.power_state)


START = Operation(
    name="start",
    action="start",
    event="compute_start_instance",
    notices=announce("power_on"),
    request=StartServer,
    begins=_begin,
    steps=(
        Here("describe guest", describe, undo=NoUndo("changes nothing")),
        *LOOK_FOR_SHARES,
        OnHost("power on", lambda run: run.output(Described).host, POWER_ON,
               lambda run: GuestArgs(run.output(Described).guest),
               undo=NoUndo("a guest that came up stays up; its power state is observed")),
    ),
    ends=_started,
    fails=_failed,
)
