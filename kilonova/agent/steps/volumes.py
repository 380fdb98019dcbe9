"""Giving a guest a volume, and taking one from it."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import InvalidInput, KilonovaError, NotSupported
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import GuestVolume, VolumeUsage

log = structlog.get_logger(__name__)

ATTACH_WITH_TAG = "COMPUTE_VOLUME_ATTACH_WITH_TAG"
"""Trait of a host whose guests are told of the tags of volumes that they are given."""
MULTI_ATTACH = "COMPUTE_VOLUME_MULTI_ATTACH"
"""Trait of a host whose guests may share volumes."""
CAN_EXTEND = "COMPUTE_VOLUME_EXTEND"
"""Trait of a host whose guests see a new size of a volume that they have."""


class AbilityArgs(msgspec.Struct, frozen=True, kw_only=True):
    """What is wanted of a host: a volume with a tag, one that several servers may have."""

    tagged: bool = False
    multiattach: bool = False


class Connector(msgspec.Struct, frozen=True):
    """A host as the volume service must know it. Spec: VOL-17."""

    connector: dict[str, Any]


class AttachArgs(msgspec.Struct, frozen=True):
    """guest: with all its volumes, the new one among them. volume_id: which it is."""

    guest: Guest
    volume_id: str


class VolumeRef(msgspec.Struct, frozen=True):
    """A volume of a guest, which may be gone."""

    uuid: str
    volume_id: str


class ExtendArgs(msgspec.Struct, frozen=True):
    """A volume of a guest, and the bytes that it has now."""

    uuid: str
    volume_id: str
    size: int


class Used(msgspec.Struct, frozen=True):
    """What a guest did with a volume; None if nobody knows."""

    usage: VolumeUsage | None


async def _check(host: HostEnvironment, args: AbilityArgs) -> Connector:
    """Spec: RBN-01, RBN-02, VOL-17."""
    inventory = await host.driver.inventory()
    if args.tagged and ATTACH_WITH_TAG not in inventory.traits:
        raise InvalidInput(f"Host {host.host} cannot show the tags of attached volumes to servers.")
    if args.multiattach and MULTI_ATTACH not in inventory.traits:
        raise InvalidInput(f"Host {host.host} cannot attach volumes that several servers may have.")
    return Connector({
        "host": host.host, "ip": inventory.host_ip, "os_type": "linux", "platform": inventory.architecture,
        "multipath": False, "do_local_attach": False,
    })


async def _attach(host: HostEnvironment, args: AttachArgs) -> None:
    """Spec: VOL-24."""
    await host.driver.attach_volume(args.guest, volume_of(args.guest, args.volume_id))


async def _usage(host: HostEnvironment, args: VolumeRef) -> Used:
    """What cannot be told is not counted, and that is all. Spec: VOL-31, VOL-34."""
    try:
        return Used((await host.driver.volume_usage(args.uuid)).get(args.volume_id))
    except KilonovaError as error:
        log.info("usage of a volume not read", instance=args.uuid, volume=args.volume_id, error=error.message)
        return Used(None)


async def _detach(host: HostEnvironment, args: VolumeRef) -> None:
    """A volume that is not there any more is no error. Spec: VOL-45."""
    await host.driver.detach_volume(args.uuid, args.volume_id)


async def _extend(host: HostEnvironment, args: ExtendArgs) -> None:
    """Spec: XEV-26, XEV-27."""
    if CAN_EXTEND not in (await host.driver.inventory()).traits:
        raise NotSupported(
            f"Host {host.host} cannot show guests the new size of volume {args.volume_id}.",
            hint="the server sees it when it is stopped and started",
        )
    await host.driver.extend_volume(args.uuid, args.volume_id, args.size)


def volume_of(guest: Guest, volume_id: str) -> GuestVolume:
    """The volume of a guest with that id."""
    return next(volume for volume in guest.volumes if volume.id == volume_id)


CHECK = HostStep("volume.check", _check, AbilityArgs, Connector)
ATTACH = HostStep("volume.attach", _attach, AttachArgs)
USAGE = HostStep("volume.usage", _usage, VolumeRef, Used)
DETACH = HostStep("volume.detach", _detach, VolumeRef, interruptible=True)
EXTEND = HostStep("volume.extend", _extend, ExtendArgs)

STEPS = (CHECK, ATTACH, DETACH, USAGE, EXTEND)
