"""Holding a guest: its CPUs stand still, its memory stays where it is."""

from __future__ import annotations

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import GuestRef, Powered
from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState
from kilonova.engine.operation import HostStep


async def _pause(host: HostEnvironment, args: GuestRef) -> Powered:
    await host.driver.pause(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


async def _pause_cut_off(host: HostEnvironment, args: GuestRef) -> Powered:
    """The agent died during a pause: one that was lost is not repeated. Spec: SUS-05, SUS-07, INI-085, INI-103."""
    state = await host.driver.power_state(args.uuid)
    if state is not PowerState.PAUSED:
        raise KilonovaError("The service stopped while the guest was being paused.", hint="pause it again")
    return Powered(state)


async def _release(host: HostEnvironment, args: GuestRef) -> Powered:
    """Undo a pause, whether or not it had its effect, and whatever became of the guest."""
    if await host.driver.power_state(args.uuid) is PowerState.PAUSED:
        await host.driver.resume(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


async def _hold(host: HostEnvironment, args: GuestRef) -> Powered:
    """Undo an unpause, in the same way."""
    if await host.driver.power_state(args.uuid) is PowerState.RUNNING:
        await host.driver.pause(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


PAUSE = HostStep("guest.pause", _pause, GuestRef, Powered, after_crash=_pause_cut_off)
RELEASE = HostStep("guest.release", _release, GuestRef, Powered)
HOLD = HostStep("guest.hold", _hold, GuestRef, Powered)

STEPS = (PAUSE, RELEASE, HOLD)
