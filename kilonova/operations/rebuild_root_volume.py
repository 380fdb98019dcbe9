"""Rebuild of a server that boots from a volume: the volume service writes an image into its root volume, and the guest
is made anew on it.

The root volume leaves the host before it is written, with a reservation in place of its connection, so that nobody else
gets it meanwhile; the other volumes stay where they are. From the moment the image is written there is no way back:
whatever fails later leaves the server in ERROR with the new data, and a hard reboot starts it. A failure before brings
the old record back; the volume is connected again if the service lets it be, and otherwise stays reserved, so that the
server can be rebuilt again.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from kilonova.agent.steps.volumes import CHECK, USAGE, AbilityArgs, Connector, Used, VolumeRef
from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import InvalidVolume, NotFound, Retryable
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker, event_key
from kilonova.engine.operation import Await, Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import GuestVolume, guest_volume
from kilonova.notifications.payloads import Payload
from kilonova.operations.connect_volumes import connect, reserve_again, told_as_block_devices
from kilonova.operations.environment import Environment
from kilonova.operations.notices import announce_part
from kilonova.operations.rebuild import (
    IMAGE_WRITTEN,
    NOTICES,
    PREPARE,
    TAKE_AWAY,
    Anew,
    RebuildServer,
    begin,
    describe_anew,
    failed,
    guest_anew,
    host_of,
    rebuilt,
    restore_image,
    start_anew,
    without_secrets,
)
from kilonova.operations.volume_usage import count_and_tell
from kilonova.operations.volumes import keep_connection
from kilonova.services.volumes import BEING_MADE

log = structlog.get_logger(__name__)

REIMAGED = "volume-reimaged"
"""The event that tells that an image was written into a volume."""
RESERVE = "reserve root volume"
WRITABLE = ("in-use", "reserved", "error")
"""Statuses in which the root volume of a server may get another image."""
WRITTEN = NoUndo("what the volume held is not kept")


class RebuildRootVolume(RebuildServer, frozen=True, kw_only=True):
    """image_id: what is written into the root volume."""

    image_id: str


class Root(msgspec.Struct, frozen=True, kw_only=True):
    """The root volume.

    Args:
        device: the uuid of the block device. limit: seconds that writing the image may take.
        counts: what servers do with volumes is counted.
    """

    device: str
    volume_id: str
    multiattach: bool
    limit: float
    counts: bool


class RootConnected(msgspec.Struct, frozen=True):
    """The root volume as the guest is to have it."""

    volume: GuestVolume


async def _look(env: Environment, run: Run[RebuildRootVolume]) -> Root:
    """Whatever would stop the writing is best found while the guest runs. Spec: EMV-39."""
    devices = await env.database.read(lambda conn: block_devices.of_server(conn, run.subject))
    device = next((one for one in devices if one.boot_index == 0 and one.volume_id is not None), None)
    if device is None or device.volume_id is None:
        raise InvalidVolume(f"Server {run.subject} has no root volume.")
    volume = await env.volumes.volume(None, device.volume_id)
    if volume.status not in WRITABLE:
        raise InvalidVolume(f"No image can be written into volume {volume.id} while it is {volume.status}.")
    if any(one.server_id != run.subject for one in volume.attachments):
        raise InvalidVolume(f"No image can be written into volume {volume.id}: another server has it, too.")
    return Root(
        device=device.uuid, volume_id=volume.id, multiattach=volume.multiattach,
        limit=env.options.reimage_timeout_per_gb * volume.size, counts=env.options.volume_usage_poll_interval > 0,
    )


async def _describe(env: Environment, run: Run[RebuildRootVolume]) -> Anew:
    """Where the root volume is reached is asked when it has its new data."""
    return await describe_anew(env, run, but=run.output(Root).device)


def _volume(run: Run[RebuildRootVolume]) -> VolumeRef:
    return VolumeRef(run.subject, run.output(Root).volume_id)


def _counting_host(run: Run[RebuildRootVolume]) -> str | None:
    return host_of(run) if run.output(Root).counts else None


def _count(tx: Tx, run: Run[RebuildRootVolume]) -> None:
    """Spec: RBD-38."""
    usage = run.output(Used).usage
    if usage is not None:
        count_and_tell(
            tx.conn, run.subject, run.output(Root).volume_id, usage, host=host_of(run), now=tx.now,
            asker=run.record.asker or Asker(), ended=True,
        )


async def _device(env: Environment, run: Run[RebuildRootVolume]) -> BlockDevice:
    """Raises NotFound: the server is gone."""
    return await env.database.read(lambda conn: block_devices.get(conn, run.output(Root).device))


async def _reserve(env: Environment, run: Run[RebuildRootVolume]) -> None:
    """The guest is gone, so the host loses the volume. Spec: RBD-38, RBD-39."""
    device = await reserve_again(env, run.subject, await _device(env, run))
    if device.attachment_id is None:
        raise InvalidVolume(f"Volume {device.volume_id} cannot be reserved for server {run.subject}.")


async def _connect_again(env: Environment, run: Run[RebuildRootVolume]) -> None:
    """Unless what is on it is spoilt. What is still being written is waited for, if anybody needs it. Spec: RBD-39."""
    volume_id = run.output(Root).volume_id
    try:
        device = await _device(env, run)
        if device.connection_info is None and await _is_ready(env, run, volume_id):
            device = await _connect(env, run, device)
    except NotFound as error:
        log.info("root volume not connected again", instance=run.subject, volume=volume_id, error=error.message)
        return
    except InvalidVolume as error:
        raise Retryable(error.message) from error
    known = (device.attachment_id,) if device.attachment_id is not None else ()
    await env.volumes.discard_attachments(volume_id, run.subject, known)


async def _is_ready(env: Environment, run: Run[RebuildRootVolume], volume_id: str) -> bool:
    status = (await env.volumes.volume(None, volume_id)).status
    if status in BEING_MADE:
        failure = run.record.failure
        if failure is None or not failure.cancelled:
            raise Retryable(f"Volume {volume_id} is {status}.")
    return status not in ("error", *BEING_MADE)


async def _write(env: Environment, run: Run[RebuildRootVolume]) -> None:
    """Spec: EMV-38."""
    with told_as_block_devices():
        await env.volumes.reimage(run.output(Root).volume_id, run.request.image_id)


def _awaited(run: Run[RebuildRootVolume]) -> tuple[str, ...]:
    return (event_key(REIMAGED, run.output(Root).volume_id),)


async def _connect_root(env: Environment, run: Run[RebuildRootVolume]) -> RootConnected:
    """The volume service may still be at it: it tells before it has ended, and may have been asked twice. Spec:
    RBD-41, VOL-25."""
    with told_as_block_devices():
        try:
            return RootConnected(guest_volume(await _connect(env, run, await _device(env, run))))
        except InvalidVolume as error:
            raise Retryable(error.message) from error


async def _connect(env: Environment, run: Run[RebuildRootVolume], device: BlockDevice) -> BlockDevice:
    connector = run.output(Connector).connector | {"mountpoint": device.device_name}
    made = await connect(env, run.subject, device, connector)
    await env.volumes.complete_attachment(made.id)
    return await keep_connection(env, device.uuid, made, state=AttachState.ATTACHED)


def _guest(run: Run[RebuildRootVolume]) -> Guest:
    guest, root = guest_anew(run), run.output(RootConnected).volume
    others = tuple(one for one in guest.volumes if one.id != root.id)
    return msgspec.structs.replace(guest, volumes=(root, *others))


def _told_of_volume(run: Run[Any], _instance: Instance) -> Payload:
    return {"volume_id": run.output(Root).volume_id}


REBUILD_ROOT_VOLUME = Operation(
    name="rebuild-root-volume",
    action="rebuild",
    event="compute_rebuild_instance",
    notices=(
        *NOTICES,
        *announce_part(
            "volume_detach", RESERVE, older="volume.detach", once=True, fields=_told_of_volume,
            usage=_told_of_volume, payload="InstanceActionVolumePayload", version="1.6",
        ),
    ),
    request=RebuildRootVolume,
    begins=begin,
    steps=(
        Here("look at root volume", _look, undo=NoUndo("changes nothing")),
        Here("describe guest", _describe, undo=restore_image, undo_owed=True),
        OnHost("check host", host_of, CHECK, lambda run: AbilityArgs(multiattach=run.output(Root).multiattach),
               undo=NoUndo("changes nothing")),
        PREPARE,
        OnHost("read usage", _counting_host, USAGE, _volume, undo=NoUndo("changes nothing"), recorded=_count),
        *TAKE_AWAY,
        Here(RESERVE, _reserve, undo=_connect_again, undo_owed=True),
        Here("write image", _write, undo=WRITTEN),
        Await(IMAGE_WRITTEN, _awaited, timeout=lambda run: run.output(Root).limit),
        Here("connect root volume", _connect_root, undo=WRITTEN, timeout=600, retries=100,
             pause=lambda attempt: min(0.1 * 2**attempt, 5.0)),
        *start_anew(_guest),
    ),
    ends=rebuilt,
    fails=failed,
    scrub=without_secrets,
)
