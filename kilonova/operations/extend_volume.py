"""Extend volume: let the guest see that a volume of its server is larger.

The volume service has extended the volume and tells so; nobody asks for this otherwise. It needs no turn on the server,
so that no event is lost because the server is busy: hosts do one thing at a time with a guest, and a guest without the
volume, or that is off, needs nothing. What the record says follows the guest; what fails leaves it as it was, and is
repeated by the next event.
"""

from __future__ import annotations

import contextlib

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.steps.volumes import EXTEND, ExtendArgs
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import InstanceNotFound, NotSupported, VolumeNotAttached, VolumeNotFound
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.notices import ONLY_FAILURES
from kilonova.operations.records import blame

log = structlog.get_logger(__name__)

GIB = 1 << 30
READS = NoUndo("changes nothing")
LARGER = NoUndo("the volume is larger")


class ExtendVolume(msgspec.Struct, frozen=True):
    """Which one."""

    volume_id: str


class Place(msgspec.Struct, frozen=True):
    """Where the guest is; None if it is on no host, or has the volume no more."""

    host: str | None


class Extended(msgspec.Struct, frozen=True):
    """The volume now. size: GiB. awaited: the volume service waits to hear of the guest."""

    size: int
    awaited: bool


def extensible(conn: sa.Connection, server: str, volume_id: str) -> BlockDevice | None:
    """The volume of a server that a guest may have; otherwise a warning, and None. Spec: XEV-24, XEV-25."""
    try:
        device = block_devices.of_volume(conn, server, volume_id)
    except VolumeNotAttached:
        log.warning("a volume was extended that the server does not have", instance=server, volume=volume_id)
        return None
    if device.connection_info is None:
        log.warning("a volume was extended that is on no host", instance=server, volume=volume_id)
        return None
    return device


def _look(tx: Tx, run: Run[ExtendVolume]) -> Place:
    """A volume or a server that is gone meanwhile needs nothing. Spec: XEV-31."""
    with contextlib.suppress(InstanceNotFound, VolumeNotAttached):
        block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
        return Place(instances.get(tx.conn, run.subject).host)
    return Place(None)


async def _read(env: Environment, run: Run[ExtendVolume]) -> Extended:
    volume = await env.volumes.volume(None, run.request.volume_id)
    return Extended(volume.size, volume.status == "extending")


async def _tell(env: Environment, run: Run[ExtendVolume], *, error: bool) -> None:
    """Only a service that waits wants to know, which is asked again if it did not say. For all others the volume is as
    large as it is. Spec: EMV-29."""
    with contextlib.suppress(NotSupported, VolumeNotFound):
        found = run.find(Extended) or await _read(env, run)
        if found.awaited:
            await env.volumes.extend_completed(run.request.volume_id, error=error)


async def _tell_failure(env: Environment, run: Run[ExtendVolume]) -> None:
    await _tell(env, run, error=True)


async def _tell_success(env: Environment, run: Run[ExtendVolume]) -> None:
    await _tell(env, run, error=False)


def _args(run: Run[ExtendVolume]) -> ExtendArgs:
    return ExtendArgs(run.subject, run.request.volume_id, run.output(Extended).size * GIB)


def _seen(tx: Tx, run: Run[ExtendVolume]) -> None:
    """Of two events at once the larger size stays. Spec: XEV-26, XEV-30."""
    with contextlib.suppress(VolumeNotAttached):
        device = block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
        size = max(device.volume_size or 0, run.output(Extended).size)
        block_devices.update(tx.conn, device.uuid, now=tx.now, was=tuple(AttachState), volume_size=size)


def _extended(_tx: Tx, _run: Run[ExtendVolume]) -> None:
    return None


def _failed(tx: Tx, run: Run[ExtendVolume], failure: Failure) -> None:
    """The states of the server stay; one that is gone needs no fault. Spec: XEV-29, XEV-31."""
    with contextlib.suppress(InstanceNotFound, VolumeNotAttached):
        instances.get(tx.conn, run.subject)
        block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
        blame(tx, run, failure)


EXTEND_VOLUME = Operation(
    name="extend-volume",
    action="extend_volume",
    event="compute_extend_volume",
    notices=ONLY_FAILURES,
    request=ExtendVolume,
    exclusive=False,
    steps=(
        Record("find place", _look, undo=READS),
        Here("read size", _read, undo=_tell_failure, undo_owed=True),
        OnHost("extend volume", lambda run: run.output(Place).host, EXTEND, _args, undo=LARGER,
               recorded=_seen, timeout=600, retries=10),
        Here("tell volume service", _tell_success, undo=LARGER, owed=True),
    ),
    ends=_extended,
    fails=_failed,
)
