"""Starting a guest again that was switched off for nothing."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import Powered
from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.guest import Guest

log = structlog.get_logger(__name__)


class StartAgainArgs(msgspec.Struct, frozen=True, kw_only=True):
    """ran: the guest ran before; else it is only looked at."""

    guest: Guest
    ran: bool


async def _start_again(host: HostEnvironment, args: StartAgainArgs) -> Powered:
    """A guest that does not come up is left off, and the answer says so. Spec: SHV-10."""
    if args.ran:
        try:
            await host.driver.plug(args.guest)
            await host.driver.power_on(args.guest)
        except Retryable:
            raise
        except KilonovaError as error:
            log.warning("guest not started again", host=host.host, instance=args.guest.uuid, error=str(error))
    return Powered(await host.driver.power_state(args.guest.uuid))


START_AGAIN = HostStep("guest.start_again", _start_again, StartAgainArgs, Powered)

STEPS = (START_AGAIN,)
