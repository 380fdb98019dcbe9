"""The volumes of a new server before any host has to do with it: those of its user are reserved, others are made.

They belong to the server and not to a host: a build that goes to another host takes them along. A server that
could not be built keeps its reservations, and the volumes that were made to outlive it; they go with it when it is
deleted. What was made to go with the server goes when its build has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db import block_devices, instances
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InstanceNotFound, InvalidVolume, StaleState, VolumeNotCreated, VolumeNotFound
from kilonova.domain.operation import Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import AnyRun, Here, NoUndo, Step, Tx
from kilonova.operations.connect_volumes import told_as_block_devices
from kilonova.operations.environment import Environment
from kilonova.operations.records import settle
from kilonova.operations.release_volumes import release_all
from kilonova.operations.volumes import each
from kilonova.services.volumes import BEING_MADE, NewVolume, Volume

log = structlog.get_logger(__name__)

WAIT_LIMIT = 86400.0
"""Seconds; how long volumes are waited for is a matter of options."""
PREPARING = (TaskState.SCHEDULING, TaskState.BLOCK_DEVICE_MAPPING, None)
"""Task states of a server that no host has yet."""


class VolumesMade(msgspec.Struct, frozen=True):
    """multiattach: one of them is a volume that several servers may have."""

    multiattach: bool


class Waited(msgspec.Struct, frozen=True):
    """How often the volumes were looked at until all were available."""

    looks: int


def requested(run: AnyRun) -> list[BlockDevice]:
    """The volumes that were asked for."""
    return [device for device in run.request.spec.block_devices if device.is_volume]


def has_none(run: AnyRun) -> bool:
    """Whether the server was asked for without volumes."""
    return not requested(run)


def shared(run: AnyRun) -> bool:
    """Whether one of its volumes is one that several servers may have."""
    found = run.find(VolumesMade)
    return found is not None and found.multiattach


def making(stays: Callable[[Any], bool]) -> tuple[Step, ...]:
    """The steps. stays: of the run: a guest may be left on a host, with its volumes."""
    async def abandon(env: Environment, run: AnyRun) -> None:
        if not (has_none(run) or stays(run)):
            await _abandon(env, run)

    return (
        Here("make volumes", _make, undo=abandon, recorded=_preparing, given=has_none, undo_owed=True,
             lasting=True),
        Here("wait for volumes", _wait, undo=NoUndo("only looks"), timeout=WAIT_LIMIT, retries=0,
             given=lambda run: all(device.source_type == "volume" for device in requested(run))),
    )


async def _make(env: Environment, run: AnyRun) -> VolumesMade:
    """The reservation is the check: what it refuses does not become the server's. The id of a volume that is made is
    kept at once. Spec: BDM-09, BDM-33, BDM-34, BDM-35, BDM-36, BLD-73."""
    found: list[Volume] = []
    for device in await env.database.read(lambda conn: _devices(conn, run.subject)):
        with told_as_block_devices():
            if device.source_type == "volume":
                found.append(await _reserve(env, run.subject, device))
            else:
                found.append(await _create(env, run, device))
    return VolumesMade(any(volume.multiattach for volume in found))


async def _reserve(env: Environment, server: str, device: BlockDevice) -> Volume:
    """Raises VolumeNotFound, InvalidVolume: the server does not get it."""
    assert device.volume_id is not None
    try:
        if device.attachment_id is None:
            made = await env.volumes.create_attachment(device.volume_id, server, ())
            await _keep(env, device, attachment_id=made.id)
        return await env.volumes.volume(None, device.volume_id)
    except (VolumeNotFound, InvalidVolume):
        await env.database.write(lambda conn: block_devices.remove(conn, device.uuid))
        raise


async def _create(env: Environment, run: AnyRun, device: BlockDevice) -> Volume:
    if device.volume_id is not None:
        return await env.volumes.volume(None, device.volume_id)
    spec = run.request.spec
    asker = run.record.asker
    context = RequestContext(
        request_id=asker.request_id if asker is not None else "", user_id=spec.user_id, project_id=spec.project_id
    )
    made = await env.volumes.create_volume(context, NewVolume(
        key=device.uuid, size=device.volume_size, image_id=device.image_id, snapshot_id=device.snapshot_id,
        volume_type=device.volume_type,
    ))
    await _keep(env, device, volume_id=made.id)
    return made


async def _keep(env: Environment, device: BlockDevice, **changes: Any) -> None:
    now = env.clock.now()
    await env.database.write(
        lambda conn: block_devices.update(conn, device.uuid, now=now, was=tuple(AttachState), **changes)
    )


def _preparing(tx: Tx, run: AnyRun) -> None:
    settle(tx, run, owned=PREPARING, vm=(VmState.BUILDING,), task_state=TaskState.BLOCK_DEVICE_MAPPING)


async def _wait(env: Environment, run: AnyRun) -> Waited:
    """Until all that are made are available. Nothing is waited for a server that is deleted, or was taken over. Spec:
    BDM-01 to BDM-08."""
    began = env.clock.monotonic()
    looks = 1 + max(0, env.options.block_device_allocate_retries)
    devices = await env.database.read(lambda conn: _devices(conn, run.subject))
    missing = [device for device in devices if device.attachment_id is None]
    for look in range(1, looks + 1):
        for device in tuple(missing):
            assert device.volume_id is not None
            status = await _status(env, device.volume_id)
            if status == "available":
                missing.remove(device)
            elif status not in BEING_MADE or look == looks:
                waited = int(env.clock.monotonic() - began)
                log.warning("volume not made", instance=run.subject, volume=device.volume_id, status=status)
                raise VolumeNotCreated(device.volume_id, seconds=waited, attempts=look, status=status)
        if not missing:
            return Waited(look)
        await env.clock.sleep(env.options.block_device_allocate_retries_interval)
        await env.database.read(lambda conn: _check_wanted(conn, run.subject))
    raise AssertionError("the last look returns or raises")


async def _status(env: Environment, volume_id: str) -> str:
    with told_as_block_devices():
        return (await env.volumes.volume(None, volume_id)).status


def _check_wanted(conn: sa.Connection, server: str) -> None:
    """Raises InstanceNotFound, StaleState. Spec: BDM-08, DEL-44."""
    instance = instances.get(conn, server)
    if instance.vm_state is not VmState.BUILDING or instance.task_state not in PREPARING:
        raise StaleState(f"Instance {server} is not being built any more.")


def _devices(conn: sa.Connection, server: str) -> list[BlockDevice]:
    """Raises InstanceNotFound."""
    instances.get(conn, server)
    return block_devices.of_server(conn, server)


async def _abandon(env: Environment, run: AnyRun) -> None:
    """Volumes that were made to go with the server go, and reservations of which no record tells, because the service
    died before it was written. If there is no record of the server any more, no delete will release the others: that is
    done here. Spec: BDM-10, BDM-28, BLD-74, BLD-76, DEL-21, DEL-22."""
    def find(conn: sa.Connection) -> tuple[bool, dict[str, BlockDevice]]:
        kept = {device.uuid: device for device in block_devices.of_server(conn, run.subject)}
        try:
            instances.get(conn, run.subject)
        except InstanceNotFound:
            return True, kept
        return False, kept

    gone, kept = await env.database.read(find)
    if gone:
        await release_all(env, run.subject)

    async def release(device: BlockDevice) -> None:
        device = kept.get(device.uuid, device)
        goes = device.source_type != "volume" and device.delete_on_termination
        if device.volume_id is not None:
            known = () if goes or gone or device.attachment_id is None else (device.attachment_id,)
            await env.volumes.discard_attachments(device.volume_id, run.subject, known)
        if goes:
            await env.volumes.discard_volume(device.uuid)
        if gone:
            await env.database.write(lambda conn: block_devices.remove(conn, device.uuid))
        elif goes:
            await _keep(env, device, volume_id=None, attachment_id=None, connection_info=None,
                        state=AttachState.RESERVED)

    await each(requested(run), release)


def with_kept_volumes(tx: Tx, run: AnyRun, failure: Failure) -> Failure:
    """The failure of a build, with the volumes that were made for it and stay. Spec: BDM-10, DEL-21."""
    made = [
        device.volume_id for device in block_devices.of_server(tx.conn, run.subject)
        if device.source_type != "volume" and device.volume_id is not None and not device.delete_on_termination
    ]
    if not made or failure.cancelled:
        return failure
    text = f"{failure.message} Volumes that were made for the server are kept: {', '.join(made)}."
    return msgspec.structs.replace(failure, message=text)
