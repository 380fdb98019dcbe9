"""Resize: give a server another flavor, and keep what it had until its user confirms or reverts.

The new flavor is claimed beside the old one, whose claim goes to the migration. The guest is shut down, its disks are
made anew beside the old ones, and it is started with its new shape. Whatever fails on the way is taken back: the
server has its old flavor, claim, disks and power again. The server stays on its host.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import POWER_OFF, POWER_ON, GuestArgs, Powered, PoweredOff, PowerOffArgs
from kilonova.agent.steps.resize import (
    BRING_BACK,
    RESIZE_DISKS,
    BringBackArgs,
    BroughtBack,
    ResizeDisksArgs,
)
from kilonova.db import instances, migration_records
from kilonova.domain.errors import InstanceNotReady, NoValidHost
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
from kilonova.domain.migration import ON_THE_WAY, Migration, MigrationStatus, MigrationType
from kilonova.domain.notification import Phase
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.notifications import payloads
from kilonova.notifications.payloads import Payload
from kilonova.operations.environment import Environment
from kilonova.operations.guests import describe_with
from kilonova.operations.moves import migration_of, progress
from kilonova.operations.notices import ONLY_FAILURES, announce_part
from kilonova.operations.port_resources import needs_of, tell_ports
from kilonova.operations.records import fail, settle, take
from kilonova.operations.stop import grace_of
from kilonova.operations.volumes import refresh_connections
from kilonova.services.placement import Target

T, V, M = TaskState, VmState, MigrationStatus
WITH_THE_GUEST = NoUndo("guest and disks are brought back together, when the power-off is undone")
OWNED = (T.RESIZE_PREP, T.RESIZE_MIGRATING, T.RESIZE_MIGRATED, T.RESIZE_FINISH)


class ResizeServer(msgspec.Struct, frozen=True, kw_only=True):
    """flavor: the one that the server is to have. auto_disk_config: what is stored with it, None for no change."""

    flavor: Flavor
    auto_disk_config: bool | None = None


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """What the server was: its host, its flavor, and whether its guest was to run."""

    host: str
    flavor: Flavor
    running: bool


class Destination(msgspec.Struct, frozen=True, kw_only=True):
    """Where the new flavor is claimed."""

    target: Target


class Shapes(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it was and with its new flavor. grace, interval: seconds, see `PowerOffArgs`. Spec: MIG-64."""

    old: Guest
    new: Guest
    grace: float
    interval: float


class NewGuest(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it is to be started: with its network information read anew."""

    guest: Guest


def _begin(tx: Tx, run: Run[ResizeServer]) -> None:
    """The migration record begins in the same transaction, so that there is no resize without one."""
    instance = take(tx, run.subject, action="resize", becomes=T.RESIZE_PREP, vm=(V.ACTIVE, V.STOPPED))
    if instance.host is None:
        raise InstanceNotReady(run.subject)
    migration_records.insert(tx.conn, Migration(
        uuid=migration_of(run), instance_uuid=run.subject, user_id=run.record.asker.user_id,
        project_id=run.record.asker.project_id, migration_type=MigrationType.RESIZE, status=M.PRE_MIGRATING,
        source_compute=instance.host, source_node=instance.node, old_flavor=instance.flavor,
        new_flavor=run.request.flavor, old_vm_state=instance.vm_state, created_at=tx.now,
    ))


def _look(tx: Tx, run: Run[ResizeServer]) -> Leaving:
    instance = instances.get(tx.conn, run.subject)
    assert instance.host is not None
    return Leaving(host=instance.host, flavor=instance.flavor, running=instance.vm_state is not V.STOPPED)


async def _claim(env: Environment, run: Run[ResizeServer]) -> Destination:
    """Spec: MIG-32, MIG-81."""
    leaving = run.output(Leaving)
    if not env.options.allow_resize_to_same_host:
        raise NoValidHost("Servers are not moved between hosts, and allow_resize_to_same_host is off.")
    needs = await needs_of(env, run.subject)
    target = await env.placement.begin_resize(run.subject, migration_of(run), run.request.flavor, leaving.host, needs)
    await tell_ports(env, run.subject, needs)
    return Destination(target=target)


async def _give_back(env: Environment, run: Run[ResizeServer]) -> None:
    """Spec: MIG-10, MIG-16, MIG-67."""
    await env.placement.take_back(run.subject, migration_of(run), run.output(Leaving).flavor)
    await tell_ports(env, run.subject, await needs_of(env, run.subject))


def _claimed(tx: Tx, run: Run[ResizeServer]) -> None:
    """The server is taken first, then its migration goes on. Spec: MIG-62, MIG-63."""
    target = run.output(Destination).target
    settle(tx, run, owned=(T.RESIZE_PREP,), task_state=T.RESIZE_MIGRATING)
    migration_records.change(tx.conn, migration_of(run), now=tx.now, was=ON_THE_WAY, status=M.MIGRATING,
                             dest_compute=target.host, dest_node=target.node)


async def _describe(env: Environment, run: Run[ResizeServer]) -> Shapes:
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    leaving, target = run.output(Leaving), run.output(Destination).target
    await refresh_connections(env, run.subject)
    old = await describe_with(env, run.subject, leaving.flavor, leaving.host, holder=migration_of(run))
    new = await describe_with(env, run.subject, run.request.flavor, target.host)
    grace = grace_of(instance, env.options)
    return Shapes(old=old, new=new, grace=grace, interval=env.options.shutdown_retry_interval)


async def _connect(env: Environment, run: Run[ResizeServer]) -> NewGuest:
    """Spec: MIG-77."""
    target = run.output(Destination).target
    return NewGuest(guest=await describe_with(env, run.subject, run.request.flavor, target.host))


def _power_off(run: Run[ResizeServer]) -> PowerOffArgs:
    shapes = run.output(Shapes)
    return PowerOffArgs(uuid=run.subject, grace=shapes.grace, interval=shapes.interval)


def _bring_back(run: Run[ResizeServer]) -> BringBackArgs:
    return BringBackArgs(
        guest=run.output(Shapes).old, running=run.output(Leaving).running,
        touched=run.entry("resize disks") is not None, keep=migration_of(run),
    )


def _resize_disks(run: Run[ResizeServer]) -> ResizeDisksArgs:
    shapes = run.output(Shapes)
    return ResizeDisksArgs(old=shapes.old, new=shapes.new, keep=migration_of(run))


def _migrated(tx: Tx, run: Run[ResizeServer]) -> None:
    """Spec: MIG-61, MIG-65."""
    progress(tx, run, M.POST_MIGRATING)
    settle(tx, run, owned=(T.RESIZE_MIGRATING,), task_state=T.RESIZE_MIGRATED)


def _finishing(tx: Tx, run: Run[ResizeServer]) -> None:
    settle(tx, run, owned=(T.RESIZE_MIGRATED,), task_state=T.RESIZE_FINISH)


def _resized(tx: Tx, run: Run[ResizeServer]) -> None:
    """Server and migration arrive in one transaction. Spec: MIG-78, MIG-81 to MIG-83."""
    target, request = run.output(Destination).target, run.request
    powered, off = run.find(Powered), run.output(PoweredOff)
    disks = {} if request.auto_disk_config is None else {"auto_disk_config": request.auto_disk_config}
    settle(
        tx, run, owned=(T.RESIZE_FINISH,), vm_state=V.RESIZED, task_state=None, flavor=request.flavor,
        host=target.host, node=target.node, launched_at=tx.now, network_info=run.output(NewGuest).guest.vifs,
        power_state=powered.power_state if powered is not None else off.power_state, **disks,
    )
    progress(tx, run, M.FINISHED)


def _failed(tx: Tx, run: Run[ResizeServer], failure: Failure) -> None:
    """Everything was taken back, so the server is what it was; unless its guest could not be started again, or not yet,
    because its host is out of reach.

    Spec: MIG-04, MIG-05, MIG-07, MIG-46, MIG-66, MIG-69, FND-22, FND-26.
    """
    progress(tx, run, M.ERROR)
    off = _why_off(run)
    if off:
        message = f"{failure.message} The guest was not started again, reboot it hard: {off}"
        fail(tx, run, msgspec.structs.replace(failure, message=message), owned=OWNED, vm_state=V.ERROR)
    else:
        fail(tx, run, failure, owned=OWNED)


def _why_off(run: Run[ResizeServer]) -> str:
    """Why a guest that is to run may not run, "" if it does."""
    back = run.entry("power off", undo=True)
    if back is None or not run.output(Leaving).running:
        return ""
    if back.state is EntryState.OWED:
        return "its host does not answer."
    brought = msgspec.json.decode(back.output, type=BroughtBack | None)
    return brought.error if brought is not None else ""


def _new_flavor(run: Run[ResizeServer], _instance: Instance) -> Payload:
    return {"new_flavor": payloads.flavor(run.request.flavor)}


def _new_type(run: Run[ResizeServer], _instance: Instance) -> Payload:
    """Spec: MIG-49, MIG-50."""
    return {"new_instance_type": run.request.flavor.name, "new_instance_type_id": run.request.flavor.id}


RESIZE = Operation(
    name="resize",
    action="resize",
    event="compute_resize_instance",
    notices=(
        *announce_part("resize_prep", "claim", older="resize.prep", exists=Phase.START, fields=_new_flavor,
                       usage=_new_type, payload="InstanceActionResizePrepPayload", version="1.3"),
        *announce_part("resize", "power off", "resize disks"),
        *announce_part("resize_finish", "connect", "start guest", older="finish_resize"),
        *ONLY_FAILURES,
    ),
    request=ResizeServer,
    begins=_begin,
    steps=(
        Record("look", _look, undo=NoUndo("changes nothing")),
        Here("claim", _claim, undo=_give_back, recorded=_claimed, undo_owed=True),
        Here("describe guest", _describe, undo=NoUndo("changes nothing")),
        OnHost("power off", lambda run: run.output(Leaving).host, POWER_OFF, _power_off,
               undo=BRING_BACK, undo_args=_bring_back, timeout=900, undo_owed=True),
        OnHost("resize disks", lambda run: run.output(Leaving).host, RESIZE_DISKS, _resize_disks,
               undo=WITH_THE_GUEST, recorded=_migrated, timeout=3600),
        Here("connect", _connect, undo=NoUndo("reads only"), recorded=_finishing),
        OnHost("start guest", lambda run: run.output(Destination).target.host if run.output(Leaving).running else None,
               POWER_ON, lambda run: GuestArgs(run.output(NewGuest).guest), undo=WITH_THE_GUEST),
    ),
    ends=_resized,
    fails=_failed,
)
