"""Giving a guest another shape, and taking that back."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.domain.states import PowerState
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest

log = structlog.get_logger(__name__)


class ResizeDisksArgs(msgspec.Struct, frozen=True, kw_only=True):
    """old, new: the guest before and after. keep: the name under which the old disks are kept."""

    old: Guest
    new: Guest
    keep: str


class RevertDisksArgs(msgspec.Struct, frozen=True, kw_only=True):
    """guest: with the shape of the disks that were kept under the name `keep`."""

    guest: Guest
    keep: str


class DropDisksArgs(msgspec.Struct, frozen=True, kw_only=True):
    """keep: the name under which the disks to be removed were kept."""

    uuid: str
    keep: str


class BringBackArgs(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it was.

    Args:
        running: whether it is to run. touched: whether its disks may have been changed; then the old ones, kept under
            the name `keep`, are put back first.
    """

    guest: Guest
    running: bool
    touched: bool
    keep: str


class BroughtBack(msgspec.Struct, frozen=True, kw_only=True):
    """error: why the guest could not be started again, "" if it runs or was not meant to."""

    power_state: PowerState
    error: str = ""


async def _resize_disks(host: HostEnvironment, args: ResizeDisksArgs) -> None:
    await host.driver.resize_disks(args.old, args.new, keep=args.keep)


async def _revert_disks(host: HostEnvironment, args: RevertDisksArgs) -> None:
    await host.driver.revert_disks(args.guest, keep=args.keep)


async def _drop_disks(host: HostEnvironment, args: DropDisksArgs) -> None:
    await host.driver.drop_kept_disks(args.uuid, keep=args.keep)


async def _bring_back(host: HostEnvironment, args: BringBackArgs) -> BroughtBack:
    """One step for guest and disks, so that the guest is never started with disks that are not its own. A guest that
    cannot be started again is no reason to try for ever: the server tells it. Spec: MIG-69, INI-166."""
    error = ""
    if args.touched:
        await host.driver.power_off(args.guest.uuid, grace=0.0, interval=0.0)
        await host.driver.revert_disks(args.guest, keep=args.keep)
    if args.running:
        try:
            await host.driver.plug(args.guest)
            await host.driver.power_on(args.guest)
        except Retryable:
            raise
        except KilonovaError as raised:
            log.warning("guest not started again", host=host.host, instance=args.guest.uuid, exc_info=raised)
            error = str(raised)
    return BroughtBack(power_state=await host.driver.power_state(args.guest.uuid), error=error)


RESIZE_DISKS = HostStep("guest.resize_disks", _resize_disks, ResizeDisksArgs, disk_work=True)
REVERT_DISKS = HostStep("guest.revert_disks", _revert_disks, RevertDisksArgs)
DROP_DISKS = HostStep("guest.drop_disks", _drop_disks, DropDisksArgs)
BRING_BACK = HostStep("guest.bring_back", _bring_back, BringBackArgs, BroughtBack)

STEPS = (RESIZE_DISKS, REVERT_DISKS, DROP_DISKS, BRING_BACK)
