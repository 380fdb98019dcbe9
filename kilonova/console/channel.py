"""A WebSocket as a stream of bytes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from starlette.types import Message, Receive, Send

BINARY, BASE64 = "binary", "base64"

MOST_REASON = 120
"""Bytes of a reason that fit into the frame that closes a WebSocket."""


class Ended(Exception):
    """The other side has closed the WebSocket."""


def subprotocol(offered: Sequence[str]) -> str | None:
    """The one to speak of those a client offers; None is binary as well."""
    return next((known for known in (BINARY, BASE64) if known in offered), None)


class Channel:
    """The bytes of an accepted WebSocket. Neither side is read from faster than the other takes what it sent.

    Args:
        protocol: as `subprotocol` chose it; with base64, each frame is text that holds its bytes.
    """

    def __init__(self, receive: Receive, send: Send, protocol: str | None) -> None:
        self._receive = receive
        self._send = send
        self._base64 = protocol == BASE64
        self._left = b""

    async def read(self) -> bytes:
        """What has come, at least one byte. Raises Ended."""
        if self._left:
            data, self._left = self._left, b""
            return data
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                raise Ended
            data = self._decoded(message)
            if data:
                return data

    async def read_exactly(self, size: int) -> bytes:
        """Exactly that many bytes. Raises Ended."""
        data = b""
        while len(data) < size:
            data += await self.read()
        self._left = data[size:]
        return data[:size]

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more."""
        if self._base64:
            await self._send({"type": "websocket.send", "text": base64.b64encode(data).decode()})
        else:
            await self._send({"type": "websocket.send", "bytes": data})

    async def close(self, code: int, reason: str) -> None:
        """Say why nothing more will come."""
        short = reason.encode()[:MOST_REASON].decode(errors="ignore")
        await self._send({"type": "websocket.close", "code": code, "reason": short})

    def _decoded(self, message: Message) -> bytes:
        binary, text = message.get("bytes"), message.get("text")
        if isinstance(binary, bytes):
            return binary
        if not isinstance(text, str):
            return b""
        if not self._base64:
            return text.encode()
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise Ended from error
