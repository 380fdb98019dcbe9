"""What services outside the simulated processes have in common: they take their time, fail and lose answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from kilonova.domain.errors import ServiceUnavailable
from simulation.process import Trouble

T = TypeVar("T")


class Outside:
    """A service that does not crash.

    `fail` are errors by call name, one for each call. Args: name: as errors tell it.
    """

    def __init__(self, name: str, random: Random, trouble: Trouble) -> None:
        self.fail: dict[str, list[Exception]] = {}
        self._name = name
        self._random = random
        self._trouble = trouble
        self._tasks: set[asyncio.Task[None]] = set()

    async def exchange(self, call: str, arrived: Callable[[], object], effect: Callable[[], T]) -> T:
        """One call, which may fail or be lost on its way, as may its answer. arrived: notes it."""
        await asyncio.sleep(self._random.random() * 0.02)
        arrived()
        if planned := self.fail.get(call):
            raise planned.pop(0)
        self._lose()
        result = effect()
        await asyncio.sleep(self._random.random() * 0.02)
        self._lose()
        return result

    def soon(self, work: Awaitable[None]) -> None:
        """Go on with something without anybody waiting for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lose(self) -> None:
        if self._random.random() < self._trouble.service_error:
            raise ServiceUnavailable(f"The {self._name} service does not answer.")
