"""Unshelve a server that was offloaded: choose a host as for a new server, and start the guest there from the image
that it was shelved as, with its volumes. The record keeps the image that the server was built from.

Whatever fails leaves the server on its shelf, with its image, on no host; unless its guest may be left on a host that
does not answer. Then the server is in ERROR there, with its claim and its ports, and is put back on its shelf when that
host has removed the guest.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from kilonova.agent.steps.power import (
    CREATE_DISKS,
    DESTROY,
    REMOVE,
    RESUME,
    SPAWN,
    DisksMade,
    GuestArgs,
    GuestRef,
    Powered,
    SpawnArgs,
)
from kilonova.db import block_devices, instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.domain.network import Vif
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import AnyRun, Await, Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest, HostDevice
from kilonova.operations.accelerators import AcceleratorSteps, devices_of
from kilonova.operations.connect_volumes import VolumeSteps, attached, volumes_of
from kilonova.operations.environment import Environment
from kilonova.operations.guests import guest_of, wants_config_drive, with_volumes
from kilonova.operations.notices import announce
from kilonova.operations.port_resources import needs_of, tell_ports
from kilonova.operations.records import fail, give_back, settle, take
from kilonova.operations.shelf import IMAGE_KEY, Shelved, drop_image, without_label
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.operations.wiring import wired_events
from kilonova.services.placement import Pin, Target
from kilonova.shapes.resources import is_volume_backed

log = structlog.get_logger(__name__)

T, V = TaskState, VmState
READS = NoUndo("changes nothing")


class UnshelveOffloaded(msgspec.Struct, frozen=True, kw_only=True):
    """Where to.

    Args:
        host: None for any. pin: what becomes of the zone that the server is tied to; None leaves it.
        wiring_timeout: seconds to wait for the interfaces; 0 does not wait. wiring_is_fatal: fail without them.
        binding_timeout: seconds in which the accelerators of the server must be bound.
    """

    host: str | None = None
    pin: Pin | None = None
    wiring_timeout: float = 300.0
    wiring_is_fatal: bool = True
    binding_timeout: float = 300.0


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The hosts to try, and what is claimed there."""

    spec: RequestSpec
    targets: tuple[Target, ...]


class FromImage(msgspec.Struct, frozen=True):
    """What the guest is made from. volumes: it has some; shared: other servers may have one of them, too."""

    image: Image
    volumes: bool = False
    shared: bool = False


class Connected(msgspec.Struct, frozen=True):
    """The interfaces of the server."""

    vifs: tuple[Vif, ...]


class Anew(msgspec.Struct, frozen=True):
    """The guest to be made."""

    guest: Guest


def _begin(tx: Tx, run: Run[UnshelveOffloaded]) -> None:
    take(tx, run.subject, action="unshelve", becomes=T.UNSHELVING, vm=(V.SHELVED_OFFLOADED,))


def _look(tx: Tx, run: Run[UnshelveOffloaded]) -> Shelved:
    return Shelved(settle(tx, run, owned=(T.UNSHELVING,)).system_metadata.get(IMAGE_KEY, ""))


async def _find_image(env: Environment, run: Run[UnshelveOffloaded]) -> FromImage:
    """Before anything is claimed. A server that boots from a volume has no image, but what its volume says of it.

    Raises:
        ImageNotFound: somebody has deleted it. Spec: SHV-34.
    """
    image_id = run.output(Shelved).image_id
    instance, devices = await env.database.read(
        lambda conn: (instances.get(conn, run.subject), block_devices.of_server(conn, run.subject))
    )
    described = instance.image if is_volume_backed(instance.block_devices) else None
    if not image_id and described is None:
        raise KilonovaError(f"Nothing tells of which image server {run.subject} is to be unshelved.")
    image = described or await env.images.show(None, image_id)
    shared = [
        (await env.volumes.volume(None, device.volume_id)).multiattach for device in devices if device.volume_id
    ]
    return FromImage(image, volumes=bool(shared), shared=any(shared))


async def _choose(env: Environment, run: Run[UnshelveOffloaded]) -> Chosen:
    request = run.request
    spec, targets = await env.placement.choose(
        run.subject, host=request.host, pin=request.pin, alternates=env.options.max_attempts - 1,
        needs=await needs_of(env, run.subject),
    )
    return Chosen(spec=spec, targets=targets)


def _target(run: Run[UnshelveOffloaded]) -> Target:
    return run.output(Chosen).targets[run.round]


def _host(run: Run[UnshelveOffloaded]) -> str:
    return _target(run).host


async def _claim(env: Environment, run: Run[UnshelveOffloaded]) -> None:
    await env.placement.claim(run.output(Chosen).spec, _target(run))


def _guest_may_be_left(run: Run[UnshelveOffloaded]) -> bool:
    """The host of this round could not be brought to say that no guest is left there."""
    undo = run.entry("start guest", undo=True)
    return undo is not None and undo.state is EntryState.OWED


async def _release(env: Environment, run: Run[UnshelveOffloaded]) -> None:
    """Spec: SHV-42 to SHV-44."""
    if not _guest_may_be_left(run):
        await env.placement.release(run.subject, _target(run).provider)


async def _connect(env: Environment, run: Run[UnshelveOffloaded]) -> Connected:
    """Spec: SHV-38."""
    target = _target(run)
    await env.networks.go_to_host(run.subject, target.host, availability_zone=target.availability_zone)
    await tell_ports(env, run.subject, run.output(Chosen).spec.port_needs)
    return Connected(await env.networks.vifs(run.subject))


async def _disconnect(env: Environment, run: Run[UnshelveOffloaded]) -> None:
    """Only what is bound to this host: a debt may be paid when the server is elsewhere already. Spec: SHV-46."""
    if not _guest_may_be_left(run):
        await env.networks.leave_host(run.subject, _host(run))


def _go_to_host(tx: Tx, run: Run[UnshelveOffloaded]) -> None:
    """Spec: SHV-50."""
    target = _target(run)
    settle(
        tx, run, owned=(T.UNSHELVING,), vm=(V.SHELVED_OFFLOADED,), task_state=T.SPAWNING, host=target.host,
        node=target.node, launched_on=target.host, availability_zone=target.availability_zone or None,
    )


def _leave_host(tx: Tx, run: Run[UnshelveOffloaded]) -> None:
    """Spec: SHV-42, SHV-52, SHV-53, FND-32."""
    if not _guest_may_be_left(run):
        give_back(tx, run, owned=(T.SPAWNING, T.DELETING, T.SOFT_DELETING), host=None, node=None, launched_on=None,
                  availability_zone=None)
        give_back(tx, run, owned=(T.SPAWNING,), task_state=T.UNSHELVING)


async def _describe(env: Environment, run: Run[UnshelveOffloaded]) -> Anew:
    """The image and the key are for the driver alone: the record is not touched. No key, password or file goes in
    again. Spec: SHV-35, SHV-36, SHV-48, SHV-54, SHV-55."""
    instance, volumes = await env.database.read(
        lambda conn: (instances.get(conn, run.subject), block_devices.of_server(conn, run.subject))
    )
    from_image = msgspec.structs.replace(
        instance, image=run.output(FromImage).image, key_data=None, auto_disk_config=False
    )
    layout = await env.placement.layout(run.subject, _host(run))
    config_drive = wants_config_drive(instance, env.options)
    return Anew(guest_of(
        from_image, run.output(Connected).vifs, layout=layout, config_drive=config_drive,
        volumes=volumes,
    ))


def _guest(run: Run[UnshelveOffloaded]) -> Guest:
    """Spec: SHV-40."""
    guest = with_volumes(run.output(Anew).guest, volumes_of(run))
    accelerators = map(HostDevice, devices_of(run))
    return msgspec.structs.replace(guest, host_devices=(*guest.host_devices, *accelerators))


def _ref(run: Run[UnshelveOffloaded]) -> GuestRef:
    return GuestRef(uuid=run.subject, devnames=tuple(vif.devname for vif in run.output(Connected).vifs))


def _wired(run: Run[UnshelveOffloaded]) -> tuple[str, ...]:
    return wired_events(run.output(Connected).vifs, run.request.wiring_timeout)


def _runs(tx: Tx, run: Run[UnshelveOffloaded]) -> None:
    """The server needs the image no more, and says so before it goes. Spec: SHV-32, SHV-49, SHV-51."""
    attached(tx, run.subject)
    before = instances.get(tx.conn, run.subject).system_metadata
    vifs = tuple(msgspec.structs.replace(vif, active=True) for vif in run.output(Connected).vifs)
    guest = _guest(run)
    settle(
        tx, run, owned=(T.SPAWNING,), vm_state=V.ACTIVE, power_state=run.output(Powered).power_state,
        launched_at=tx.now, network_info=vifs, system_metadata=without_label(before),
        config_drive="True" if guest.config_drive else "", root_device_name=run.output(DisksMade).root_device_name,
    )


def _unshelved(tx: Tx, run: Run[UnshelveOffloaded]) -> None:
    give_back(tx, run, owned=(T.SPAWNING,), task_state=None)


def _not_unshelved(tx: Tx, run: Run[UnshelveOffloaded], failure: Failure) -> None:
    """vm_state stays, unless the guest may be left. Spec: SHV-42, SHV-53."""
    changes: dict[str, Any] = {"vm_state": V.ERROR} if _guest_may_be_left(run) else {}
    fail(tx, run, failure, owned=(T.UNSHELVING, T.SPAWNING), **changes)


def _guest_is_gone(tx: Tx, run: AnyRun) -> None:
    """The host has come back and removed the guest: the server goes back on its shelf, if nothing else has become of
    it. Spec: SHV-53."""
    try:
        submit.submit(
            tx, cell_journal, SHELVE_OFFLOAD, run.subject, OffloadServer(again=True), run.record.asker
        )
    except KilonovaError as error:
        log.info("server not put back on its shelf", instance=run.subject, error=str(error))


def _rounds(run: Run[UnshelveOffloaded]) -> int:
    return len(run.output(Chosen).targets)


ACCELERATORS = AcceleratorSteps(
    spec=lambda run: run.output(Chosen).spec, target=_target, timeout=lambda run: run.request.binding_timeout,
    stays=_guest_may_be_left,
)
VOLUMES = VolumeSteps(
    host=_host, without=lambda run: not run.output(FromImage).volumes, stays=_guest_may_be_left,
    multiattach=lambda run: run.output(FromImage).shared,
)

UNSHELVE_OFFLOADED = Operation(
    name="unshelve-offloaded",
    action="unshelve",
    event="compute_unshelve_instance",
    notices=announce("unshelve"),
    request=UnshelveOffloaded,
    begins=_begin,
    again_from="claim host",
    rounds=_rounds,
    no_return="note that it runs",
    steps=(
        Record("look", _look, undo=READS),
        Here("find image", _find_image, undo=READS),
        Here("choose host", _choose, undo=READS),
        Here("claim host", _claim, undo=_release, undo_owed=True),
        Here("bind ports", _connect, undo=_disconnect, undo_owed=True),
        Record("go to host", _go_to_host, undo=_leave_host),
        Here("describe guest", _describe, undo=READS),
        *ACCELERATORS.request,
        *VOLUMES.connect,
        OnHost("create disks", _host, CREATE_DISKS, lambda run: GuestArgs(_guest(run)), undo=REMOVE, undo_args=_ref,
               timeout=1800, undo_owed=True),
        *ACCELERATORS.wait,
        OnHost("start guest", _host, SPAWN, lambda run: SpawnArgs(_guest(run), paused=bool(_wired(run))),
               undo=DESTROY, undo_args=_ref, timeout=600, undo_owed=True, undo_paid=_guest_is_gone, binds=True),
        Await("wait for wiring", _wired, timeout=lambda run: run.request.wiring_timeout,
              fatal=lambda run: run.request.wiring_is_fatal),
        OnHost("let guest run", lambda run: _host(run) if _wired(run) else None, RESUME, _ref,
               undo=NoUndo("the guest's start is undone as a whole")),
        *VOLUMES.complete,
        Record("note that it runs", _runs, undo=NoUndo("it does run")),
        Here("drop image", drop_image, undo=NoUndo("the server runs from its disk"), owed=True),
    ),
    ends=_unshelved,
    fails=_not_unshelved,
)
