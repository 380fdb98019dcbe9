"""Exchanging the disks of a guest: made beside the old ones, put in their place, and back if that was too early."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import DisksMade, GuestArgs, GuestRef, check_abilities
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest


class PrepareArgs(msgspec.Struct, frozen=True, kw_only=True):
    """keep_ephemeral: the guest keeps its ephemeral and swap disks."""

    guest: Guest
    keep_ephemeral: bool


async def _prepare_disks(host: HostEnvironment, args: PrepareArgs) -> None:
    await check_abilities(host, args.guest)
    await host.driver.prepare_disks(args.guest, keep_ephemeral=args.keep_ephemeral)


async def _replace_disks(host: HostEnvironment, args: GuestArgs) -> DisksMade:
    await host.driver.replace_disks(args.guest)
    await host.driver.plug(args.guest)
    return DisksMade(host.driver.root_device_name(args.guest))


async def _restore_disks(host: HostEnvironment, args: GuestRef) -> None:
    await host.driver.restore_disks(args.uuid)


async def _drop_old_disks(host: HostEnvironment, args: GuestRef) -> None:
    await host.driver.drop_old_disks(args.uuid)


PREPARE_DISKS = HostStep(
    "guest.prepare_disks", _prepare_disks, PrepareArgs, interruptible=True, heavy=True, disk_work=True
)
REPLACE_DISKS = HostStep("guest.replace_disks", _replace_disks, GuestArgs, DisksMade, disk_work=True)
RESTORE_DISKS = HostStep("guest.restore_disks", _restore_disks, GuestRef)
DROP_OLD_DISKS = HostStep("guest.drop_old_disks", _drop_old_disks, GuestRef, disk_work=True)

STEPS = (PREPARE_DISKS, REPLACE_DISKS, RESTORE_DISKS, DROP_OLD_DISKS)
