"""Watching work of the hypervisor that takes long, on the host, where a look is cheap."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from kilonova.agent.steps.environment import HostEnvironment

T = TypeVar("T")
WATCH = 10.0
"""Seconds after which a step says that the work goes on."""
BETWEEN = 1.0
"""Seconds from one step that watches to the next."""
FIRST_PAUSE, LONGEST_PAUSE, LONGER = 0.02, 0.25, 1.2
"""Seconds between looks, and by how much each pause is longer than the one before."""


async def watch(host: HostEnvironment, look: Callable[[], Awaitable[T]], goes_on: Callable[[T], bool]) -> T:
    """Look until the work is over, but no longer than a step may go without a word.

    Args:
        look: finds the state of the work. goes_on: whether that is one in which it is worth waiting.

    Returns:
        The last state that was found.
    """
    give_up, pause = host.clock.monotonic() + WATCH, FIRST_PAUSE
    while goes_on(found := await look()) and host.clock.monotonic() < give_up:
        await host.clock.sleep(pause)
        pause = min(pause * LONGER, LONGEST_PAUSE)
    return found


def between_watches(_attempt: int) -> float:
    """The pause of a step that watches, which is tried again for as long as the work goes on."""
    return BETWEEN
