"""The steps by which a new guest gets the volumes of its server, which keep their reservations if the host is left.

A volume that a host cannot use any more gets a reservation first and loses its connection then, so that nobody else
can take it in between.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.volumes import CHECK, AbilityArgs, Connector
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import (
    InstanceNotFound,
    InvalidBlockDevice,
    InvalidVolume,
    KilonovaError,
    OverQuota,
    Retryable,
    ServiceUnavailable,
    StaleState,
    VolumeAttachmentNotFound,
    VolumeNotFound,
)
from kilonova.engine.operation import AnyRun, Here, NoUndo, OnHost, Step, Tx
from kilonova.hypervisor.volumes import GuestVolume, guest_volume
from kilonova.operations.environment import Environment
from kilonova.operations.volumes import each, keep_connection
from kilonova.services.volumes import Attachment

log = structlog.get_logger(__name__)

RESERVED = "reserved"
"""What an attachment is called that no host has."""
_PASSED_ON = (InvalidBlockDevice, InstanceNotFound, StaleState, ServiceUnavailable, Retryable)


class VolumesConnected(msgspec.Struct, frozen=True):
    """The volumes as the guest is to have them."""

    volumes: tuple[GuestVolume, ...]


def volumes_of(run: AnyRun) -> tuple[GuestVolume, ...]:
    """What the steps have connected; nothing for a server without volumes."""
    found = run.find(VolumesConnected)
    return found.volumes if found is not None else ()


@contextlib.contextmanager
def told_as_block_devices() -> Iterator[None]:
    """Errors of the volume service as errors of block devices, of unexpected ones only the class. What may pass, a
    quota, and a server that is gone or was taken over are told as they are. Spec: BDM-22, BDM-23, BDM-26, BDM-27,
    BLD-107."""
    try:
        yield
    except OverQuota as error:
        log.warning("no quota for a volume", error=error.message)
        raise
    except _PASSED_ON:
        raise
    except KilonovaError as error:
        log.warning("block devices not prepared", error=error.message)
        raise InvalidBlockDevice(error.message) from error
    except Exception as error:
        log.exception("block devices not prepared")
        raise InvalidBlockDevice(f"preparing them failed unexpectedly ({type(error).__name__}).") from error


class VolumeSteps:
    """Connect the volumes that the server's record names.

    Args:
        host: of the run: where the guest is made. without: of the run: the server has no volumes.
        stays: of the run: the guest may be left on the host, with its volumes.
        multiattach: of the run: one of them is a volume that several servers may have.
    """

    def __init__(
        self, host: Callable[[Any], str], without: Callable[[Any], bool], stays: Callable[[Any], bool],
        multiattach: Callable[[Any], bool],
    ) -> None:
        self._host = host
        self._without = without
        self._stays = stays
        self._multiattach = multiattach

    @property
    def connect(self) -> tuple[Step, ...]:
        """Before the guest is described."""
        return (
            OnHost("check host", lambda run: None if self._without(run) else self._host(run), CHECK,
                   lambda run: AbilityArgs(multiattach=self._multiattach(run)), undo=NoUndo("changes nothing")),
            Here("connect volumes", self._connect, undo=self._disconnect, undone=self._left, given=self._without,
                 undo_owed=True),
        )

    @property
    def complete(self) -> tuple[Step, ...]:
        """After the guest has started."""
        return (
            Here("complete attachments", self._complete, undo=NoUndo("the attachments are replaced"),
                 given=self._without, retries=10, owed=True),
        )

    async def _connect(self, env: Environment, run: AnyRun) -> VolumesConnected:
        """What is needed to reach a volume is kept before the guest is made. Spec: BDM-21, BLD-72, BLD-73."""
        connector = run.output(Connector).connector
        connected = []
        for device in await env.database.read(lambda conn: _volumes(conn, run.subject)):
            with told_as_block_devices():
                info = connector | {"mountpoint": device.device_name}
                made = await connect(env, run.subject, device, info)
                await env.database.read(lambda conn: instances.get(conn, run.subject))
                kept = await keep_connection(env, device.uuid, made, state=AttachState.ATTACHING)
                connected.append(guest_volume(kept))
        return VolumesConnected(tuple(connected))

    async def _disconnect(self, env: Environment, run: AnyRun) -> None:
        """Each volume that this host may have got is only reserved again, unless a guest may be left there: then it is
        in use until the server is deleted. It may be late: when the server is on another host, which took that over.
        Spec: BDM-28, BLD-72, BLD-81."""
        if self._without(run):
            return
        if self._stays(run):
            await self._complete(env, run)
            return
        try:
            instance, devices = await env.database.read(
                lambda conn: (instances.get(conn, run.subject), _volumes(conn, run.subject))
            )
        except InstanceNotFound:
            return
        if instance.host in (None, self._host(run)):
            await each(devices, lambda device: _reserve_again(env, run.subject, device))

    def _left(self, tx: Tx, run: AnyRun) -> None:
        if self._stays(run):
            attached(tx, run.subject)

    async def _complete(self, env: Environment, run: AnyRun) -> None:
        """Spec: VOL-25."""
        devices = await env.database.read(lambda conn: block_devices.of_server(conn, run.subject))
        for device in devices:
            if device.attachment_id is not None and device.connection_info is not None:
                with contextlib.suppress(VolumeAttachmentNotFound):  # it was detached before this was paid
                    await env.volumes.complete_attachment(device.attachment_id)


def attached(tx: Tx, server: str) -> None:
    """The guest of a server has the volumes that it was given."""
    for device in block_devices.of_server(tx.conn, server):
        block_devices.update(
            tx.conn, device.uuid, now=tx.now, was=(AttachState.ATTACHING,), state=AttachState.ATTACHED
        )


def _volumes(conn: sa.Connection, server: str) -> list[BlockDevice]:
    """Raises InstanceNotFound."""
    instances.get(conn, server)
    return [device for device in block_devices.of_server(conn, server) if device.volume_id is not None]


async def connect(env: Environment, server: str, device: BlockDevice, connector: dict[str, Any]) -> Attachment:
    """Connect a volume to a host. What is connected already may be so to the host before this one."""
    if device.connection_info is not None:
        device = await reserve_again(env, server, device)
    assert device.volume_id is not None
    if device.attachment_id is None:
        return await env.volumes.create_attachment(device.volume_id, server, (), connector=connector)
    return await env.volumes.update_attachment(device.attachment_id, connector)


async def _reserve_again(env: Environment, server: str, device: BlockDevice) -> None:
    await reserve_again(env, server, device)


async def reserve_again(env: Environment, server: str, device: BlockDevice) -> BlockDevice:
    """Give a server a reservation of a volume in place of whatever attachment it has, and leave no other; one that it
    has already stays. A volume that cannot be reserved has none then. Spec: BDM-28, BLD-72, RBD-38, RBD-39."""
    assert device.volume_id is not None
    known = (device.attachment_id,) if device.attachment_id is not None else ()
    kept = device.attachment_id if await _is_reserved(env, device) else None
    try:
        kept = kept or (await env.volumes.create_attachment(device.volume_id, server, known)).id
    except (VolumeNotFound, InvalidVolume) as error:
        log.warning("volume not reserved again", instance=server, volume=device.volume_id, error=error.message)
    changes = {"attachment_id": kept, "connection_info": None, "state": AttachState.RESERVED}
    now = env.clock.now()
    await env.database.write(
        lambda conn: block_devices.update(conn, device.uuid, now=now, was=tuple(AttachState), **changes)
    )
    await env.volumes.discard_attachments(device.volume_id, server, (kept,) if kept is not None else ())
    return msgspec.structs.replace(device, **changes)


async def _is_reserved(env: Environment, device: BlockDevice) -> bool:
    if device.connection_info is not None or device.attachment_id is None:
        return False
    try:
        return (await env.volumes.attachment(device.attachment_id)).status == RESERVED
    except VolumeAttachmentNotFound:
        return False
