"""Trigger a crash dump: the guest gets a non-maskable interrupt. What that does is the guest's own affair, so that no
state is changed."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.injections import INJECT_NMI
from kilonova.agent.steps.power import GuestRef
from kilonova.domain.operation import Failure
from kilonova.domain.states import VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check

V = VmState
STATES = (V.ACTIVE, V.PAUSED, V.RESCUED, V.RESIZED, V.ERROR)


class TriggerCrashDump(msgspec.Struct, frozen=True):
    """Nothing to choose."""


def _begin(tx: Tx, run: Run[TriggerCrashDump]) -> None:
    """Refused while a task is in progress. Spec: PWR-29, API-140."""
    check(tx, run.subject, action="trigger_crash_dump", vm=STATES, needs_host=True)


def _triggered(_tx: Tx, _run: Run[TriggerCrashDump]) -> None:
    """Spec: PWR-26."""


def _failed(tx: Tx, run: Run[TriggerCrashDump], failure: Failure) -> None:
    """Spec: PWR-27, PWR-28."""
    blame(tx, run, failure)


TRIGGER_CRASH_DUMP = Operation(
    name="trigger-crash-dump",
    action="trigger_crash_dump",
    event="compute_trigger_crash_dump",
    notices=announce("trigger_crash_dump"),
    request=TriggerCrashDump,
    begins=_begin,
    steps=(
        Record("find host", find_host, undo=NoUndo("changes nothing")),
        OnHost("inject interrupt", lambda run: run.output(Host).host, INJECT_NMI,
               lambda run: GuestRef(uuid=run.subject), undo=NoUndo("what a guest was told it knows"), timeout=60),
    ),
    ends=_triggered,
    fails=_failed,
    waited_for=True,
)
