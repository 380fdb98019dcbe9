"""Screens of simulated guests: VNC servers (RFC 6143) that show a black picture for as long as the guest runs."""

from __future__ import annotations

import asyncio
import contextlib
import struct

import msgspec

WIDTH, HEIGHT = 64, 48
"""Pixels."""
VERSION = b"RFB 003.008\n"
NO_PASSWORD = 1
FORMAT = struct.pack(">BBBBHHHBBBxxx", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
"""32 bits for each pixel, of which 8 each for red, green and blue."""

SET_FORMAT, SET_ENCODINGS, WANT_PICTURE, KEY, POINTER, CLIPBOARD = 0, 2, 3, 4, 5, 6
_SIZES = {SET_FORMAT: 19, SET_ENCODINGS: 3, WANT_PICTURE: 9, KEY: 7, POINTER: 5, CLIPBOARD: 7}
"""By kind of message, the bytes that follow the first one whatever it holds."""


class _Screen(msgspec.Struct):
    """start: which start of the guest it belongs to."""

    start: int
    server: asyncio.Server


class FakeScreens:
    """The screens of the guests of one host. Each listens on a port of the loopback device once it was asked for."""

    def __init__(self) -> None:
        self._open: dict[str, _Screen] = {}

    async def port(self, uuid: str, name: str, start: int) -> int:
        """Where the screen of a guest listens; as on a real host, a guest gets another port at each start."""
        screen = self._open.get(uuid)
        if screen is None or screen.start != start:
            self.close(uuid)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError, EOFError):  # the viewer has gone
                    await _show(reader, writer, name)
                writer.close()

            screen = self._open[uuid] = _Screen(start, await asyncio.start_server(serve, "127.0.0.1", 0))
        port: int = screen.server.sockets[0].getsockname()[1]
        return port

    def close(self, uuid: str) -> None:
        """The guest has stopped: nobody is let in any more."""
        screen = self._open.pop(uuid, None)
        if screen is not None:
            screen.server.close()

    def close_all(self) -> None:
        for uuid in list(self._open):
            self.close(uuid)


async def _show(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """Shake hands, then answer until the viewer goes or says what nobody understands."""
    writer.write(VERSION)
    if await reader.readexactly(len(VERSION)) != VERSION:
        return
    writer.write(bytes([1, NO_PASSWORD]))
    if (await reader.readexactly(1))[0] != NO_PASSWORD:
        return
    writer.write(bytes(4))
    await reader.readexactly(1)
    title = name.encode()
    writer.write(struct.pack(">HH", WIDTH, HEIGHT) + FORMAT + struct.pack(">I", len(title)) + title)
    pixel = 4
    while (kind := (await reader.readexactly(1))[0]) in _SIZES:
        body = await reader.readexactly(_SIZES[kind])
        if kind == SET_FORMAT:
            pixel = body[3] // 8
        elif kind == SET_ENCODINGS:
            await reader.readexactly(4 * int.from_bytes(body[1:3], "big"))
        elif kind == CLIPBOARD:
            await _pass_over(reader, int.from_bytes(body[3:7], "big"))
        elif kind == WANT_PICTURE and not body[0]:  # one who only wants changes waits for ever
            writer.write(_picture(pixel))
            await writer.drain()


async def _pass_over(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        size -= len(await reader.readexactly(min(size, 65536)))


def _picture(pixel: int) -> bytes:
    """One rectangle, uncompressed. Args: pixel: bytes for each."""
    head = struct.pack(">BxH", 0, 1) + struct.pack(">HHHHi", 0, 0, WIDTH, HEIGHT, 0)
    return head + bytes(WIDTH * HEIGHT * pixel)
