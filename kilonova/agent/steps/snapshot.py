"""Making an image of a guest's disk: copying it into a file of the host, and sending that to the image service."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import NotSupported
from kilonova.engine.operation import HostStep
from kilonova.shapes.quiesce import Quiesce


class SnapshotArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What to copy.

    Args:
        uuid: of the guest. image_id: of the image that its disk becomes.
        quiesce: whether the file systems of a guest that runs are held still.
    """

    uuid: str
    image_id: str
    quiesce: Quiesce = Quiesce.NO


async def _take(host: HostEnvironment, args: SnapshotArgs) -> None:
    await host.driver.snapshot(args.uuid, args.image_id, quiesce=args.quiesce)


async def _upload(host: HostEnvironment, args: SnapshotArgs) -> None:
    """The file is gone once the image has its data; an image that has it already needs no file."""
    if host.images is None:
        raise NotSupported(f"Host {host.host} has no way to the image service.", hint="run it with `kilonova up`")
    await host.images.upload(args.image_id, host.driver.snapshot_data(args.uuid, args.image_id))
    await host.driver.discard_snapshot(args.uuid, args.image_id)


async def _activate(host: HostEnvironment, args: SnapshotArgs) -> None:
    if host.images is None:
        raise NotSupported(f"Host {host.host} has no way to the image service.", hint="run it with `kilonova up`")
    await host.images.upload(args.image_id, _nothing())


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def _discard(host: HostEnvironment, args: SnapshotArgs) -> None:
    await host.driver.discard_snapshot(args.uuid, args.image_id)


TAKE = HostStep("snapshot.take", _take, SnapshotArgs, interruptible=True, disk_work=True, snapshot=True)
UPLOAD = HostStep("snapshot.upload", _upload, SnapshotArgs, interruptible=True, disk_work=True, snapshot=True)
DISCARD = HostStep("snapshot.discard", _discard, SnapshotArgs)
ACTIVATE = HostStep("snapshot.activate", _activate, SnapshotArgs)
"""An image that has no data gets none, and is active then."""

STEPS = (TAKE, UPLOAD, DISCARD, ACTIVATE)
