"""An asyncio event loop with virtual time and seeded order: the same seed gives the same run."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any


class Deadlock(Exception):
    """Nothing can ever happen again."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Calls, timers and nothing else: there are no files and threads to wait for, and waiting is a jump of the clock.

    The parts of an event loop that run most often are written anew, because they are most of a simulated second.
    """

    _ready: deque[asyncio.Handle]
    _stopping: bool

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._virtual = 0.0
        self._random = random
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = count()

    def time(self) -> float:
        return self._virtual

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._virtual + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock
            self._virtual = max(self._virtual, timers[0][0])
        while timers and timers[0][0] <= self._virtual:
            ready.append(heappop(timers)[2])
        if len(ready) > 1 and self._random.random() < 0.5:
            ready.rotate(self._random.randrange(len(ready)))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()

    def _write_to_self(self) -> None:
        """For calls from other threads, of which there are none."""


def abandon(loop: VirtualLoop) -> None:
    """Drop a loop with tasks that will never end: those of crashed processes ignore cancellation.

    Their coroutines are closed now, while the loop can still be called, so that nothing is left to the collector.
    """
    loop.set_exception_handler(lambda _loop, _context: None)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            task.get_coro().close()
    loop._ready.clear()
    loop._timers.clear()
    loop.close()
