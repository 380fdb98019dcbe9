"""Detach volume: take a volume from a server.

A guest that does not let go keeps the volume, which then is in use as before. Once it has let go, the volume is gone
for the user; if the volume service does not answer then, its attachment is deleted later.
"""

from __future__ import annotations

import contextlib

import msgspec

from kilonova.agent.steps.volumes import ATTACH, DETACH, USAGE, AttachArgs, Used, VolumeRef
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import InvalidInput, VolumeNotFound
from kilonova.domain.operation import Asker, Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.attach_volume import STATES, told_of_volume
from kilonova.operations.environment import Environment
from kilonova.operations.guests import guest_of
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check
from kilonova.operations.volume_usage import count_and_tell

BEGIN_DETACHING = "begin detaching"
"""The step after which nobody else can detach it."""
READS = NoUndo("changes nothing")


class DetachVolume(msgspec.Struct, frozen=True):
    """Which one."""

    volume_id: str


class Leaving(msgspec.Struct, frozen=True):
    """The block device that goes; the host and the guest that it leaves, None if it is on no host."""

    device: str
    attached: bool
    attachment_id: str | None
    host: str | None
    guest: Guest | None


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """counts: what servers do with volumes is counted."""

    counts: bool


def _begin(tx: Tx, run: Run[DetachVolume]) -> None:
    """On the record as it is when its turn has come. Spec: VOL-03, VOL-04, VOL-36, BDM-32, API-181."""
    check(tx, run.subject, action="detach_volume", vm=STATES)
    device = block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
    if device.boot_index == 0:
        raise InvalidInput("Cannot detach a root device volume")
    block_devices.update(tx.conn, device.uuid, now=tx.now, was=tuple(AttachState), state=AttachState.DETACHING)


def _look(tx: Tx, run: Run[DetachVolume]) -> Leaving:
    instance = instances.get(tx.conn, run.subject)
    volumes = block_devices.of_server(tx.conn, run.subject)
    device = next(one for one in volumes if one.volume_id == run.request.volume_id)
    attached = device.connection_info is not None
    guest = None
    if instance.host is not None and attached:
        config_drive = instance.config_drive == "True"
        guest = guest_of(
            instance, instance.network_info, layout=None, config_drive=config_drive, volumes=volumes
        )
    return Leaving(device.uuid, attached, device.attachment_id, instance.host if attached else None, guest)


async def _begin_detaching(env: Environment, run: Run[DetachVolume]) -> Begun:
    """Nobody else detaches it then. A volume that does not exist any more can still be taken from the server."""
    with contextlib.suppress(VolumeNotFound):
        await env.volumes.begin_detaching(run.request.volume_id)
    return Begun(counts=env.options.volume_usage_poll_interval > 0)


def _counting_host(run: Run[DetachVolume]) -> str | None:
    """Spec: VOL-30."""
    begun = run.find(Begun)
    return run.output(Leaving).host if begun is not None and begun.counts else None


def _count(tx: Tx, run: Run[DetachVolume]) -> None:
    """Spec: VOL-31 to VOL-34, VOL-37."""
    usage, host = run.output(Used).usage, run.output(Leaving).host
    if usage is not None and host is not None:
        count_and_tell(
            tx.conn, run.subject, run.request.volume_id, usage, host=host, now=tx.now,
            asker=run.record.asker or Asker(), ended=True,
        )


async def _roll_detaching(env: Environment, run: Run[DetachVolume]) -> None:
    """Spec: VOL-43."""
    await env.volumes.roll_detaching(run.request.volume_id)


def _volume(run: Run[DetachVolume]) -> VolumeRef:
    return VolumeRef(run.subject, run.request.volume_id)


def _attach_args(run: Run[DetachVolume]) -> AttachArgs:
    guest = run.output(Leaving).guest
    assert guest is not None
    return AttachArgs(guest, run.request.volume_id)


async def _release(env: Environment, run: Run[DetachVolume]) -> None:
    """With whatever else was left behind for it. Spec: VOL-38, VOL-45."""
    attachment = run.output(Leaving).attachment_id
    if attachment is not None:
        await env.volumes.delete_attachment(attachment)
    await env.volumes.discard_attachments(run.request.volume_id, run.subject, ())


def _detached(tx: Tx, run: Run[DetachVolume]) -> None:
    """The record goes before anybody is told, and its tag with it. Spec: VOL-40, VOL-44, VOL-48, VOL-49."""
    block_devices.remove(tx.conn, run.output(Leaving).device)


def _failed(tx: Tx, run: Run[DetachVolume], failure: Failure) -> None:
    """The server keeps the volume. Spec: VOL-42."""
    device = block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
    state = AttachState.RESERVED if device.connection_info is None else AttachState.ATTACHED
    block_devices.update(tx.conn, device.uuid, now=tx.now, was=(AttachState.DETACHING,), state=state)
    blame(tx, run, failure)


DETACH_VOLUME = Operation(
    name="detach-volume",
    action="detach_volume",
    event="compute_detach_volume",
    notices=announce(
        "volume_detach", older="volume.detach", once=True, fields=told_of_volume, usage=told_of_volume,
        payload="InstanceActionVolumePayload", version="1.6",
    ),
    request=DetachVolume,
    waited_for=True,
    begins=_begin,
    no_return="release volume",
    steps=(
        Record("look", _look, undo=READS),
        Here(BEGIN_DETACHING, _begin_detaching, undo=_roll_detaching, undo_owed=True,
             given=lambda run: not run.output(Leaving).attached),
        OnHost("read usage", _counting_host, USAGE, _volume, undo=READS, recorded=_count),
        OnHost("detach volume", lambda run: run.output(Leaving).host, DETACH, _volume,
               undo=ATTACH, undo_args=_attach_args, undo_owed=True, timeout=300, retries=1),
        Here("release volume", _release, undo=NoUndo("the guest has let go of it"), owed=True),
    ),
    ends=_detached,
    fails=_failed,
)
