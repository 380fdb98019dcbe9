"""An asyncio event loop with virtual time and seeded order: the same seed gives the same run."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from random import Random
from typing import Any


class Deadlock(Exception):
    """Nothing can ever happen again."""


class _NoFiles:
    """Stands in for the selector: nothing to watch, and waiting is only a jump of the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock
        self._loop.jump(timeout)
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    def __init__(self, random: Random) -> None:
        super().__init__()
        self._virtual = 0.0
        self._random = random
        self._selector = _NoFiles(self)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual

    def jump(self, seconds: float) -> None:
        self._virtual += seconds

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        if len(ready) > 1 and self._random.random() < 0.5:
            ready.rotate(self._random.randrange(len(ready)))
        super()._run_once()  # type: ignore[misc]


def abandon(loop: VirtualLoop) -> None:
    """Drop a loop with tasks that will never end: those of crashed processes ignore cancellation.

    Their coroutines are closed now, while the loop can still be called, so that nothing is left to the collector.
    """
    loop.set_exception_handler(lambda _loop, _context: None)
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        with contextlib.suppress(BaseException):
            task.get_coro().close()
    loop._ready.clear()  # type: ignore[attr-defined]
    loop._scheduled.clear()  # type: ignore[attr-defined]
    loop.close()
