"""An accelerator service outside the simulated processes: keeps its promises, loses answers, fails, binds late."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any

from cyborg import Refused, StandIn, refuse

from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.operation import ExternalEvent
from kilonova.operations.accelerators import BOUND_EVENT
from kilonova.services.cyborg import Cyborg
from simulation.process import Process, Trouble


class Accelerators(StandIn):
    """The service itself; it does not crash. `fail`: errors by method, one for each call. `binds`: whether it ends
    what is being bound, and tells."""

    def __init__(self, random: Random, trouble: Trouble, announce: Callable[[ExternalEvent], Awaitable[None]]) -> None:
        super().__init__(at_once=False)
        self.fail: dict[str, list[Exception]] = {}
        self.binds = True
        self._random = random
        self._trouble = trouble
        self._announce = announce
        self._tasks: set[asyncio.Task[None]] = set()

    def client(self, process: Process) -> Cyborg:
        async def call(
            method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
        ) -> Any:
            return await process.port(self._exchange(method, path, query or {}, body))

        return Cyborg(call)

    async def _exchange(self, method: str, path: str, query: Mapping[str, str], body: Any) -> Any:
        await self._way(method)
        try:
            _, answer = self.answer(method, path, query, body)
        except Refused as error:
            raise refuse(error) from error
        if method == "PATCH" and self.binds:
            for server in {arq["instance_uuid"] for arq in self.arqs.values() if arq["state"] == "BindStarted"}:
                task = asyncio.ensure_future(self._bind(server))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await self._way("")
        return answer

    async def _way(self, method: str) -> None:
        await asyncio.sleep(self._random.random() * 0.02)
        if planned := self.fail.get(method):
            raise planned.pop(0)
        if self._random.random() < self._trouble.service_error:
            raise ServiceUnavailable("The accelerator service does not answer.")

    async def _bind(self, server: str) -> None:
        await asyncio.sleep(self._random.random())
        for id_ in self.resolve(server):
            await self._announce(ExternalEvent(subject=server, name=BOUND_EVENT, tag=id_))
