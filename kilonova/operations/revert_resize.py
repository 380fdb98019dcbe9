"""Revert a resize: the server gets its old flavor, claim and disks back, and runs again if it ran before.

Once the guest is off it goes forward only. Record and claims change together before the disks do, so that whatever
fails after that leaves a server that is of its old flavor and can be rebooted hard.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, Powered, PoweredOff, PowerOffArgs
from kilonova.agent.steps.resize import REVERT_DISKS, RevertDisksArgs
from kilonova.db import instances, migration_records
from kilonova.domain.flavor import Flavor
from kilonova.domain.migration import MigrationStatus
from kilonova.domain.notification import Phase
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.environment import Environment
from kilonova.operations.guests import describe_with
from kilonova.operations.moves import DECIDABLE, DELETES, close, conclude, undecided
from kilonova.operations.notices import announce
from kilonova.operations.port_resources import needs_of, tell_ports
from kilonova.operations.records import fail, give_back, take
from kilonova.operations.volumes import refresh_connections

M = MigrationStatus
OWNED = (TaskState.RESIZE_REVERTING,)
FORWARD = NoUndo("a revert goes forward only")


class RevertResize(msgspec.Struct, frozen=True):
    """Nothing to choose."""


class GoingBack(msgspec.Struct, frozen=True, kw_only=True):
    """What the server goes back to.

    Args:
        here: the host it is on; host, node: those it comes from. running: whether its guest ran there.
    """

    migration: str
    here: str
    host: str
    node: str | None
    flavor: Flavor
    running: bool


class Former(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it was before the resize."""

    guest: Guest


def _begin(tx: Tx, run: Run[RevertResize]) -> None:
    """Spec: RSZ-04, RSZ-38."""
    take(tx, run.subject, action="revertResize", becomes=TaskState.RESIZE_REVERTING, vm=(VmState.RESIZED,))
    migration = undecided(tx, run.subject)
    migration_records.change(tx.conn, migration.uuid, now=tx.now, was=DECIDABLE, status=M.REVERTING)


def _look(tx: Tx, run: Run[RevertResize]) -> GoingBack:
    """Everything is told by the migration record, which outlives a failed try. Spec: RSZ-26, RSZ-27, RSZ-53, RSZ-64."""
    (migration,) = migration_records.of_server(tx.conn, run.subject, (M.REVERTING,))
    assert migration.source_compute is not None
    return GoingBack(
        migration=migration.uuid, here=migration.dest_compute or migration.source_compute,
        host=migration.source_compute, node=migration.source_node, flavor=migration.old_flavor,
        running=migration.old_vm_state is not VmState.STOPPED,
    )


async def _describe(env: Environment, run: Run[RevertResize]) -> Former:
    back = run.output(GoingBack)
    await refresh_connections(env, run.subject)
    return Former(guest=await describe_with(env, run.subject, back.flavor, back.host, holder=back.migration))


async def _return_claim(env: Environment, run: Run[RevertResize]) -> None:
    """Spec: RSZ-28, RSZ-29, RSZ-55, RSZ-56."""
    back = run.output(GoingBack)
    await env.placement.take_back(run.subject, back.migration, back.flavor)
    await tell_ports(env, run.subject, await needs_of(env, run.subject))


def _returned(tx: Tx, run: Run[RevertResize]) -> None:
    """Whoever has taken the server over meanwhile: what it has now is its old flavor. Spec: RSZ-26, RSZ-54."""
    back = run.output(GoingBack)
    give_back(tx, run, owned=instances.ANY, flavor=back.flavor, host=back.host, node=back.node)


def _reverted(tx: Tx, run: Run[RevertResize]) -> None:
    """One guarded save for the server, with the migration in the same transaction. Spec: RSZ-46, RSZ-59, RSZ-60,
    RSZ-62, RSZ-65."""
    close(tx, run.subject, (M.REVERTING,), M.REVERTED)
    powered = run.find(Powered)
    state = VmState.ACTIVE if powered is not None else VmState.STOPPED
    power = powered.power_state if powered is not None else run.output(PoweredOff).power_state
    conclude(tx, run, owned=OWNED, vm_state=state, power_state=power, launched_at=tx.now,
             network_info=run.output(Former).guest.vifs)


def _failed(tx: Tx, run: Run[RevertResize], failure: Failure) -> None:
    """Before anything was given up the server is as it was and can be asked again; after that it is in error, with its
    old flavor. Spec: RSZ-49, RSZ-50, RSZ-64, RSZ-66."""
    begun = run.entry("return claim") is not None
    close(tx, run.subject, (M.REVERTING,), M.ERROR if begun else M.FINISHED)
    if begun:
        fail(tx, run, failure, owned=OWNED, vm_state=VmState.ERROR)
        give_back(tx, run, owned=DELETES, vm_state=VmState.ERROR)
    else:
        fail(tx, run, failure, owned=OWNED)


REVERT_RESIZE = Operation(
    name="revert-resize",
    action="revertResize",
    event="compute_revert_resize",
    notices=announce("resize_revert", older="resize.revert", exists=Phase.START),
    request=RevertResize,
    begins=_begin,
    no_return="power off",
    steps=(
        Record("look", _look, undo=NoUndo("changes nothing")),
        Here("describe guest", _describe, undo=NoUndo("changes nothing")),
        OnHost("power off", lambda run: run.output(GoingBack).here, POWER_OFF,
               lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0), undo=FORWARD),
        Here("return claim", _return_claim, undo=FORWARD, recorded=_returned, persistent=True),
        OnHost("revert disks", lambda run: run.output(GoingBack).host, REVERT_DISKS,
               lambda run: RevertDisksArgs(guest=run.output(Former).guest, keep=run.output(GoingBack).migration),
               undo=FORWARD),
        OnHost("start guest", lambda run: run.output(GoingBack).host if run.output(GoingBack).running else None,
               POWER_ON, lambda run: GuestArgs(run.output(Former).guest), undo=FORWARD),
    ),
    ends=_reverted,
    fails=_failed,
)
