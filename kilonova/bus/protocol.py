"""What the rest of the package needs of a message bus.

Truth is in the databases; the bus only carries. A message may be lost, repeated, delayed or reordered, and
nothing but time may be lost by it. Payloads are bytes (MessagePack), encoded also in one process.

Subjects (dots separate tokens; a subscription may end in `>` or hold `*`):

- `kn.host.<host>.command`    conductor to agent, request and reply
- `kn.from.<host>.<what>`     agent to conductors (`result`, `report`, `event`)
- `kn.wake.<cell>`            "there is work in this cell's journal"
- `kn.watch.<what>`           observations for whoever looks (operation progress)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

Handler = Callable[[str, bytes], Awaitable[bytes | None]]
"""Called with (subject, payload). What it returns is the reply to a request; None sends no reply."""


class Subscription(Protocol):
    async def unsubscribe(self) -> None:
        """Stop delivery; handlers already running go on."""
        ...


class Bus(Protocol):
    """A message bus. Two implementations (in-process, NATS) pass `tests/contract/test_bus.py`."""

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send to all subscribers, without waiting for them. Never raises for want of subscribers."""
        ...

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        """Send and wait for one reply.

        Args:
            timeout: seconds.

        Raises:
            Unreachable: no subscriber, or no reply in time. Whether the request was handled is not known.
        """
        ...

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> Subscription:
        """Deliver messages to `handler`, each in a task of its own.

        Args:
            group: of all subscriptions with the same group, each message reaches one.
        """
        ...

    async def close(self) -> None: ...
