"""Delete: remove a server and everything it owns, whatever it is doing and whether or not its host answers.

It pre-empts what runs: that operation ends and undoes itself first. What cannot be released now (a host or a
service that does not answer) is journaled as a debt and paid when it returns; the server is gone for its user.
"""

from __future__ import annotations

import contextlib

import msgspec
import structlog

from kilonova.agent.steps.power import REMOVE, GuestRef
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, KilonovaError, ServiceUnavailable
from kilonova.domain.migration import ON_THE_WAY, UNDECIDED, MigrationStatus
from kilonova.domain.notification import Phase
from kilonova.domain.operation import Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.moves import close
from kilonova.operations.notices import announce, announce_part
from kilonova.operations.records import fail
from kilonova.operations.release_volumes import OwnedVolume, owned_volumes, release_all, release_volumes
from kilonova.operations.server_images import remove_image
from kilonova.operations.shelf import IMAGE_KEY

log = structlog.get_logger(__name__)

GONE = NoUndo("a delete goes forward only")


class DeleteServer(msgspec.Struct, frozen=True, kw_only=True):
    """keep_ports: those the user brought, which are unbound and kept. reclaim: only if it is soft-deleted and at
    rest, and it stays so if it cannot be removed. forced: somebody has forced the delete of a server without a host,
    which is told under that name. Spec: DEL-56."""

    keep_ports: tuple[str, ...] = ()
    reclaim: bool = False
    forced: bool = False


class Remains(msgspec.Struct, frozen=True, kw_only=True):
    """What the record said when its turn came, after whatever ran before was undone. Spec: DEL-41, DEL-42."""

    host: str | None
    devnames: tuple[str, ...]
    keep_ports: tuple[str, ...]
    shelved_image: str = ""
    accelerators: tuple[str, ...] = ()
    volumes: tuple[OwnedVolume, ...] = ()
    gone: bool = False


def _begin(tx: Tx, run: Run[DeleteServer]) -> None:
    """Accepted in every state; a reclaim loses against a restore. Spec: API-112, DEL-45, DEL-62, DEL-80, PER-78."""
    if run.request.reclaim:
        instances.update(
            tx.conn, run.subject, now=tx.now, vm=(VmState.SOFT_DELETED,), task=(None,), task_state=TaskState.DELETING
        )
        return
    instances.update(tx.conn, run.subject, now=tx.now, task_state=TaskState.DELETING)


class Interfaces(msgspec.Struct, frozen=True):
    """Taps of the guest, as the network service tells them."""

    devnames: tuple[str, ...]


def _look(tx: Tx, run: Run[DeleteServer]) -> Remains:
    """A record that is gone meanwhile ends nothing: what belongs to its UUID is still freed. Spec: DEL-38, DEL-39,
    DEL-41, DEL-43, DEL-65, INI-136."""
    volumes = owned_volumes(tx.conn, run.subject)
    try:
        instance = instances.get(tx.conn, run.subject, deleted=True)
    except InstanceNotFound:
        return Remains(host=None, devnames=(), keep_ports=run.request.keep_ports, volumes=volumes, gone=True)
    kept = {vif.id for vif in instance.network_info if vif.preserve_on_delete} | set(run.request.keep_ports)
    return Remains(
        host=instance.host, devnames=tuple(v.devname for v in instance.network_info), keep_ports=tuple(sorted(kept)),
        shelved_image=instance.system_metadata.get(IMAGE_KEY, ""), accelerators=instance.accelerators,
        volumes=volumes, gone=instance.deleted_at is not None,
    )


def _knows_interfaces(run: Run[DeleteServer]) -> bool:
    remains = run.output(Remains)
    return bool(remains.devnames) or remains.host is None


async def _find_interfaces(env: Environment, run: Run[DeleteServer]) -> Interfaces:
    """The record may not know them, and none is to stay plugged. A network service that is away stops nothing.

    Spec: DEL-01, DEL-08, NET-31.
    """
    try:
        return Interfaces(tuple(vif.devname for vif in await env.networks.vifs(run.subject)))
    except KilonovaError as error:
        log.warning("interfaces of a deleted server not found", instance=run.subject, error=str(error))
        return Interfaces(())


def _guest(run: Run[DeleteServer]) -> GuestRef:
    found = run.find(Interfaces)
    return GuestRef(uuid=run.subject, devnames=found.devnames if found is not None else run.output(Remains).devnames)


def _release_pause(attempt: int) -> float:
    """Seconds until the next attempt: 2 more each time, never more than 12. Spec: NET-22."""
    return min(2.0 * attempt, 12.0)


async def _release_networks(env: Environment, run: Run[DeleteServer]) -> None:
    """Found by asking for the ports of the instance. Spec: NET-09, NET-21, DEL-02."""
    await env.networks.release(run.subject, run.output(Remains).keep_ports)
    if run.output(Remains).shelved_image:
        await remove_image(env, run.subject, run.output(Remains).shelved_image)


async def _release_accelerators(env: Environment, run: Run[DeleteServer]) -> None:
    """Spec: DEL-29."""
    await env.accelerators.discard(run.output(Remains).accelerators)


async def _release_volumes(env: Environment, run: Run[DeleteServer]) -> None:
    """The guest has let go of them, or its host is out of reach. Of a server without a record nobody knows what it had,
    and an operation on a volume that was forced to end may have left an attachment that no record names.

    Spec: DEL-02, DEL-06, DEL-07, DEL-24, DEL-43, DEL-55.
    """
    remains = run.output(Remains)
    await release_volumes(env, run.subject, remains.volumes)
    if any(one.volume_id is not None for one in remains.volumes):
        await release_all(env, run.subject)
    elif remains.gone:
        with contextlib.suppress(ServiceUnavailable):
            await release_all(env, run.subject)


async def _release_claim(env: Environment, run: Run[DeleteServer]) -> None:
    """The record stays until its allocations are gone, however long that takes. Spec: DEL-26, INI-128."""
    await env.placement.forget(run.subject)


def _gone(tx: Tx, run: Run[DeleteServer]) -> None:
    """A resize that was not decided on is confirmed by it: what was kept is gone with the rest. Spec: DEL-23,
    DEL-25."""
    close(tx, run.subject, UNDECIDED, MigrationStatus.CONFIRMED)
    close(tx, run.subject, ON_THE_WAY, MigrationStatus.ERROR)
    instances.update(
        tx.conn, run.subject, now=tx.now, vm_state=VmState.DELETED, task_state=None,
        power_state=PowerState.NOSTATE, terminated_at=tx.now, deleted_at=tx.now, shares=(),
        accelerators=(),
    )


def _end(tx: Tx, run: Run[DeleteServer]) -> None:
    try:
        _gone(tx, run)
    except InstanceNotFound:  # a second delete finds the work done. Spec: DEL-65
        return


def _failed(tx: Tx, run: Run[DeleteServer], failure: Failure) -> None:
    """The host answered but could not remove the guest: ERROR, no task, so that delete can be asked again.
    One that was reclaimed stays SOFT_DELETED, and is tried again later. Spec: DEL-40, DEL-76."""
    left = VmState.SOFT_DELETED if run.request.reclaim else VmState.ERROR
    fail(tx, run, failure, owned=(TaskState.DELETING,), vm_state=left)


def _finds_nothing(run: Run[DeleteServer], _phase: Phase) -> bool:
    """Somebody else has deleted it, and told so. Spec: DEL-65."""
    remains = run.find(Remains)
    return remains is not None and remains.gone


DELETE = Operation(
    name="delete",
    action="delete",
    event="compute_terminate_instance",
    notices=(
        *announce("delete", spares=_finds_nothing, alias=lambda run: "force_delete" if run.request.forced else ""),
        *announce_part("shutdown", "remove guest", spares=lambda run, _phase: run.output(Remains).host is None),
    ),
    request=DeleteServer,
    preempts=("*",),
    supersedes=("tidy",),
    begins=_begin,
    no_return="look",
    steps=(
        Record("look", _look, undo=GONE),
        Here("find interfaces", _find_interfaces, undo=GONE, given=_knows_interfaces),
        OnHost("remove guest", lambda run: run.output(Remains).host, REMOVE, _guest,
               undo=GONE, owed=True, timeout=600, retries=5),
        Here("release accelerators", _release_accelerators, undo=GONE, owed=True,
             given=lambda run: not run.output(Remains).accelerators),
        Here("release networks", _release_networks, undo=GONE, owed=True, pause=_release_pause),
        Here("release volumes", _release_volumes, undo=GONE, owed=True, timeout=300,
             given=lambda run: not (run.output(Remains).volumes or run.output(Remains).gone)),
        Here("release claim", _release_claim, undo=GONE, persistent=True),
    ),
    ends=_end,
    fails=_failed,
)
