"""Rescue: let a server run from a rescue disk, with its own disks beside it.

The rescue disk is made while the guest still runs, so that an image that is no good costs nothing. If the guest cannot
be started from it, everything is put back, and a guest that ran is started again from its own disk.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, GuestRef, Powered, PoweredOff, PowerOffArgs
from kilonova.agent.steps.rescue import DROP_RESCUE, PREPARE_RESCUE, PUT_BACK, PutBackArgs
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotRescuable
from kilonova.domain.image import Image
from kilonova.domain.instance import Rescue
from kilonova.domain.notification import Phase
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.environment import Environment
from kilonova.operations.guests import describe
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, left_after, settle, take
from kilonova.operations.stop import grace_of

V = VmState
RESCUABLE = (V.ACTIVE, V.STOPPED, V.ERROR)
"""vm_states in which a server may be rescued."""
OWNED = (TaskState.RESCUING,)


class RescueServer(msgspec.Struct, frozen=True, kw_only=True):
    """image: what the rescue disk is made from. admin_password: for the rescue system."""

    image: Image
    admin_password: str = ""


class Before(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it is without a rescue, where it is, and what the server was.

    Args:
        grace: seconds for a clean shutdown. interval: seconds between signals.
    """

    guest: Guest
    host: str
    vm_state: VmState
    grace: float
    interval: float


def _begin(tx: Tx, run: Run[RescueServer]) -> None:
    """Spec: RSC-01, RSC-03, API-121."""
    take(tx, run.subject, action="rescue", becomes=TaskState.RESCUING, vm=RESCUABLE, needs_host=True)


async def _describe(env: Environment, run: Run[RescueServer]) -> Before:
    """Spec: RSC-05, RSC-08, RSC-10."""
    described = await describe(env, run)
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    return Before(
        guest=described.guest, host=described.host, vm_state=instance.vm_state, grace=grace_of(instance, env.options),
        interval=env.options.shutdown_retry_interval,
    )


def _host(run: Run[RescueServer]) -> str:
    return run.output(Before).host


def _guest(run: Run[RescueServer]) -> GuestArgs:
    """The guest in rescue, with the password that no result of a step may hold. Spec: RSC-04, RSC-11."""
    guest, request = run.output(Before).guest, run.request
    metadata = msgspec.structs.replace(guest.metadata, admin_password=request.admin_password)
    return GuestArgs(msgspec.structs.replace(guest, metadata=metadata, rescue=request.image))


def _ref(run: Run[RescueServer]) -> GuestRef:
    return GuestRef(uuid=run.subject)


def _power_off(run: Run[RescueServer]) -> PowerOffArgs:
    before = run.output(Before)
    return PowerOffArgs(uuid=run.subject, grace=before.grace, interval=before.interval)


def _as_it_was(run: Run[RescueServer]) -> PutBackArgs:
    """Spec: RSC-17."""
    before, off = run.output(Before), run.find(PoweredOff)
    ran = not off.was_off if off is not None else before.vm_state is V.ACTIVE
    return PutBackArgs(guest=before.guest, cut=run.entry("start rescue guest") is not None, run=ran)


def _rescued(tx: Tx, run: Run[RescueServer]) -> None:
    """launched_at is left alone. Spec: RSC-13, RSC-14."""
    before = run.output(Before)
    rescue = Rescue(image=run.request.image, since=tx.now, vm_state=before.vm_state)
    settle(tx, run, owned=OWNED, vm_state=V.RESCUED, task_state=None, power_state=run.output(Powered).power_state,
           network_info=before.guest.vifs, rescue=rescue)


def _failed(tx: Tx, run: Run[RescueServer], failure: Failure) -> None:
    """What was put back is as it was; a guest that could not be leaves the server in ERROR. Spec: RSC-15 to RSC-17."""
    changes: dict[str, Any] = {}
    put_back = run.entry("power off", undo=True)
    if put_back is not None:
        left = left_after(run, "power off")
        ran = _as_it_was(run).run
        if left is not None:
            changes["power_state"] = left
        if put_back.state is not EntryState.DONE or (ran and left is not PowerState.RUNNING):
            changes["vm_state"] = V.ERROR
    if not failure.cancelled and run.find(Before) is not None:
        message = InstanceNotRescuable(run.subject, failure.message).message
        failure = msgspec.structs.replace(failure, kind=InstanceNotRescuable.__name__, message=message)
    fail(tx, run, failure, owned=OWNED, **changes)


RESCUE = Operation(
    name="rescue",
    action="rescue",
    event="compute_rescue_instance",
    notices=announce(
        "rescue", payload="InstanceActionRescuePayload", version="1.3", exists=Phase.END,
        fields=lambda run, _instance: {"rescue_image_ref": run.request.image.id},
        usage=lambda run, _instance: {"rescue_image_name": run.request.image.name},
    ),
    request=RescueServer,
    begins=_begin,
    steps=(
        Here("describe guest", _describe, undo=NoUndo("changes nothing")),
        OnHost("prepare rescue disk", _host, PREPARE_RESCUE, _guest, undo=DROP_RESCUE, undo_args=_ref, timeout=1800,
               undo_owed=True),
        OnHost("power off", _host, POWER_OFF, _power_off, undo=PUT_BACK, undo_args=_as_it_was, timeout=900,
               undo_owed=True),
        OnHost("start rescue guest", _host, POWER_ON, _guest,
               undo=NoUndo("the undo of `power off` puts the guest back")),
    ),
    ends=_rescued,
    fails=_failed,
    scrub=lambda request: msgspec.structs.replace(request, admin_password=""),
)
