"""What a rescue needs on a host beside powering the guest off and on."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import GuestArgs, GuestRef, Powered, check_abilities
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest


class TidyArgs(msgspec.Struct, frozen=True, kw_only=True):
    """kept: also what a resize has kept."""

    uuid: str
    kept: bool


class PutBackArgs(msgspec.Struct, frozen=True, kw_only=True):
    """The guest as it was.

    Args:
        cut: it may run from the rescue disk by now. run: it ran from its own disk before.
    """

    guest: Guest
    cut: bool
    run: bool


async def _prepare_rescue(host: HostEnvironment, args: GuestArgs) -> None:
    await check_abilities(host, args.guest)
    await host.driver.prepare_rescue(args.guest)


async def _drop_rescue(host: HostEnvironment, args: GuestRef) -> None:
    await host.driver.drop_rescue(args.uuid)


async def _tidy_disks(host: HostEnvironment, args: TidyArgs) -> None:
    await host.driver.tidy_disks(args.uuid, kept=args.kept)


async def _put_back(host: HostEnvironment, args: PutBackArgs) -> Powered:
    """A guest that was not switched off yet goes on as it is."""
    if args.cut:
        await host.driver.power_off(args.guest.uuid, grace=0.0, interval=0.0)
    if args.run:
        await host.driver.plug(args.guest)
        await host.driver.power_on(args.guest)
    return Powered(await host.driver.power_state(args.guest.uuid))


PREPARE_RESCUE = HostStep(
    "guest.prepare_rescue", _prepare_rescue, GuestArgs, interruptible=True, heavy=True, disk_work=True
)
DROP_RESCUE = HostStep("guest.drop_rescue", _drop_rescue, GuestRef)
TIDY_DISKS = HostStep("guest.tidy_disks", _tidy_disks, TidyArgs)
PUT_BACK = HostStep("guest.put_back", _put_back, PutBackArgs, Powered)

STEPS = (PREPARE_RESCUE, DROP_RESCUE, TIDY_DISKS, PUT_BACK)
