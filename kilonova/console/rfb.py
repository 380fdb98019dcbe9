"""The beginning of the remote framebuffer protocol (RFC 6143), in which both sides agree on a security type.

The proxy speaks it with both sides on its own: it is the client of the guest's VNC server, and the server of the
browser. Who holds a token needs no password, and what a guest's server demands one day stays between it and the proxy.
After that all bytes are passed on as they are.
"""

from __future__ import annotations

import asyncio
import re

from kilonova.console.channel import Channel
from kilonova.domain.errors import KilonovaError

VERSION = b"RFB 003.008\n"
NONE = 1
"""The security type without authentication."""
MOST_REASON = 1000
"""Bytes of a server's explanation that are read."""


class RfbError(KilonovaError):
    """The two sides do not come together."""


async def meet_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Shake hands with a VNC server. Raises RfbError, EOFError."""
    version = await reader.readexactly(len(VERSION))
    if not re.fullmatch(rb"RFB \d{3}\.\d{3}\n", version) or version < VERSION:
        raise RfbError("The screen speaks no protocol that is known.")
    writer.write(VERSION)
    count = (await reader.readexactly(1))[0]
    if count == 0:
        raise RfbError(f"The screen refuses: {await _reason(reader)}")
    if NONE not in await reader.readexactly(count):
        raise RfbError("The screen demands a password.")
    writer.write(bytes([NONE]))
    if await _number(reader) != 0:
        raise RfbError(f"The screen refuses: {await _reason(reader)}")


async def meet_client(channel: Channel) -> None:
    """Shake hands with a VNC client. Raises RfbError, Ended."""
    await _agree_on_version(channel)
    await channel.write(bytes([1, NONE]))
    if (await channel.read_exactly(1))[0] != NONE:
        await channel.write(_counted(1, "Only clients without a password are served."))
        raise RfbError("The client wants a password.")
    await channel.write(bytes(4))


async def refuse_client(channel: Channel, reason: str) -> None:
    """Tell a VNC client in its own protocol why it gets no screen. Raises RfbError, Ended."""
    await _agree_on_version(channel)
    await channel.write(b"\0" + _counted(None, reason))


async def _agree_on_version(channel: Channel) -> None:
    await channel.write(VERSION)
    if await channel.read_exactly(len(VERSION)) != VERSION:
        raise RfbError("The client speaks another version of the protocol.")


def _counted(result: int | None, text: str) -> bytes:
    data = text.encode()
    start = b"" if result is None else result.to_bytes(4, "big")
    return start + len(data).to_bytes(4, "big") + data


async def _number(reader: asyncio.StreamReader) -> int:
    return int.from_bytes(await reader.readexactly(4), "big")


async def _reason(reader: asyncio.StreamReader) -> str:
    size = min(await _number(reader), MOST_REASON)
    return (await reader.readexactly(size)).decode("utf-8", "replace")
