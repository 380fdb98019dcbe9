"""The bus between hosts, over NATS.

It connects for ever: while no server answers, what is published waits in a bounded buffer, requests are refused
at once, and after the return of a server all subscriptions are made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random, SystemRandom
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import structlog

from kilonova.bus import protocol
from kilonova.bus.credentials import Credentials
from kilonova.bus.protocol import Handler
from kilonova.bus.subjects import REPLIES
from kilonova.domain import tracing, trail
from kilonova.domain.errors import Forbidden, InvalidInput, Unreachable

if TYPE_CHECKING:
    # A process that has no use for NATS does not load its client: see `_open`.
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from kilonova.bus.nats_link import Deliver, Link

log = structlog.get_logger(__name__)

MAX_PAYLOAD = 8 * 1024 * 1024
"""Bytes of the largest message."""

HEADERS_LIMIT = 8192
"""Bytes that the headers of a message take at most."""

BUFFER_LIMIT = 16 * 1024 * 1024
"""Bytes of messages that wait for a connection; then the oldest are dropped."""

TRAIL = "Kilonova-Trail"
"""Header with what the log lines of whoever handles the message have in common with those of its sender."""

TRACE = "traceparent"
"""Header with the span in which it was sent."""

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
SETTLED = 5.0
"""Seconds after which a lost connection counts as one that worked: the next attempt follows at once."""

FIRST_CONNECTION_LIMIT = 5.0


@dataclass(eq=False)
class _Subscriber:
    bus: NatsBus
    pattern: str
    handler: Handler
    group: str
    link: Link | None = field(default=None)
    registered: Subscription | None = field(default=None)

    async def unsubscribe(self) -> None:
        await self.bus.remove(self)


class NatsBus:
    """Open it with `NatsBus.connect`."""

    def __init__(
        self, servers: Sequence[str], credentials: Credentials, *, tls: ssl.SSLContext | None = None,
        random: Random | None = None,
    ) -> None:
        self._servers = [_checked(server) for server in servers]
        self._credentials = credentials
        self._tls = tls
        self._random = random or SystemRandom()
        self._subscribers: list[_Subscriber] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._link: Link | None = None
        self._buffer: deque[tuple[str, bytes, dict[str, str] | None]] = deque()
        self._buffered = 0
        self._dropped = 0
        self._connected = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, servers: Sequence[str], credentials: Credentials, *, tls: ssl.SSLContext | None = None,
        random: Random | None = None,
    ) -> NatsBus:
        """Begin to connect, and wait a little for the first connection.

        A server that is not there yet is no error: the bus goes on trying until it is closed.

        Args:
            servers: URLs, `nats://HOST:PORT`; tried in turn.
            tls: how to check the server; it must then speak TLS from the first byte.

        Raises:
            InvalidInput: a URL that cannot be one.
        """
        bus = cls(servers, credentials, tls=tls, random=random)
        bus._keeper = asyncio.get_running_loop().create_task(bus._keep_connected())
        try:
            async with asyncio.timeout(FIRST_CONNECTION_LIMIT):
                await bus._connected.wait()
        except TimeoutError:
            log.warning("no connection to the message bus yet", servers=bus._servers)
        except asyncio.CancelledError:
            await bus.close()
            raise
        return bus

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._link is not None and not self._link.lost.is_set()

    async def publish(self, subject: str, payload: bytes) -> None:
        _check_size(payload)
        if self._link is not None and self.connected:
            if not await self._link.publish(subject, payload, headers=_headers(payload)):
                log.warning("message dropped: too many wait to be sent", subject=subject)
            return
        self._buffer.append((subject, payload, _headers(payload)))
        self._buffered += len(payload)
        while self._buffered > BUFFER_LIMIT:
            self._buffered -= len(self._buffer.popleft()[1])
            self._dropped += 1

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        _check_size(payload)
        if self._link is None or not self.connected:
            raise Unreachable("There is no connection to the message bus.", hint="check that its server runs")
        return await self._link.request(subject, payload, timeout, headers=_headers(payload))

    async def subscribe(
        self, subject: str, handler: Handler, *, group: str | None = None
    ) -> protocol.Subscription:
        """As the protocol says.

        Raises:
            Forbidden: the credentials do not allow it.
        """
        subscriber = _Subscriber(self, subject, handler, group or "")
        self._subscribers.append(subscriber)
        link = self._link
        if link is not None and self.connected:
            await self._register(link, [subscriber])
            if link.denied(subject):
                await self.remove(subscriber)
                raise Forbidden(
                    f"These credentials may not listen on {subject}.",
                    hint="check that the host has the name that its credentials were made for",
                )
        return subscriber

    async def remove(self, subscriber: _Subscriber) -> None:
        """Forget a subscription; removing it again changes nothing."""
        if subscriber not in self._subscribers:
            return
        self._subscribers.remove(subscriber)
        if subscriber.registered is not None and subscriber.link is self._link and self.connected:
            await _unregister(subscriber.registered)

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._subscribers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- the connection -----------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        loop = asyncio.get_running_loop()
        servers = self._random.sample(self._servers, len(self._servers))
        pause = FIRST_PAUSE
        for server in itertools.cycle(servers):
            started = loop.time()
            link = await self._open(server)
            if link is not None:
                try:
                    await self._serve(link)
                finally:
                    self._link = None
                    await link.close()
                log.warning("connection to the message bus lost", server=server)
            pause = FIRST_PAUSE if loop.time() - started > SETTLED else min(pause * 2, LONGEST_PAUSE)
            # Spread out, so that the hosts of a fleet do not all come back at the same moment.
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.0))

    async def _open(self, server: str) -> Link | None:
        from kilonova.bus.nats_link import Link

        try:
            return await Link.open(server, self._credentials, self._tls)
        except Exception as error:  # noqa: BLE001 - whatever the client library raises: try again for ever
            log.warning("no connection to the message bus", server=server, error=str(error) or type(error).__name__)
            return None

    async def _serve(self, link: Link) -> None:
        """Use a new link until it is lost."""
        while missing := [s for s in self._subscribers if s.link is not link]:
            if not await self._register(link, missing):
                return
        while self._buffer and not link.lost.is_set():
            subject, payload, headers = self._buffer.popleft()
            self._buffered -= len(payload)
            await link.publish(subject, payload, headers=headers)
        if self._dropped:
            log.warning("messages dropped while there was no connection to the message bus", messages=self._dropped)
            self._dropped = 0
        self._link = link
        self._connected.set()
        await link.watch()

    async def _register(self, link: Link, subscribers: Sequence[_Subscriber]) -> bool:
        """Make subscriptions at the server. False if the link was lost on the way: the next one makes them."""
        from kilonova.bus.nats_link import LinkErrors

        for subscriber in subscribers:
            try:
                deliver = self._receiver(link, subscriber)
                registered = await link.subscribe(subscriber.pattern, subscriber.group, deliver)
            except LinkErrors:
                link.lost.set()
                return False
            subscriber.link, subscriber.registered = link, registered
        return await link.confirm()

    # --- messages that arrive -----------------------------------------------------------------------

    def _receiver(self, link: Link, subscriber: _Subscriber) -> Deliver:
        async def receive(message: Msg) -> None:
            if subscriber not in self._subscribers:
                return
            task = asyncio.get_running_loop().create_task(_handle(link, subscriber.handler, message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        return receive


async def _handle(link: Link, handler: Handler, message: Msg) -> None:
    from kilonova.bus.nats_link import FAILED

    headers = None
    carried = message.headers or {}
    try:
        with trail.unpacked(carried.get(TRAIL, "")), tracing.under(carried.get(TRACE, "")):
            reply = await handler(message.subject, message.data)
    except Exception:
        log.exception("message handler failed", subject=message.subject)
        reply, headers = b"", FAILED
    # A sender may name any subject as the place for the reply: it must not make this process, which may send
    # where the sender may not, send a command.
    if reply is None or not message.reply.startswith(f"{REPLIES}."):
        return
    if len(reply) > MAX_PAYLOAD:
        log.error("reply too large", subject=message.subject, bytes=len(reply))
        reply, headers = b"", FAILED
    await link.publish(message.reply, reply, headers=headers)


def _headers(payload: bytes) -> dict[str, str] | None:
    """What a message carries beside its payload, if there is room for it: servers count both."""
    if len(payload) > MAX_PAYLOAD - HEADERS_LIMIT:
        return None
    carried = {TRAIL: trail.packed(), TRACE: tracing.traceparent()}
    return {name: value for name, value in carried.items() if value} or None


def _checked(server: str) -> str:
    try:
        url = urlsplit(server)
        if url.scheme in ("nats", "tls") and url.hostname and url.port != 0:
            return server
    except ValueError:
        pass
    raise InvalidInput(f"{server!r} is not the address of a NATS server.", hint="write nats://HOST:PORT")


def _check_size(payload: bytes) -> None:
    if len(payload) > MAX_PAYLOAD:
        raise InvalidInput(f"A message of {len(payload)} bytes is larger than the bus carries ({MAX_PAYLOAD} bytes).")


async def _unregister(registered: Subscription) -> None:
    from kilonova.bus.nats_link import LinkErrors

    with contextlib.suppress(*LinkErrors):  # a lost link has no subscriptions
        await registered.unsubscribe()
