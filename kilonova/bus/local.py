"""The bus within one process. Messages are still bytes, so that both buses carry the same."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import structlog

from kilonova.bus.protocol import Handler, Subscription
from kilonova.domain.errors import Unreachable

log = structlog.get_logger(__name__)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject fits a subscription: `*` is one token, a final `>` one or more."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > position
        if position >= len(tokens) or token not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)


@dataclass(eq=False)
class _Subscriber:
    bus: LocalBus
    pattern: str
    handler: Handler
    group: str | None
    turn: int = field(default=0)

    async def unsubscribe(self) -> None:
        self.bus.remove(self)


class LocalBus:
    """Delivers within the process; each message is handled in a task of its own."""

    def __init__(self) -> None:
        self._exact: dict[str, list[_Subscriber]] = {}
        self._patterns: list[_Subscriber] = []
        self._tasks: set[asyncio.Task[bytes | None]] = set()
        self._turns = itertools.count()

    async def publish(self, subject: str, payload: bytes) -> None:
        for subscriber in self._receivers(subject):
            self._deliver(subscriber, subject, payload)

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        receivers = self._receivers(subject)
        if not receivers:
            raise Unreachable(f"Nobody listens on {subject}.")
        task = self._deliver(receivers[0], subject, payload)
        done, _ = await asyncio.wait({task}, timeout=timeout)
        if not done or task.cancelled() or task.exception() is not None:
            raise Unreachable(f"No reply on {subject}.")
        reply = task.result()
        if reply is None:
            raise Unreachable(f"No reply on {subject}.")
        return reply

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        subscriber = _Subscriber(self, subject, handler, group)
        if "*" in subject or ">" in subject:
            self._patterns.append(subscriber)
        else:
            self._exact.setdefault(subject, []).append(subscriber)
        return subscriber

    def remove(self, subscriber: _Subscriber) -> None:
        """Forget a subscription; removing it again changes nothing."""
        if subscriber in self._patterns:
            self._patterns.remove(subscriber)
        exact = self._exact.get(subscriber.pattern, [])
        if subscriber in exact:
            exact.remove(subscriber)
            if not exact:
                del self._exact[subscriber.pattern]

    def _receivers(self, subject: str) -> list[_Subscriber]:
        """All ungrouped subscribers and one of every group, in turn."""
        found = [*self._exact.get(subject, ()), *(s for s in self._patterns if matches(s.pattern, subject))]
        receivers = [s for s in found if s.group is None]
        groups: dict[str, list[_Subscriber]] = {}
        for subscriber in found:
            if subscriber.group is not None:
                groups.setdefault(subscriber.group, []).append(subscriber)
        for members in groups.values():
            chosen = min(members, key=lambda s: s.turn)
            chosen.turn = next(self._turns) + 1
            receivers.append(chosen)
        return receivers

    def _deliver(self, subscriber: _Subscriber, subject: str, payload: bytes) -> asyncio.Task[bytes | None]:
        task = asyncio.get_running_loop().create_task(_handle(subscriber.handler, subject, payload))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[bytes | None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("message handler failed", exc_info=error)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _handle(handler: Handler, subject: str, payload: bytes) -> bytes | None:
    return await handler(subject, payload)
