"""Time is injected: everything that waits or stamps a record is given a clock."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of time. Simulations substitute a virtual one."""

    def now(self) -> float:
        """Wall-clock time in seconds since the epoch, UTC. What records are stamped with."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never jumps. What durations and deadlines are measured with."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds."""
        ...


class SystemClock:
    """The clock of the machine."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def iso_seconds(timestamp: float) -> str:
    """Format as `YYYY-MM-DDTHH:MM:SSZ` (server times in the Compute API). Spec: API-055."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_microseconds(timestamp: float) -> str:
    """Format as `YYYY-MM-DDTHH:MM:SS.ffffff`, UTC without a zone (all other times). Spec: API-055."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
