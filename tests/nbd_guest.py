"""A client of an export that reads and writes, as the QEMU of a guest does."""

from __future__ import annotations

import asyncio

from kilonova.domain.errors import Conflict
from kilonova.storage.pool import Address

LONG = 8192
"""Bytes at the beginning of a volume that tests write and read."""
LIMIT = 30.0


PROMPT = b"qemu-io> "


class NbdGuest:
    """Uses qemu-io, a connection for each call unless it stays connected.

    Args:
        objects, options: more arguments of qemu-io, and options of its NBD driver, for TLS or reconnecting.
        passphrase: the volume is encrypted, and the guest opens it.
    """

    def __init__(
        self, address: Address, export_id: str, *, objects: tuple[str, ...] = (), options: tuple[str, ...] = (),
        passphrase: str | None = None,
    ) -> None:
        where = (
            ("server.type=unix", f"server.path={address.socket}") if address.socket
            else ("server.type=inet", f"server.host={address.host}", f"server.port={address.port}")
        )
        nbd = ("driver=nbd", f"export={export_id}", *where, *options)
        outer = "driver=raw"
        if passphrase is not None:
            objects = (*objects, "--object", f"secret,id=key,data={passphrase}")
            outer = "driver=luks,key-secret=key"
        self._objects = objects
        self._image = ",".join((outer, *(f"file.{each}" for each in nbd)))
        self._connected: asyncio.subprocess.Process | None = None

    async def write(self, letter: str, block: int = 0) -> None:
        """Fill a block of LONG bytes with a letter. Raises Conflict: it is refused."""
        command = f"write -P {ord(letter)} {block * LONG} {LONG}"
        if self._connected is None:
            await self._once(command, "flush", writable=True)
        else:
            await self._asked(command)

    async def read(self, block: int = 0) -> str:
        """The letter that a block is filled with, "" for zeros. Raises Conflict: it cannot be read."""
        command = f"read -v {block * LONG} {LONG}"
        said = await (self._once(command) if self._connected is None else self._asked(command))
        rows = [line.split()[1:17] for line in said.splitlines() if ":  " in line]
        values = {int(each, 16) for row in rows for each in row}
        assert len(values) == 1, said
        return chr(values.pop()).strip("\0")

    async def discard(self, block: int, count: int) -> None:
        """Tell that blocks are not needed any more."""
        await self._once(f"discard {block * LONG} {count * LONG}", writable=True)

    async def length(self) -> int:
        """GiB that a client sees when it connects."""
        number, unit = (await self._once("length")).split()
        assert unit == "GiB"
        return int(number)

    async def connect(self, *, writable: bool = False) -> None:
        """Stay connected until `disconnect`: all calls use that connection."""
        self._connected = await asyncio.create_subprocess_exec(
            "qemu-io", *(() if writable else ("-r",)), *self._objects, "--image-opts", self._image,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
        await self._answer()

    async def disconnect(self) -> None:
        assert self._connected is not None
        self._connected.kill()
        await self._connected.wait()
        self._connected = None

    async def _asked(self, command: str) -> str:
        assert self._connected is not None and self._connected.stdin is not None
        self._connected.stdin.write(f"{command}\n".encode())
        return await self._answer()

    async def _answer(self) -> str:
        assert self._connected is not None and self._connected.stdout is not None
        said = await asyncio.wait_for(self._connected.stdout.readuntil(PROMPT), LIMIT)
        return _accepted(said.removesuffix(PROMPT).decode())

    async def _once(self, *commands: str, writable: bool = False) -> str:
        running = await asyncio.create_subprocess_exec(
            "qemu-io", *(() if writable else ("-r",)), *self._objects,
            *(part for each in commands for part in ("-c", each)), "--discard", "unmap",
            "--image-opts", self._image, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(running.communicate(), LIMIT)
        if running.returncode:
            raise Conflict(said.decode())
        return _accepted(said.decode())


def _accepted(said: str) -> str:
    if "failed: " in said:
        raise Conflict(said)
    return said
