"""Stop: shut the guest down, asking it first unless told otherwise."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import POWER_OFF, PoweredOff, PowerOffArgs
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import fail, observe, settle, take

V = VmState
OWNED = (TaskState.POWERING_OFF,)


class StopServer(msgspec.Struct, frozen=True, kw_only=True):
    """grace: seconds for a clean shutdown, 0 for none. interval: seconds between signals. forced: the server is to be
    stopped already, or paused, and its guest does not comply."""

    grace: float
    interval: float
    forced: bool = False


def grace_of(instance: Instance, options: OperationOptions) -> float:
    """Seconds that the guest may take: what its image asks for within the operator's cap, else the option.

    Spec: PWR-04, PWR-07.
    """
    wanted = instance.image.properties.get("os_shutdown_timeout", "") if instance.image is not None else ""
    if not wanted.isdecimal():
        return options.shutdown_timeout
    return min(float(wanted), options.shutdown_timeout_max)


def _begin(tx: Tx, run: Run[StopServer]) -> None:
    allowed = (V.ACTIVE, V.STOPPED, V.PAUSED) if run.request.forced else (V.ACTIVE, V.ERROR)
    take(tx, run.subject, action="stop", becomes=TaskState.POWERING_OFF, needs_host=True, vm=allowed)


def _stopped(tx: Tx, run: Run[StopServer]) -> None:
    """If there was nothing to switch off, the task may have been cleared meanwhile. Spec: PWR-08 to PWR-10."""
    off = run.output(PoweredOff)
    settle(tx, run, owned=(*OWNED, None) if off.was_off else OWNED, vm_state=V.STOPPED, task_state=None,
           power_state=off.power_state)


def _failed(tx: Tx, run: Run[StopServer], failure: Failure) -> None:
    """vm_state stays. Spec: PWR-11, PWR-14."""
    fail(tx, run, failure, owned=OWNED)
    off = run.find(PoweredOff)
    if off is not None:
        observe(tx, run, off.power_state)


STOP = Operation(
    name="stop",
    action="stop",
    event="compute_stop_instance",
    notices=announce("power_off"),
    request=StopServer,
    begins=_begin,
    steps=(
        Record("find host", find_host, undo=NoUndo("changes nothing")),
        OnHost("power off", lambda run: run.output(Host).host, POWER_OFF,
               lambda run: PowerOffArgs(uuid=run.subject, grace=run.request.grace, interval=run.request.interval),
               undo=NoUndo("a guest that went off stays off; its power state is observed"), timeout=900),
    ),
    ends=_stopped,
    fails=_failed,
)
