"""The screens of simulated guests, looked at by a viewer."""

import asyncio
import struct

import pytest

from kilonova.hypervisor.fake_screen import HEIGHT, WIDTH, FakeScreens

HEAD = 4 + 12


async def look(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    """Shake hands as a viewer; returns the title of the screen too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(await reader.readexactly(12))
    assert await reader.readexactly(2) == b"\1\1"
    writer.write(b"\1")
    assert await reader.readexactly(4) == bytes(4)
    writer.write(b"\1")
    width, height = struct.unpack(">HH", await reader.readexactly(4))
    assert (width, height) == (WIDTH, HEIGHT)
    await reader.readexactly(16)
    (size,) = struct.unpack(">I", await reader.readexactly(4))
    return reader, writer, (await reader.readexactly(size)).decode()


async def test_a_viewer_sees_the_guest_by_its_name() -> None:
    screens = FakeScreens()
    port = await screens.port("u1", "instance-1", 1)
    assert await screens.port("u1", "instance-1", 1) == port
    reader, writer, title = await look(port)
    assert title == "instance-1"
    want = struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT)
    writer.write(struct.pack(">BxH", 2, 2) + bytes(8) + struct.pack(">B7x", 4) + struct.pack(">B5x", 5))
    writer.write(struct.pack(">B3xI", 6, 5) + b"paste" + want)
    assert (await reader.readexactly(HEAD))[:4] == b"\0\0\0\1"
    assert await reader.readexactly(WIDTH * HEIGHT * 4) == bytes(WIDTH * HEIGHT * 4)
    writer.write(struct.pack(">B3x", 0) + bytes([8, 8]) + bytes(14) + want)  # now 8 bits for each pixel
    assert len(await reader.readexactly(HEAD + WIDTH * HEIGHT)) == HEAD + WIDTH * HEIGHT
    writer.write(b"\xff")  # no message that exists
    assert await reader.read() == b""
    writer.close()
    screens.close_all()


async def test_a_screen_lives_as_long_as_the_guest_runs() -> None:
    screens = FakeScreens()
    first = await screens.port("u1", "instance-1", 1)
    screens.close("u1")
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", first)
    second = await screens.port("u1", "instance-1", 2)
    third = await screens.port("u1", "instance-1", 3)  # it was started again without our having seen it stop
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", second)
    _, writer, _ = await look(third)
    screens.close_all()
    writer.close()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", third)
