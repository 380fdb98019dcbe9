"""Shelve offload: take a shelved server from its host. Its image, its volumes, its ports and their addresses stay.

From the moment at which the guest is removed there is no way back to a server that can be started on its host: what the
host or a service cannot or will not do now is owed. The same puts a server back on its shelf that was left in error by
an unshelving whose host did not answer.
"""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.power import POWER_OFF, REMOVE, GuestRef, PoweredOff, PowerOffArgs
from kilonova.db import block_devices, instances, services
from kilonova.domain.errors import InstanceNotReady
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.connect_volumes import reserve_again
from kilonova.operations.environment import Environment
from kilonova.operations.notices import announce
from kilonova.operations.options import OperationOptions
from kilonova.operations.records import fail, settle, take
from kilonova.operations.release_volumes import OwnedVolume, owned_volumes
from kilonova.operations.shelf import IMAGE_KEY, shelved_since

log = structlog.get_logger(__name__)

V = VmState
OWNED = (TaskState.SHELVING_OFFLOADING,)
FORWARD = NoUndo("an offload goes forward only")
SILENCE = 60.0
"""Seconds without a sign of life after which a host is not asked to give up a server by and by."""


class OffloadServer(msgspec.Struct, frozen=True):
    """again: it is in error on a host, because its last unshelving could not be undone at once."""

    again: bool = False


class Leaving(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server is, the taps of its guest, its accelerator requests and its volumes."""

    host: str
    devnames: tuple[str, ...]
    accelerators: tuple[str, ...] = ()
    volumes: tuple[OwnedVolume, ...] = ()


def _begin(tx: Tx, run: Run[OffloadServer]) -> None:
    """Spec: SHV-31, PER-50."""
    vm = V.ERROR if run.request.again else V.SHELVED
    instance = take(tx, run.subject, action="shelveOffload", becomes=TaskState.SHELVING_OFFLOADING, vm=(vm,))
    if instance.host is None or (run.request.again and IMAGE_KEY not in instance.system_metadata):
        raise InstanceNotReady(run.subject)


def _look(tx: Tx, run: Run[OffloadServer]) -> Leaving:
    instance = settle(tx, run, owned=OWNED)
    assert instance.host is not None
    return Leaving(
        host=instance.host, devnames=tuple(vif.devname for vif in instance.network_info),
        accelerators=instance.accelerators, volumes=owned_volumes(tx.conn, run.subject),
    )


def _host(run: Run[OffloadServer]) -> str:
    return run.output(Leaving).host


def _ref(run: Run[OffloadServer]) -> GuestRef:
    return GuestRef(uuid=run.subject, devnames=run.output(Leaving).devnames)


async def _disconnect(env: Environment, run: Run[OffloadServer]) -> None:
    """Each volume gets a reservation before its host loses it. When a debt is paid the server may be elsewhere: what it
    has there is not touched. Spec: SHV-17, SHV-26, MIG-17, MIG-20, MIG-21."""
    for volume in run.output(Leaving).volumes:
        now = await env.database.read(lambda conn: block_devices.of_server(conn, run.subject))
        device = next((one for one in now if one.uuid == volume.uuid), None)
        if device is not None and device.attachment_id == volume.attachment_id:
            await reserve_again(env, run.subject, device)
        elif volume.attachment_id is not None:
            await env.volumes.delete_attachment(volume.attachment_id)


async def _unbind(env: Environment, run: Run[OffloadServer]) -> None:
    """The ports stay the server's. Spec: SHV-22."""
    await env.networks.leave_host(run.subject, _host(run))


async def _release_accelerators(env: Environment, run: Run[OffloadServer]) -> None:
    """By their ids: when a debt is paid the server may have others. Spec: SHV-23, PER-51, PER-56."""
    await env.accelerators.discard(run.output(Leaving).accelerators)


async def _release(env: Environment, run: Run[OffloadServer]) -> None:
    """Before anybody can see that the server is offloaded. Spec: SHV-17."""
    await env.placement.release(run.subject)


def _offloaded(tx: Tx, run: Run[OffloadServer]) -> None:
    """One write, with which the console tokens go, too. Who has taken the record over (a delete that waits, or a reset)
    learns that it has no host, and keeps its states. Spec: SHV-18, SHV-21, SHV-24, SHV-28, FND-32."""
    instance = instances.get(tx.conn, run.subject)
    if instance.host != _host(run):
        return
    gone: dict[str, Any] = {
        "host": None, "node": None, "launched_on": None, "availability_zone": None,
        "accelerators": (),
        "power_state": run.output(PoweredOff).power_state,
    }
    if instance.task_state in OWNED:
        gone |= {"vm_state": V.SHELVED_OFFLOADED, "task_state": None}
    instances.update(tx.conn, run.subject, now=tx.now, **gone)


def _not_offloaded(tx: Tx, run: Run[OffloadServer], failure: Failure) -> None:
    """Nothing was touched. Spec: SHV-12, SHV-25."""
    fail(tx, run, failure, owned=OWNED)


def _left(run: Run[OffloadServer], instance: Instance) -> str | None:
    """The host of which notifications tell, also when the server is not there any more. Spec: SHV-19."""
    leaving = run.find(Leaving)
    return leaving.host if leaving is not None else instance.host


def overdue(conn: sa.Connection, options: OperationOptions, now: float) -> list[str]:
    """Servers at rest that have been shelved for too long, if their hosts answer. Spec: SHV-13, SHV-31, PER-49,
    PER-55."""
    if options.shelved_offload_time < 0:
        return []
    agents = services.all_services(conn, binary=services.COMPUTE)
    up = {agent.host for agent in agents if agent.up(now, SILENCE)}
    found = [instance for instance in instances.shelved(conn) if instance.host in up]
    return [instance.uuid for instance in found if _is_due(instance, options, now)]


def _is_due(instance: Instance, options: OperationOptions, now: float) -> bool:
    if options.shelved_offload_time == 0:
        return True
    since = shelved_since(instance)
    if since is None:
        log.warning("nobody knows since when a server is shelved", instance=instance.uuid)
        return False
    return since < now - options.shelved_offload_time


SHELVE_OFFLOAD = Operation(
    name="shelve-offload",
    action="shelveOffload",
    event="compute_shelve_offload_instance",
    notices=announce("shelve_offload", host=_left),
    request=OffloadServer,
    begins=_begin,
    no_return="remove guest",
    steps=(
        Record("look", _look, undo=NoUndo("changes nothing")),
        OnHost("power off", _host, POWER_OFF, lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0),
               undo=NoUndo("the guest of a shelved server is off")),
        OnHost("remove guest", _host, REMOVE, _ref, undo=FORWARD, owed=True, owed_anyway=True, timeout=600, retries=5),
        Here("disconnect volumes", _disconnect, undo=FORWARD, owed=True,
             given=lambda run: not run.output(Leaving).volumes),
        Here("release accelerators", _release_accelerators, undo=FORWARD, owed=True,
             given=lambda run: not run.output(Leaving).accelerators),
        Here("unbind ports", _unbind, undo=FORWARD, owed=True),
        Here("release claim", _release, undo=FORWARD, persistent=True),
    ),
    ends=_offloaded,
    fails=_not_offloaded,
)
