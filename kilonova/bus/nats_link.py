"""One connection to one NATS server: used until it is lost, never mended.

The client library can reconnect by itself, but gives up in several cases (credentials refused once, for
example) and then stays silent. A link is simple instead: once anything is wrong with it, it is lost, and its
owner opens another one.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import ssl
import uuid
from collections.abc import Awaitable, Callable

import structlog
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kilonova.bus.credentials import Credentials
from kilonova.domain.errors import Unreachable

log = structlog.get_logger(__name__)

CONNECT_LIMIT = 5.0
"""Seconds that opening a link may take."""

CHECK_INTERVAL = 5.0
"""Seconds between two checks that the server still answers."""

ANSWER_LIMIT = 5.0
"""Seconds that the server has for answering a check."""

CLOSE_LIMIT = 1.0
"""Seconds for saying good-bye."""

PENDING_LIMIT = 32 * 1024 * 1024
"""Bytes that may wait to be sent on one link; what comes on top is dropped."""

FAILED = {"Kilonova-Outcome": "failed"}
"""Headers of the reply that says: the handler failed."""

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')

Deliver = Callable[[Msg], Awaitable[None]]

LinkErrors = (OSError, errors.Error, TimeoutError)
"""What opening and using a link raises when the server is not there or refuses."""


class Link:
    """Open it with `Link.open`. `lost` is set when it is of no more use."""

    def __init__(self, credentials: Credentials) -> None:
        self.lost = asyncio.Event()
        self._client = Client()
        self._inbox = f"{credentials.inbox}.{uuid.uuid4().hex}"
        self._tokens = itertools.count(1)
        self._waiting: dict[str, tuple[str, asyncio.Future[bytes]]] = {}
        self._denied: set[str] = set()

    @classmethod
    async def open(cls, server: str, credentials: Credentials, tls: ssl.SSLContext | None) -> Link:
        """Connect.

        Raises:
            LinkErrors: nobody there, not in time, or refused.
        """
        link = cls(credentials)
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                await link._connect(server, credentials, tls)
        except BaseException:
            await link.close()
            raise
        return link

    async def _connect(self, server: str, credentials: Credentials, tls: ssl.SSLContext | None) -> None:
        await self._client.connect(
            servers=[server], user=credentials.user, password=credentials.password, name=credentials.user,
            tls=tls, tls_handshake_first=tls is not None,  # so that nobody on the way can talk it out of TLS
            allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0,
            ping_interval=3600,  # `watch` does that
            pending_size=2 * PENDING_LIMIT,  # never reached: beyond it, publishing would block
            error_cb=self._on_error, closed_cb=self._on_closed,
        )
        await self.subscribe(f"{self._inbox}.*", "", self._on_reply)

    async def _on_error(self, error: Exception) -> None:
        if (denied := _DENIED.search(str(error))) is None:
            log.debug("bus connection", error=str(error))
            return
        verb, subject = denied.groups()
        log.error("the bus refuses", what=verb, subject=subject)
        if verb == "subscription":
            self._denied.add(subject)
            return
        for sent_to, future in self._waiting.values():
            if sent_to.lower() == subject and not future.done():
                future.set_exception(Unreachable(
                    f"These credentials may not send to {sent_to}.", hint="check whose credentials this process uses"
                ))

    async def _on_closed(self) -> None:
        self.lost.set()

    async def _on_reply(self, message: Msg) -> None:
        found = self._waiting.get(message.subject.rpartition(".")[2])
        if found is None or found[1].done():
            return
        subject, future = found
        headers = message.headers or {}
        if headers.get("Status") == "503" and not message.data:
            future.set_exception(Unreachable(f"Nobody listens on {subject}."))
        elif headers.items() >= FAILED.items():
            future.set_exception(Unreachable(f"No reply on {subject}: the receiver failed."))
        else:
            future.set_result(message.data)

    async def watch(self) -> None:
        """Return once the link is lost: closed, or the server stopped answering."""
        while not self.lost.is_set():
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self.lost.wait()
            except TimeoutError:
                await self.confirm()

    async def confirm(self) -> bool:
        """Wait until the server has handled all that was sent before. False if it does not answer: link lost.

        A message to oneself proves that; the client's own ping may overtake what still waits to be sent.
        """
        token = f"{next(self._tokens):x}"
        subject = f"{self._inbox}.{token}"
        future = self._expect(token, subject)
        try:
            if await self.publish(subject, b""):
                async with asyncio.timeout(ANSWER_LIMIT):
                    await future
                return True
        except (TimeoutError, Unreachable):
            pass
        finally:
            del self._waiting[token]
        self.lost.set()
        return False

    def _expect(self, token: str, subject: str) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = subject, future
        return future

    async def publish(
        self, subject: str, payload: bytes, *, reply: str = "", headers: dict[str, str] | None = None
    ) -> bool:
        """Send without waiting. False if it could not be sent."""
        if self.lost.is_set() or self._client.pending_data_size + len(payload) > PENDING_LIMIT:
            return False
        try:
            await self._client.publish(subject, payload, reply=reply, headers=headers)
        except LinkErrors as error:
            log.warning("message not sent", subject=subject, error=str(error))
            return False
        return True

    async def request(
        self, subject: str, payload: bytes, timeout: float, *, headers: dict[str, str] | None = None
    ) -> bytes:
        """Send and wait for the reply. Raises Unreachable."""
        token = f"{next(self._tokens):x}"
        future = self._expect(token, subject)
        try:
            if not await self.publish(subject, payload, reply=f"{self._inbox}.{token}", headers=headers):
                raise Unreachable(f"The message to {subject} could not be sent.")
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise Unreachable(f"No reply on {subject}.") from None
        finally:
            del self._waiting[token]

    async def subscribe(self, subject: str, group: str, deliver: Deliver) -> Subscription:
        """Have messages delivered; in force at the server after `confirm`. Raises LinkErrors."""
        return await self._client.subscribe(subject, queue=group, cb=deliver)

    def denied(self, subject: str) -> bool:
        """Whether the server refused a subscription (known after `confirm`)."""
        return subject.lower() in self._denied

    async def close(self) -> None:
        """Drop the connection; whoever waits for a reply hears that there will be none."""
        self.lost.set()
        for subject, future in self._waiting.values():
            if not future.done():
                future.set_exception(Unreachable(f"No reply on {subject}: the connection to the bus was lost."))
        try:
            async with asyncio.timeout(CLOSE_LIMIT):
                await self._client.close()
        except LinkErrors as error:
            log.debug("bus connection not closed in order", error=str(error))
