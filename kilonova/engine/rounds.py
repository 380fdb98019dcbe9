"""Work that comes round again and again, each kind of it in a task of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from kilonova.domain.clock import Clock

log = structlog.get_logger(__name__)

DEFAULT_INTERVAL = 60.0
"""Seconds, where an option says 0."""


@dataclass(frozen=True)
class Round:
    """One kind of work.

    Args:
        name: what is told in the log.
        work: one round of it. interval: seconds between rounds; 0 for the default, negative for never. Spec: PER-01.
        at_start: the first round is at once, not after the first interval. Spec: PER-02.
    """

    name: str
    work: Callable[[], Awaitable[None]]
    interval: float
    at_start: bool = False


class Rounds:
    """Starts rounds when their time has come, as long as the process lives.

    A round that hangs holds up no other, and is not started a second time. Whatever a round meets, the next comes.
    Spec: PER-03, PER-06, PER-20.
    """

    def __init__(self, clock: Clock, rounds: tuple[Round, ...]) -> None:
        self._clock = clock
        self._rounds = rounds
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._repeat(one)) for one in self._rounds if one.interval >= 0]

    async def _repeat(self, one: Round) -> None:
        interval = one.interval or DEFAULT_INTERVAL
        if not one.at_start:
            await self._clock.sleep(interval)
        while True:
            try:
                await one.work()
            except Exception:
                log.exception("periodic work failed", work=one.name)
            await self._clock.sleep(interval)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
