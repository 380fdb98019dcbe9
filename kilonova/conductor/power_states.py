"""Keeping records true to what guests are: a guest may change by itself, its record does not know it yet.

What a guest was seen to be is always stored. If it does not fit what the server is meant to be, and was seen so twice,
the server is stopped: a guest that shut down leaves a stopped server, and one that was started behind our back is
switched off. Nothing is ever deleted because of what a guest does.
"""

from __future__ import annotations

from uuid import uuid4

import structlog

from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError, StaleState
from kilonova.domain.operation import Asker
from kilonova.domain.states import GUEST_OFF, PowerState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.operations.stop import STOP, StopServer

log = structlog.get_logger(__name__)

REPORT_AGE = 10.0
"""Seconds that a host's report may be old when it is handled."""

_OFF = GUEST_OFF - {PowerState.NOSTATE}
UNFIT = {
    VmState.ACTIVE: {*_OFF, PowerState.SUSPENDED},
    VmState.STOPPED: frozenset(PowerState) - GUEST_OFF,
    VmState.PAUSED: _OFF,
}
"""What guests are not to be. Spec: LCE-08, PSY-18 to PSY-20, PSY-23, PSY-24."""
STRANGE = {
    VmState.ACTIVE: frozenset({PowerState.PAUSED, PowerState.NOSTATE}),
    VmState.SOFT_DELETED: frozenset(PowerState) - {PowerState.NOSTATE, PowerState.SHUTDOWN},
}
"""What is told, and no more: other tools may pause a guest for a moment, a hypervisor that restarts may not list it,
and what is deleted softly may be restored. Spec: PSY-21, PSY-22, PSY-25."""


def observe(tx: Tx, host: str, seen: dict[str, PowerState], *, whole: bool = False) -> bool:
    """Take note of guests of a host, in one transaction. Only servers at rest are looked at: one that has a task, is
    deleted, or is on another host, is not changed.

    Args:
        whole: all guests of the host are given, as one listing showed them; a server without one has no power state.
            Servers whose record changed after the host may have looked are left alone. Otherwise each guest was
            looked at a second time when it had told of a change.

    Returns:
        Whether none was left alone.

    Spec: PWR-14, INI-121, PSY-09 to PSY-18, PSY-26 to PSY-28, PSY-30 to PSY-33, LCE-08, LCE-09, LCE-15, LCE-20.
    """
    at_rest, complete = instances.power_states(tx.conn, host), True
    for uuid, (vm_state, stored, changed) in at_rest.items():
        settled = changed < tx.now - REPORT_AGE
        if whole and not settled:
            complete = False
            continue
        state = seen.get(uuid, PowerState.NOSTATE if whole else stored)
        if state is not stored:
            try:
                instances.update(tx.conn, uuid, now=tx.now, task=(None,), power_state=state)
            except (StaleState, InstanceNotFound):
                continue
            if state in STRANGE.get(vm_state, ()):
                _warn(uuid, vm_state, state)
        seen_twice = state is stored if whole else True
        if uuid in seen and settled and seen_twice and state in UNFIT.get(vm_state, ()):
            _stop(tx, uuid, vm_state, state)
    if not whole:
        for uuid in seen.keys() - at_rest.keys():
            log.debug("a guest changed whose server is not at rest here", instance=uuid, host=host)
    return complete


def _warn(uuid: str, vm_state: VmState, state: PowerState) -> None:
    log.warning("guest is not what it is to be", instance=uuid, vm_state=vm_state.value, power_state=state.name)


def _stop(tx: Tx, uuid: str, vm_state: VmState, state: PowerState) -> None:
    """Nobody asked: the service stops the server by itself, and its history tells it. If it cannot be asked for now,
    the next report tries again. Spec: PSY-27."""
    _warn(uuid, vm_state, state)
    try:
        instance = instances.get(tx.conn, uuid)
        asker = Asker(project_id=instance.project_id, request_id=f"req-{uuid4()}")
        request = StopServer(grace=0.0, interval=0.0, forced=True)
        submit.submit(tx, cell_journal, STOP, uuid, request, asker)
    except KilonovaError as error:
        log.warning("server not stopped", instance=uuid, error=str(error))
