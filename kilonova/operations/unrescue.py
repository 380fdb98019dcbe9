"""Unrescue: let a server run from its own disk again. It becomes what it was before it was rescued.

Whatever fails after the rescue was ended, the rescue disk goes: the guest's own disk is what is started next. A host
that cannot remove it owes that.
Users ask for it, and the service does by itself when a server has been rescued for too long.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, GuestRef, Powered, PoweredOff, PowerOffArgs
from kilonova.agent.steps.rescue import DROP_RESCUE
from kilonova.db import instances
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.environment import Environment
from kilonova.operations.guests import describe
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import blame_debt, fail, settle, take

log = structlog.get_logger(__name__)

V = VmState
OWNED = (TaskState.UNRESCUING,)
DROP = "drop rescue disk"


class UnrescueServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """The guest on its own disk, where it is, and what the server is to be."""

    guest: Guest
    host: str
    vm_state: VmState


def _begin(tx: Tx, run: Run[UnrescueServer]) -> None:
    """Spec: RSC-03, API-122."""
    take(tx, run.subject, action="unrescue", becomes=TaskState.UNRESCUING, vm=(V.RESCUED,), needs_host=True)


async def _describe(env: Environment, run: Run[UnrescueServer]) -> Own:
    """A server that was in ERROR is started, too. Spec: RSC-19, RSC-24."""
    described = await describe(env, run)
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    stopped = instance.rescue is not None and instance.rescue.vm_state is V.STOPPED
    return Own(
        guest=msgspec.structs.replace(described.guest, rescue=None), host=described.host,
        vm_state=V.STOPPED if stopped else V.ACTIVE,
    )


def _host(run: Run[UnrescueServer]) -> str:
    return run.output(Own).host


def _ref(run: Run[UnrescueServer]) -> GuestRef:
    return GuestRef(uuid=run.subject)


def _starts_on(run: Run[UnrescueServer]) -> str | None:
    own = run.output(Own)
    return own.host if own.vm_state is V.ACTIVE else None


def _becomes(run: Run[UnrescueServer]) -> dict[str, Any]:
    """What the record says of a server that is back on its own disk."""
    own = run.output(Own)
    left = run.find(Powered) or run.output(PoweredOff)
    return {"vm_state": own.vm_state, "power_state": left.power_state, "network_info": own.guest.vifs, "rescue": None}


def _unrescued(tx: Tx, run: Run[UnrescueServer]) -> None:
    """launched_at is not changed. Spec: RSC-21, RSC-24."""
    blame_debt(tx, run, DROP)
    settle(tx, run, owned=OWNED, task_state=None, **_becomes(run))


def _failed(tx: Tx, run: Run[UnrescueServer], failure: Failure) -> None:
    """A guest that was not touched stays rescued, and one that is back stays back. A hard reboot starts any other from
    its own disk. Spec: RSC-22, RSC-23."""
    changes: dict[str, Any] = {}
    if run.entry(DROP) is not None:
        changes = _becomes(run)
    elif run.entry("power off") is not None:
        off = run.find(PoweredOff)
        changes = {"vm_state": V.ERROR, "rescue": None} | ({"power_state": off.power_state} if off else {})
    fail(tx, run, failure, owned=OWNED, **changes)


def overdue(conn: sa.Connection, options: OperationOptions, now: float) -> list[str]:
    """Servers at rest that have been rescued for too long. Spec: PER-31 to PER-34."""
    if options.rescue_timeout <= 0:
        return []
    found = []
    for instance in instances.rescued(conn):
        if instance.rescue is None:
            log.warning("nobody knows since when a server is rescued", instance=instance.uuid)
        elif instance.rescue.since < now - options.rescue_timeout:
            found.append(instance.uuid)
    return found


UNRESCUE = Operation(
    name="unrescue",
    action="unrescue",
    event="compute_unrescue_instance",
    notices=announce("unrescue"),
    request=UnrescueServer,
    begins=_begin,
    steps=(
        Here("describe guest", _describe, undo=NoUndo("changes nothing")),
        OnHost("power off", _host, POWER_OFF, lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0),
               undo=DROP_RESCUE, undo_args=_ref, undo_owed=True),
        OnHost("start guest", _starts_on, POWER_ON, lambda run: GuestArgs(run.output(Own).guest),
               undo=NoUndo("a guest that came up stays up; its power state is observed")),
        OnHost(DROP, _host, DROP_RESCUE, _ref, undo=NoUndo("nothing of it is kept"), owed=True, owed_anyway=True),
    ),
    ends=_unrescued,
    fails=_failed,
)
