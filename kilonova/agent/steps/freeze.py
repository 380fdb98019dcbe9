"""Holding the file systems of a guest still while the volume service takes snapshots of its volumes."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.engine.operation import HostStep
from kilonova.shapes.quiesce import Quiesce


class FreezeArgs(msgspec.Struct, frozen=True):
    """uuid: of the guest."""

    uuid: str
    quiesce: Quiesce


async def _freeze(host: HostEnvironment, args: FreezeArgs) -> None:
    await host.driver.freeze(args.uuid, quiesce=args.quiesce)


async def _thaw(host: HostEnvironment, args: FreezeArgs) -> None:
    await host.driver.thaw(args.uuid)


FREEZE = HostStep("guest.freeze", _freeze, FreezeArgs)
THAW = HostStep("guest.thaw", _thaw, FreezeArgs)

STEPS = (FREEZE, THAW)
