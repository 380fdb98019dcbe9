"""Connecting to the console of a guest."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kilonova.domain.console import ConsoleAddress
from kilonova.domain.errors import ServiceUnavailable

CONNECT_LIMIT = 10.0
"""Seconds."""
PIECE = 65536
"""Bytes that are taken from a guest at once, before its browser has taken the ones before."""


async def connect(address: ConsoleAddress) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a console. Raises ServiceUnavailable."""
    try:
        async with asyncio.timeout(CONNECT_LIMIT):
            if address.port is not None:
                return await asyncio.open_connection(address.host, address.port, limit=PIECE)
            return await _connect_to_socket(Path(address.internal_access_path))
    except (OSError, TimeoutError) as error:
        raise ServiceUnavailable("The console does not answer.") from error


async def _connect_to_socket(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The kernel takes short names of sockets only; through its directory any socket has one."""
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}", limit=PIECE)
    finally:
        os.close(directory)
