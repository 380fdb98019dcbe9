"""Moving a running guest from one volume to another.

The hypervisor is asked which of the two the guest uses, before and after everything that could have changed it: a step
says that it failed only if the guest uses the old one.
"""

from __future__ import annotations

from functools import partial

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.watching import watch
from kilonova.domain.errors import KilonovaError, NotFound, PastReturn, Retryable, Unfinished
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.volumes import CopyState, GuestVolume


class CopyArgs(msgspec.Struct, frozen=True):
    """A volume of a guest, and the one that it is to be copied to, as it is served to this host."""

    uuid: str
    volume_id: str
    target: GuestVolume


async def _start(host: HostEnvironment, args: CopyArgs) -> None:
    await host.driver.start_copy(args.uuid, args.volume_id, args.target)


async def _await(host: HostEnvironment, args: CopyArgs) -> None:
    """Watch the copy. Raises Unfinished: it goes on."""
    found = await watch(
        host, partial(host.driver.copy_state, args.uuid, args.volume_id, args.target),
        lambda copy: copy.state is CopyState.COPYING,
    )
    if found.state is CopyState.NONE:
        raise KilonovaError(
            f"The copy of volume {args.volume_id} ended before it was complete.",
            hint="the guest was switched off, or one of the volumes failed",
        )
    if found.state is CopyState.COPYING:
        raise Unfinished(f"{found.done} of {found.total} bytes of volume {args.volume_id} are copied.")


async def _pivot(host: HostEnvironment, args: CopyArgs) -> None:
    """If the guest does not change, the copy is ended, so that it surely never will. Spec: SWP-15, SWP-27."""
    try:
        await host.driver.pivot_volume(args.uuid, args.volume_id, args.target)
    except KilonovaError:
        if await _is_done(host, args):
            return
        await host.driver.abort_copy(args.uuid, args.volume_id)
        found = await host.driver.copy_state(args.uuid, args.volume_id, args.target)
        if found.state is CopyState.DONE:
            return
        if found.state is not CopyState.NONE:
            raise Retryable(f"The copy of volume {args.volume_id} cannot be ended.") from None
        raise


async def _abort(host: HostEnvironment, args: CopyArgs) -> None:
    """Raises PastReturn: the guest uses the target, which must not be taken from it. Spec: SWP-27, SWP-37, SWP-38."""
    await host.driver.abort_copy(args.uuid, args.volume_id)
    if await _is_done(host, args):
        raise PastReturn(f"The guest of instance {args.uuid} uses the copy of volume {args.volume_id} already.")


async def _is_done(host: HostEnvironment, args: CopyArgs) -> bool:
    try:
        found = await host.driver.copy_state(args.uuid, args.volume_id, args.target)
    except NotFound:  # the guest is gone, or has not the volume any more
        return False
    return found.state is CopyState.DONE


START_COPY = HostStep("volume.start_copy", _start, CopyArgs)
AWAIT_COPY = HostStep("volume.await_copy", _await, CopyArgs)
PIVOT = HostStep("volume.pivot", _pivot, CopyArgs)
ABORT_COPY = HostStep("volume.abort_copy", _abort, CopyArgs)

STEPS = (START_COPY, AWAIT_COPY, PIVOT, ABORT_COPY)
