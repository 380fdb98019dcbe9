"""Shelve a server that boots from a volume: switch it off and take it from its host at once. It needs no image, since
its volumes stay.

If it cannot be switched off, a guest that ran is started again. The offload takes over in the transaction that ends
this.
"""

from __future__ import annotations

import uuid

import msgspec

from kilonova.agent.steps.power import POWER_OFF, PoweredOff
from kilonova.agent.steps.shelve import START_AGAIN
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.instance import Instance
from kilonova.domain.notification import Phase
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described, describe
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import settle, take
from kilonova.operations.shelf import label
from kilonova.operations.shelve import look, not_shelved, power_off_args, start_again_args
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.snapshot import ALLOWED
from kilonova.operations.stop import grace_of

READS = NoUndo("changes nothing")


class ShelveOnVolumes(msgspec.Struct, frozen=True):
    """grace: seconds for a clean shutdown, 0 for none. interval: seconds between signals."""

    grace: float
    interval: float


def shelve_on_volumes(instance: Instance, options: OperationOptions) -> ShelveOnVolumes:
    """What such a server is shelved by."""
    return ShelveOnVolumes(grace=grace_of(instance, options), interval=options.shutdown_retry_interval)


def _begin(tx: Tx, run: Run[ShelveOnVolumes]) -> None:
    take(tx, run.subject, action="shelve", becomes=TaskState.SHELVING, needs_host=True, vm=ALLOWED)


def _shelved(tx: Tx, run: Run[ShelveOnVolumes]) -> None:
    """Spec: SHV-14, SHV-29."""
    before = instances.get(tx.conn, run.subject).system_metadata
    kept = label(before, now=tx.now, image_id="", host=run.output(Described).host)
    settle(tx, run, owned=(TaskState.SHELVING,), vm_state=VmState.SHELVED, task_state=None, system_metadata=kept,
           power_state=run.output(PoweredOff).power_state)
    submit.follow(
        tx, cell_journal, SHELVE_OFFLOAD, run.subject, OffloadServer(), run.record.asker,
        operation_id=str(uuid.uuid5(uuid.UUID(run.id), "offload")),
    )


SHELVE_VOLUMES = Operation(
    name="shelve-on-volumes",
    action="shelve",
    event="compute_shelve_instance",
    notices=announce("shelve", exists=Phase.START),
    request=ShelveOnVolumes,
    begins=_begin,
    steps=(
        Record("look", look, undo=READS),
        Here("describe guest", describe, undo=READS),
        OnHost("power off", lambda run: run.output(Described).host, POWER_OFF, power_off_args, undo=START_AGAIN,
               undo_args=start_again_args, timeout=900, undo_owed=True),
    ),
    ends=_shelved,
    fails=not_shelved,
)
