"""What is put into a guest from outside: an interrupt that makes its kernel dump, network information."""

from __future__ import annotations

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import GuestArgs, GuestRef
from kilonova.engine.operation import HostStep


async def _inject_nmi(host: HostEnvironment, args: GuestRef) -> None:
    await host.driver.inject_nmi(args.uuid)


async def _inject_network(host: HostEnvironment, args: GuestArgs) -> None:
    await host.driver.plug(args.guest)


INJECT_NMI = HostStep("guest.inject_nmi", _inject_nmi, GuestRef)
INJECT_NETWORK = HostStep("guest.inject_network", _inject_network, GuestArgs)

STEPS = (INJECT_NMI, INJECT_NETWORK)
