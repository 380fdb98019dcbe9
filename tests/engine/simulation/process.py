"""Simulated processes: everything that leaves a process goes through a port that a crash shuts.

A process that has crashed never gets past its next port: it neither sees the answer of a call that was under way
nor makes another. What the call did in the world stays done, as with a real process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import sqlalchemy as sa

from kilonova.bus.protocol import Handler, Subscription
from kilonova.db.database import Database
from kilonova.domain.errors import ServiceUnavailable, Unreachable
from simulation.loop import VirtualLoop

T = TypeVar("T")
EPOCH = 1_700_000_000.0


class Process:
    """One life of one process. A restart is a new Process of the same name."""

    def __init__(self, name: str, skew: float) -> None:
        self.name = name
        self.skew = skew
        self.alive = True

    async def port(self, call: Awaitable[T]) -> T:
        """Let a call through, unless the process is dead before it or by the time it returns."""
        if not self.alive:
            close = getattr(call, "close", None)
            if close is not None:
                close()
            await self.freeze()
        try:
            result = await call
        finally:
            if not self.alive:
                await self.freeze()
        return result

    @staticmethod
    async def freeze() -> Any:
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                continue


class SimClock:
    """Virtual time, with the skew of the process's machine."""

    def __init__(self, loop: VirtualLoop, process: Process | None = None) -> None:
        self._loop = loop
        self._process = process

    def now(self) -> float:
        return EPOCH + self._loop.time() + (self._process.skew if self._process else 0.0)

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        if self._process is None:
            await asyncio.sleep(seconds)
        else:
            await self._process.port(asyncio.sleep(seconds))


class Trouble:
    """How bad the world is at the moment: probabilities."""

    def __init__(self) -> None:
        self.db_error = 0.0
        self.lost = 0.0
        self.duplicated = 0.0
        self.service_error = 0.0
        self.partitioned: set[str] = set()

    def calm(self) -> None:
        self.__init__()  # type: ignore[misc]


class SimDatabase(Database):
    """A process's connection to a database that outlives it."""

    def __init__(self, real: Database, process: Process, random: Random, trouble: Trouble) -> None:
        self.url = real.url
        self.engine = real.engine
        self._real = real
        self._process = process
        self._random = random
        self._trouble = trouble

    async def read(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._process.port(self._call(self._real.read, fn))

    async def write(self, fn: Callable[[sa.Connection], T]) -> T:
        return await self._process.port(self._call(self._real.write, fn))

    async def _call(self, do: Callable[[Callable[[sa.Connection], T]], Awaitable[T]], fn: Any) -> T:
        await asyncio.sleep(self._random.random() * 0.004)
        if not self._process.alive:
            await self._process.freeze()
        if self._random.random() < self._trouble.db_error:
            raise ServiceUnavailable("The database does not answer.")
        result = await do(fn)
        await asyncio.sleep(self._random.random() * 0.004)
        return result

    async def close(self) -> None:
        return None


class Wire:
    """The network between processes: delays, loses, repeats and reorders messages."""

    def __init__(self, random: Random, trouble: Trouble) -> None:
        self.random = random
        self.trouble = trouble
        self.subscribers: list[SimSubscription] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.defects: list[str] = []

    def spawn(self, call: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(call)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def receivers(self, subject: str) -> list[SimSubscription]:
        from kilonova.bus.local import matches

        live = [s for s in self.subscribers if s.process.alive and matches(s.pattern, subject)]
        chosen = [s for s in live if s.group is None]
        groups: dict[str, list[SimSubscription]] = {}
        for subscription in live:
            if subscription.group is not None:
                groups.setdefault(subscription.group, []).append(subscription)
        return chosen + [self.random.choice(members) for _, members in sorted(groups.items())]

    async def transfer(
        self, sender: Process, subscription: SimSubscription, subject: str, payload: bytes
    ) -> bytes | None:
        """Carry one message to one receiver and its reply back; None if either is lost."""
        if await self._lost(sender.name, subscription.process.name) or not subscription.process.alive:
            return None
        if self.random.random() < self.trouble.duplicated:
            self.spawn(self._handle(subscription, subject, payload))
        reply = await self._handle(subscription, subject, payload)
        if await self._lost(sender.name, subscription.process.name):
            return None
        return reply

    async def _lost(self, one: str, other: str) -> bool:
        await asyncio.sleep(self.random.random() * 0.01)
        cut = one in self.trouble.partitioned or other in self.trouble.partitioned
        return one != other and (cut or self.random.random() < self.trouble.lost)

    async def _handle(self, subscription: SimSubscription, subject: str, payload: bytes) -> bytes | None:
        try:
            return await subscription.process.port(subscription.handler(subject, payload))
        except ServiceUnavailable:
            return None
        except Exception as error:  # noqa: BLE001 - a defect: the run is worthless
            self.defects.append(f"{subject}: {error!r}")
            return None


class SimSubscription:
    def __init__(self, wire: Wire, process: Process, pattern: str, handler: Handler, group: str | None) -> None:
        self.process, self.pattern, self.handler, self.group = process, pattern, handler, group
        self._wire = wire

    async def unsubscribe(self) -> None:
        if self in self._wire.subscribers:
            self._wire.subscribers.remove(self)


class SimBus:
    """A process's connection to the wire."""

    def __init__(self, wire: Wire, process: Process) -> None:
        self._wire = wire
        self._process = process

    async def publish(self, subject: str, payload: bytes) -> None:
        if not self._process.alive:
            await self._process.freeze()
        for subscription in self._wire.receivers(subject):
            self._wire.spawn(self._wire.transfer(self._process, subscription, subject, payload))

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        return await self._process.port(self._request(subject, payload, timeout))

    async def _request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        receivers = self._wire.receivers(subject)
        if not receivers:
            raise Unreachable(f"nobody listens on {subject}")
        task = self._wire.spawn(self._wire.transfer(self._process, receivers[0], subject, payload))
        done, _ = await asyncio.wait({task}, timeout=timeout)
        reply = task.result() if done and not task.cancelled() and task.exception() is None else None
        if reply is None:
            if done:
                await asyncio.sleep(timeout)
            raise Unreachable(f"no reply on {subject}")
        assert isinstance(reply, bytes)
        return reply

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        subscription = SimSubscription(self._wire, self._process, subject, handler, group)
        self._wire.subscribers.append(subscription)
        return subscription

    async def close(self) -> None:
        return None
