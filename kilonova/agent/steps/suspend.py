"""Putting a guest to sleep: its memory goes to the disk of its host, and comes back when it wakes."""

from __future__ import annotations

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import GuestArgs, GuestRef, Powered
from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState
from kilonova.engine.operation import HostStep


async def _suspend(host: HostEnvironment, args: GuestRef) -> Powered:
    await host.driver.suspend(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


async def _suspend_cut_off(host: HostEnvironment, args: GuestRef) -> Powered:
    """The agent died while a guest was being suspended: one that runs is left to run. Spec: SUS-18, INI-107."""
    state = await host.driver.power_state(args.uuid)
    if state is PowerState.RUNNING:
        raise KilonovaError("The service stopped while the guest was being suspended.", hint="suspend it again")
    return await _suspend(host, args)


async def _wake(host: HostEnvironment, args: GuestArgs) -> Powered:
    await host.driver.plug(args.guest)
    await host.driver.wake(args.guest.uuid)
    return Powered(await host.driver.power_state(args.guest.uuid))


async def _rouse(host: HostEnvironment, args: GuestRef) -> Powered:
    """Undo a suspend, whether or not it had its effect, and whatever became of the guest."""
    if await host.driver.power_state(args.uuid) is PowerState.SUSPENDED:
        await host.driver.wake(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


async def _lull(host: HostEnvironment, args: GuestRef) -> Powered:
    """Undo a resume, in the same way."""
    if await host.driver.power_state(args.uuid) is PowerState.RUNNING:
        await host.driver.suspend(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


SUSPEND = HostStep("guest.suspend", _suspend, GuestRef, Powered, after_crash=_suspend_cut_off, disk_work=True)
WAKE = HostStep("guest.wake", _wake, GuestArgs, Powered, disk_work=True)
ROUSE = HostStep("guest.rouse", _rouse, GuestRef, Powered, disk_work=True)
LULL = HostStep("guest.lull", _lull, GuestRef, Powered, disk_work=True)

STEPS = (SUSPEND, WAKE, ROUSE, LULL)
