"""Notifications as messages on a NATS server: below one subject, by their event type."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from pathlib import Path

import msgspec
import nats
from nats.aio.client import Client
from nats.js import JetStreamContext

from kilonova.bus import credentials
from kilonova.domain.errors import InvalidInput
from kilonova.domain.notification import Notification
from kilonova.notifications.sinks import envelope

MESSAGE_ID = "Nats-Msg-Id"
"""The header by which streams and subscribers know a message that comes again."""
CONNECT_LIMIT, PAUSE = 3, 0.1
"""Seconds for an attempt to connect to a server, and between the two that there are at most."""
ANSWER_LIMIT = 3.0
"""Seconds until the server has confirmed what it was sent."""


class NatsSink:
    """Publishes each notification.

    Args:
        servers: where to. login: file with the credentials, "" for none. authority: PEM file of the certificate
            that signed theirs, "" for no encryption.
        prefix: of the subjects. stream: a JetStream stream that keeps them and confirms each; made if it is not there.
            "" leaves it to subscribers that are connected.
    """

    def __init__(self, servers: Sequence[str], login: str, authority: str, *, prefix: str, stream: str) -> None:
        if not servers:
            raise InvalidInput("notifications.nats_servers names no server.")
        self._servers = list(servers)
        self._login = credentials.load(Path(login)) if login else None
        self._tls = ssl.create_default_context(cafile=authority) if authority else None
        self._prefix = prefix
        self._stream = stream
        self._client: Client | None = None
        self._streams: JetStreamContext | None = None
        self._connecting = asyncio.Lock()

    async def send(self, message: Notification) -> None:
        client = await self._connected()
        subject = f"{self._prefix}.{message.event_type}"
        body, headers = msgspec.json.encode(envelope(message)), {MESSAGE_ID: message.message_id}
        if self._streams is not None:
            await self._streams.publish(subject, body, timeout=ANSWER_LIMIT, headers=headers)
        else:
            await client.publish(subject, body, headers=headers)
            await client.flush(ANSWER_LIMIT)  # type: ignore[arg-type]

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is not None and self._client.is_connected:
                return self._client
            await self.close()
            login = self._login
            self._client = await nats.connect(
                self._servers, user=login.user if login else None, password=login.password if login else None,
                tls=self._tls, name="kilonova notifications", allow_reconnect=False, connect_timeout=CONNECT_LIMIT,
                max_reconnect_attempts=1, reconnect_time_wait=PAUSE, error_cb=_passed_over,
            )
            if self._stream:
                self._streams = self._client.jetstream()
                await self._streams.add_stream(name=self._stream, subjects=[f"{self._prefix}.>"])
            return self._client

    async def close(self) -> None:
        client, self._client, self._streams = self._client, None, None
        if client is not None:
            await client.close()


async def _passed_over(_error: Exception) -> None:
    """What goes wrong shows where a message is sent."""
