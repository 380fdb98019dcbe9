"""A NATS server for one test, on a private directory and a free port."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kilonova.bus.server import BusServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def bus_server(directory: Path) -> AsyncIterator[BusServer]:
    server = BusServer(directory, port=free_port())
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
