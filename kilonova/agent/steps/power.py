"""Making, starting, stopping and removing a guest.

Every step answers with the power state it left behind, so that the record tells the truth without asking again.
"""

from __future__ import annotations

import msgspec
import structlog

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import InvalidInput, KilonovaError, Retryable
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest
from kilonova.imaging.signatures import TRUSTED_CERTS

log = structlog.get_logger(__name__)

DEVICE_TAGGING = "COMPUTE_DEVICE_TAGGING"
"""Trait of a host whose guests can see the tags of their devices."""


class GuestArgs(msgspec.Struct, frozen=True):
    guest: Guest


class SpawnArgs(msgspec.Struct, frozen=True):
    """paused: start with stopped CPUs, until the interfaces are wired."""

    guest: Guest
    paused: bool


class GuestRef(msgspec.Struct, frozen=True, kw_only=True):
    """A guest that may be gone. devnames: its taps."""

    uuid: str
    devnames: tuple[str, ...] = ()


class PowerOffArgs(msgspec.Struct, frozen=True, kw_only=True):
    """grace: seconds for a clean shutdown, 0 for none. interval: seconds between signals. Spec: PWR-04, PWR-05."""

    uuid: str
    grace: float
    interval: float


class RebootArgs(msgspec.Struct, frozen=True, kw_only=True):
    """wait: seconds until a guest that does not obey is rebooted hard."""

    guest: Guest
    wait: float = 0.0


class DisksMade(msgspec.Struct, frozen=True):
    """root_device_name: under which name the guest finds its first disk."""

    root_device_name: str


class Powered(msgspec.Struct, frozen=True):
    """The power state after a step."""

    power_state: PowerState


class PoweredOff(msgspec.Struct, frozen=True, kw_only=True):
    """The power state after a shutdown; was_off: there was nothing to switch off."""

    power_state: PowerState
    was_off: bool


class Rebooted(msgspec.Struct, frozen=True, kw_only=True):
    """How a reboot went.

    Args:
        hard: the power was cut, because that was asked for or because the guest did not obey.
        error: why the hypervisor could not do it, "" if it did.
        note: what the server's history is to tell of it, "" if all went as asked.
    """

    power_state: PowerState
    hard: bool
    error: str = ""
    note: str = ""


async def check_abilities(host: HostEnvironment, guest: Guest) -> None:
    """The scheduler demands what a guest needs of its host; that is checked again here. Raises InvalidInput.

    Spec: BLD-30 to BLD-32, RBD-20.
    """
    tagged = bool(guest.metadata.disks) or any(vif.tag for vif in guest.vifs)
    if guest.trusted_certs or tagged:
        able = (await host.driver.inventory()).traits
        if tagged and DEVICE_TAGGING not in able:
            raise InvalidInput(f"Host {host.host} cannot show tags of devices to guests.")
        if guest.trusted_certs and TRUSTED_CERTS not in able:
            raise InvalidInput(f"Host {host.host} cannot check images against trusted certificates.")


async def _create_disks(host: HostEnvironment, args: GuestArgs) -> DisksMade:
    await check_abilities(host, args.guest)
    await host.driver.create_disks(args.guest)
    await host.driver.plug(args.guest)
    return DisksMade(host.driver.root_device_name(args.guest))


async def _remove(host: HostEnvironment, args: GuestRef) -> None:
    """Guest first, then its interfaces, then its disks. Spec: DEL-02."""
    await _destroy(host, args)
    await host.driver.delete_disks(args.uuid)


async def _spawn(host: HostEnvironment, args: SpawnArgs) -> Powered:
    await host.driver.spawn(args.guest, paused=args.paused)
    return Powered(await host.driver.power_state(args.guest.uuid))


async def _destroy(host: HostEnvironment, args: GuestRef) -> None:
    """An interface that cannot be unplugged (it may never have been plugged) keeps nothing else. Spec: NET-28."""
    await host.driver.destroy(args.uuid)
    try:
        await host.driver.unplug(args.uuid, args.devnames)
    except Retryable:
        raise
    except KilonovaError as error:
        log.warning("interfaces not unplugged", host=host.host, instance=args.uuid, error=str(error))


async def _resume(host: HostEnvironment, args: GuestRef) -> Powered:
    await host.driver.resume(args.uuid)
    return Powered(await host.driver.power_state(args.uuid))


async def _look(host: HostEnvironment, args: GuestRef) -> Powered:
    return Powered(await host.driver.power_state(args.uuid))


async def _power_off(host: HostEnvironment, args: PowerOffArgs) -> PoweredOff:
    """A guest that is not there is off. Spec: PWR-09, PWR-16."""
    before = await host.driver.power_state(args.uuid)
    if before is not PowerState.NOSTATE:
        await host.driver.power_off(args.uuid, grace=args.grace, interval=args.interval)
    return PoweredOff(power_state=await host.driver.power_state(args.uuid), was_off=before in GUEST_OFF)


async def _power_on(host: HostEnvironment, args: GuestArgs) -> Powered:
    await host.driver.plug(args.guest)
    await host.driver.power_on(args.guest)
    return Powered(await host.driver.power_state(args.guest.uuid))


async def _soft_reboot(host: HostEnvironment, args: RebootArgs) -> Rebooted:
    if await host.driver.power_state(args.guest.uuid) is not PowerState.RUNNING:
        log.warning("guest to be rebooted does not run", host=host.host, instance=args.guest.uuid)
        return await _hard_reboot(host, args, note="The guest did not run; it was rebooted hard.")
    try:
        if await host.driver.soft_reboot(args.guest, wait=args.wait):
            return Rebooted(power_state=await host.driver.power_state(args.guest.uuid), hard=False)
    except Retryable:
        raise
    except KilonovaError as error:
        return await _failed_reboot(host, args, error, hard=False)
    return await _hard_reboot(
        host, args, note=f"The guest did not shut down within {args.wait:.0f} s; it was rebooted hard."
    )


async def _hard_reboot(host: HostEnvironment, args: RebootArgs, note: str = "") -> Rebooted:
    try:
        await host.driver.plug(args.guest)
        await host.driver.hard_reboot(args.guest)
    except Retryable:
        raise
    except KilonovaError as error:
        return await _failed_reboot(host, args, error, hard=True)
    return Rebooted(power_state=await host.driver.power_state(args.guest.uuid), hard=True, note=note)


async def _failed_reboot(
    host: HostEnvironment, args: RebootArgs, error: KilonovaError, *, hard: bool
) -> Rebooted:
    """A reboot that failed tells in what state it left the guest. Spec: RBT-15, RBT-16, INI-173."""
    log.warning("guest not rebooted", host=host.host, instance=args.guest.uuid, exc_info=error)
    state = await host.driver.power_state(args.guest.uuid)
    return Rebooted(power_state=state, hard=hard, error=str(error))


async def _reboot_cut_off(host: HostEnvironment, args: RebootArgs) -> Rebooted:
    """The agent died during a reboot. A guest that runs has arrived; any other is started by a hard reboot, which
    trusts nothing that it finds. Spec: INI-083 to INI-085, INI-139, INI-143, INI-147, INI-148."""
    state = await host.driver.power_state(args.guest.uuid)
    if state is PowerState.RUNNING:
        log.warning("reboot was cut off, and the guest runs", host=host.host, instance=args.guest.uuid)
        return Rebooted(power_state=state, hard=False, note="The service stopped meanwhile; the guest runs.")
    return await _hard_reboot(host, args, note="The service stopped meanwhile; the guest was rebooted hard.")


CREATE_DISKS = HostStep(
    "guest.create_disks", _create_disks, GuestArgs, DisksMade, interruptible=True, heavy=True, disk_work=True
)
SPAWN = HostStep("guest.spawn", _spawn, SpawnArgs, Powered, heavy=True)
DESTROY = HostStep("guest.destroy", _destroy, GuestRef)
REMOVE = HostStep("guest.remove", _remove, GuestRef)
RESUME = HostStep("guest.resume", _resume, GuestRef, Powered)
LOOK = HostStep("guest.look", _look, GuestRef, Powered)
POWER_OFF = HostStep("guest.power_off", _power_off, PowerOffArgs, PoweredOff, interruptible=True)
POWER_ON = HostStep("guest.power_on", _power_on, GuestArgs, Powered)
SOFT_REBOOT = HostStep(
    "guest.soft_reboot", _soft_reboot, RebootArgs, Rebooted, after_crash=_reboot_cut_off, interruptible=True
)
HARD_REBOOT = HostStep("guest.hard_reboot", _hard_reboot, RebootArgs, Rebooted, after_crash=_reboot_cut_off)

STEPS = (CREATE_DISKS, SPAWN, DESTROY, REMOVE, RESUME, LOOK, POWER_OFF, POWER_ON, SOFT_REBOOT, HARD_REBOOT)
