"""The time of a cloud that is killed."""

from __future__ import annotations

import asyncio
import time

SPEED = 20.0
"""How much faster than real the time of the cloud is."""


class FastClock:
    """Real time, sped up. began: real time at which it showed `start`."""

    def __init__(self, start: float, began: float) -> None:
        self._start = start
        self._began = began

    def now(self) -> float:
        return self._start + (time.time() - self._began) * SPEED

    def monotonic(self) -> float:
        return time.monotonic() * SPEED

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / SPEED)
