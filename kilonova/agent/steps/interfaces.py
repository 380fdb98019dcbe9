"""Giving a guest an interface and taking one from it."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import InvalidInput
from kilonova.domain.network import Vif
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest

ATTACH_INTERFACE = "COMPUTE_NET_ATTACH_INTERFACE"
"""Trait of a host whose guests can be given interfaces."""

ATTACH_WITH_TAG = "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG"
"""Trait of a host whose guests are told of the tags of such interfaces."""


class AbilityArgs(msgspec.Struct, frozen=True):
    """What is wanted of a host. tagged: an interface with a tag."""

    tagged: bool


class AttachArgs(msgspec.Struct, frozen=True):
    """guest: with all its interfaces, the new one among them. port_id: which it is."""

    guest: Guest
    port_id: str


class DetachArgs(msgspec.Struct, frozen=True):
    """The guest may be gone."""

    uuid: str
    vif: Vif


async def _check(host: HostEnvironment, args: AbilityArgs) -> None:
    """Spec: IFC-24."""
    able = (await host.driver.inventory()).traits
    if ATTACH_INTERFACE not in able:
        raise InvalidInput(f"Host {host.host} cannot attach interfaces to servers.")
    if args.tagged and ATTACH_WITH_TAG not in able:
        raise InvalidInput(f"Host {host.host} cannot show the tags of attached interfaces to servers.")


async def _attach(host: HostEnvironment, args: AttachArgs) -> None:
    await host.driver.attach_interface(args.guest, vif_of(args.guest, args.port_id))


async def _detach(host: HostEnvironment, args: DetachArgs) -> None:
    """An interface that is not there any more is no error. Spec: IFC-50."""
    await host.driver.detach_interface(args.uuid, args.vif)
    await host.driver.unplug(args.uuid, (args.vif.devname,))


def vif_of(guest: Guest, port_id: str) -> Vif:
    """The interface of a guest that is this port."""
    return next(vif for vif in guest.vifs if vif.id == port_id)


CHECK = HostStep("interface.check", _check, AbilityArgs)
ATTACH = HostStep("interface.attach", _attach, AttachArgs)
DETACH = HostStep("interface.detach", _detach, DetachArgs, interruptible=True)

STEPS = (CHECK, ATTACH, DETACH)
