"""Whether a host can give directories to a guest, and whether a guest can lose one. What a guest has is described
anew whenever it starts, so nothing is changed here."""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import GuestRef
from kilonova.domain.errors import Conflict
from kilonova.domain.states import GUEST_OFF
from kilonova.engine.operation import HostStep

VIRTIO_FS, SHARED_MEMORY = "COMPUTE_STORAGE_VIRTIO_FS", "COMPUTE_MEM_BACKING_FILE"
"""Traits of a host whose guests can be given directories, and whose guests can share their memory for it."""


class Directories(msgspec.Struct, frozen=True):
    """Paths on the host."""

    paths: tuple[str, ...]


class Absent(msgspec.Struct, frozen=True):
    """Those of them that the host does not have."""

    paths: tuple[str, ...]


async def _check(host: HostEnvironment, args: Directories) -> None:
    """Spec: API-185."""
    able = (await host.driver.inventory()).traits
    if VIRTIO_FS not in able or SHARED_MEMORY not in able:
        raise Conflict(f"Host {host.host} cannot give shares to servers.")
    if await host.driver.absent_shares(args.paths):
        raise Conflict(f"Host {host.host} does not have the directory of the share.")


async def _look(host: HostEnvironment, args: Directories) -> Absent:
    return Absent(await host.driver.absent_shares(args.paths))


async def _check_off(host: HostEnvironment, args: GuestRef) -> None:
    """A server in ERROR may have a guest that still uses what it was started with."""
    if await host.driver.power_state(args.uuid) not in GUEST_OFF:
        raise Conflict(f"The guest of instance {args.uuid} is on and uses its shares; it must be stopped first.")


CHECK = HostStep("share.check", _check, Directories)
LOOK = HostStep("share.look", _look, Directories, Absent)
CHECK_OFF = HostStep("share.check_off", _check_off, GuestRef)

STEPS = (CHECK, LOOK, CHECK_OFF)
