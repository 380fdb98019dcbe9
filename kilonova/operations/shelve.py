"""Shelve: switch a server off and keep an image of its disk. Unshelve starts it again and drops the image.

If it cannot be shelved, a guest that ran is started again and the image goes. A shelved server stays on its host for
the time that the option `shelved_offload_time` tells; if that is none, the offload takes over in the transaction that
ends the shelving.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, Powered, PoweredOff, PowerOffArgs
from kilonova.agent.steps.shelve import START_AGAIN, StartAgainArgs
from kilonova.agent.steps.snapshot import DISCARD, TAKE, UPLOAD
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.context import RequestContext
from kilonova.domain.instance import Instance
from kilonova.domain.notification import Phase
from kilonova.domain.operation import Failure
from kilonova.domain.states import GUEST_OFF, PowerState, TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.debt import FOREVER
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, describe
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import fail, give_back, left_after, observe, settle, take
from kilonova.operations.server_images import (
    CREATE_IMAGE,
    create_image,
    delete_image,
    describe_image,
    find_image,
)
from kilonova.operations.shelf import IMAGE_KEY, Shelved, drop_image, label, without_label
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.snapshot import ALLOWED, SnapshotServer, snapshot_args
from kilonova.operations.stop import grace_of

T, V = TaskState, VmState
READS = NoUndo("changes nothing")
TASKS = (T.SHELVING, T.SHELVING_IMAGE_PENDING_UPLOAD, T.SHELVING_IMAGE_UPLOADING)
UNSHELVING = (T.UNSHELVING,)
SHELVED_NAME = 240
"""Letters of a server's name that the name of its shelved image has."""


class ShelveServer(SnapshotServer, frozen=True, kw_only=True):
    """grace: seconds for a clean shutdown, 0 for none. interval: seconds between signals. offload: take the server
    from its host at once."""

    grace: float
    interval: float
    offload: bool = False


def shelve_request(context: RequestContext, instance: Instance, options: OperationOptions) -> ShelveServer:
    """What a server is shelved by; the image belongs to its project. Raises InvalidInput: it has no disk of its own."""
    image = describe_image(
        context, instance, options, image_id=str(uuid.uuid4()), name=f"{instance.display_name[:SHELVED_NAME]}-shelved",
        kind="snapshot", metadata={}, owner=instance.project_id,
    )
    return ShelveServer(
        image=image, grace=grace_of(instance, options), interval=options.shutdown_retry_interval,
        offload=options.shelved_offload_time == 0,
    )


class UnshelveServer(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class Before(msgspec.Struct, frozen=True):
    """What the server was."""

    vm_state: VmState
    power_state: PowerState


def _begin(tx: Tx, run: Run[ShelveServer]) -> None:
    take(tx, run.subject, action="shelve", becomes=T.SHELVING, needs_host=True, vm=ALLOWED)


def look(tx: Tx, run: Run[Any]) -> Before:
    """A step: what the server is."""
    instance = settle(tx, run, owned=(T.SHELVING,))
    return Before(instance.vm_state, instance.power_state)


def power_off_args(run: Run[Any]) -> PowerOffArgs:
    """A guest that is paused cannot obey. Spec: SHV-06."""
    paused = run.output(Before).power_state is PowerState.PAUSED
    return PowerOffArgs(
        uuid=run.subject, grace=0.0 if paused else run.request.grace, interval=run.request.interval
    )


def start_again_args(run: Run[Any]) -> StartAgainArgs:
    """How a server that is not shelved after all runs again."""
    return StartAgainArgs(guest=run.output(Described).guest, ran=run.output(Before).vm_state is V.ACTIVE)


def _taken(tx: Tx, run: Run[ShelveServer]) -> None:
    """Spec: SHV-07."""
    settle(tx, run, owned=(T.SHELVING,), task_state=T.SHELVING_IMAGE_PENDING_UPLOAD)


def _uploading(tx: Tx, run: Run[ShelveServer]) -> None:
    settle(tx, run, owned=(T.SHELVING_IMAGE_PENDING_UPLOAD,), task_state=T.SHELVING_IMAGE_UPLOADING)


def _shelved(tx: Tx, run: Run[ShelveServer]) -> None:
    """Spec: SHV-01, SHV-02, SHV-04, SHV-05, SHV-08."""
    before = instances.get(tx.conn, run.subject).system_metadata
    kept = label(before, now=tx.now, image_id=run.request.image.id, host=run.output(Described).host)
    settle(tx, run, owned=(T.SHELVING_IMAGE_UPLOADING,), vm_state=V.SHELVED, task_state=None,
           system_metadata=kept, power_state=run.output(PoweredOff).power_state)
    if run.request.offload:
        submit.follow(
            tx, cell_journal, SHELVE_OFFLOAD, run.subject, OffloadServer(), run.record.asker,
            operation_id=str(uuid.uuid5(uuid.UUID(run.id), "offload")),
        )


def not_shelved(tx: Tx, run: Run[Any], failure: Failure) -> None:
    """vm_state stays, unless the guest is off and could not be brought back, or nobody can say what it is because its
    host does not answer. Spec: SHV-09 to SHV-11, SHV-15."""
    left, before = left_after(run, "power off"), run.find(Before)
    changes: dict[str, Any] = {} if left is None else {"power_state": left}
    if left in GUEST_OFF:
        changes["vm_state"] = V.STOPPED
    elif left is None and run.entry("power off") is not None and before and before.vm_state is not V.STOPPED:
        changes["vm_state"] = V.ERROR
    fail(tx, run, failure, owned=TASKS, **changes)


SHELVE = Operation(
    name="shelve",
    action="shelve",
    event="compute_shelve_instance",
    notices=announce("shelve", exists=Phase.START),
    request=ShelveServer,
    begins=_begin,
    steps=(
        Here(CREATE_IMAGE, create_image, undo=delete_image, undo_owed=True),
        Record("look", look, undo=READS),
        Here("describe guest", describe, undo=READS),
        OnHost("power off", lambda run: run.output(Described).host, POWER_OFF, power_off_args, undo=START_AGAIN,
               undo_args=start_again_args, timeout=900, undo_owed=True),
        OnHost("take snapshot", lambda run: run.output(Described).host, TAKE, snapshot_args, undo=DISCARD,
               recorded=_taken, timeout=FOREVER, undo_owed=True),
        Here("find image", find_image, undo=READS, recorded=_uploading),
        OnHost("upload", lambda run: run.output(Described).host, UPLOAD, snapshot_args,
               undo=NoUndo("the image goes as a whole"), timeout=FOREVER),
    ),
    ends=_shelved,
    fails=not_shelved,
)


def _begin_unshelve(tx: Tx, run: Run[UnshelveServer]) -> None:
    take(tx, run.subject, action="unshelve", becomes=T.UNSHELVING, needs_host=True, vm=(V.SHELVED,))


def _look_at_shelf(tx: Tx, run: Run[UnshelveServer]) -> Shelved:
    return Shelved(settle(tx, run, owned=UNSHELVING).system_metadata.get(IMAGE_KEY, ""))


def _runs_again(tx: Tx, run: Run[UnshelveServer]) -> None:
    """The server needs the image no more, and says so before it goes. Spec: PWR-20, PWR-25."""
    before = instances.get(tx.conn, run.subject).system_metadata
    settle(tx, run, owned=UNSHELVING, vm_state=V.ACTIVE, power_state=run.output(Powered).power_state,
           network_info=run.output(Described).guest.vifs,
           system_metadata=without_label(before))


def _unshelved(tx: Tx, run: Run[UnshelveServer]) -> None:
    give_back(tx, run, owned=UNSHELVING, task_state=None)


def _not_unshelved(tx: Tx, run: Run[UnshelveServer], failure: Failure) -> None:
    """It stays on its shelf. Spec: PWR-22."""
    fail(tx, run, failure, owned=UNSHELVING)
    off = run.entry("power on", undo=True)
    if off is not None:
        left = left_after(run, "power on")
        if left is not None:
            observe(tx, run, left)


UNSHELVE = Operation(
    name="unshelve",
    action="unshelve",
    event="compute_unshelve_instance",
    notices=announce("unshelve"),
    request=UnshelveServer,
    begins=_begin_unshelve,
    no_return="drop image",
    steps=(
        Record("look", _look_at_shelf, undo=READS),
        Here("describe guest", describe, undo=READS),
        OnHost("power on", lambda run: run.output(Described).host, POWER_ON,
               lambda run: GuestArgs(run.output(Described).guest), recorded=_runs_again,
               undo=POWER_OFF, undo_args=lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0),
               undo_owed=True),
        Here("drop image", drop_image, undo=NoUndo("the server runs from its disk"), owed=True),
    ),
    ends=_unshelved,
    fails=_not_unshelved,
)
