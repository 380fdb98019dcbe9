"""One HTTP server for several ASGI applications under path prefixes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.domain.errors import KilonovaError

LARGEST_FRAME = 1 << 20
"""Bytes of a message that a client sends over a WebSocket."""


class Prefixes:
    """Hands a request to the application whose prefix its path begins with."""

    def __init__(self) -> None:
        self._applications: dict[str, ASGIApp] = {}
        self._sockets: ASGIApp | None = None

    def mount(self, applications: Mapping[str, ASGIApp]) -> None:
        """Serve these from now on, by prefix (`/identity`)."""
        self._applications.update(applications)

    def mount_sockets(self, application: ASGIApp) -> None:
        """Serve all WebSockets from now on, whatever their path: clients of consoles connect to the root."""
        self._sockets = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await (self._sockets or refuse_socket)(scope, receive, send)
            return
        prefix = "/" + scope["path"].lstrip("/").split("/", 1)[0]
        application = self._applications.get(prefix)
        if application is not None:
            path = scope["path"] if scope["path"] != prefix else f"{prefix}/"
            await application({**scope, "path": path, "root_path": prefix}, receive, send)
            return
        listing = {"services": {name.lstrip("/"): name for name in sorted(self._applications)}}
        await answer(send, 200 if scope["path"] == "/" else 404, listing)


async def refuse_socket(_scope: Scope, receive: Receive, send: Send) -> None:
    """Close a WebSocket before it is open, which its client sees as 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1000})


async def answer(send: Send, status: int, content: Any) -> None:
    """Send a JSON body."""
    body = msgspec.json.encode(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Quiet(uvicorn.Server):
    """Leaves signals to the process around it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class WebServer:
    """Serves an application on one address.

    Raises:
        KilonovaError: at `open`, when the port is taken.
    """

    def __init__(self, application: ASGIApp, listen: str, port: int) -> None:
        self._where = (listen, port)
        config = uvicorn.Config(
            application, loop="none", http="httptools", ws="websockets-sansio", ws_max_size=LARGEST_FRAME,
            ws_per_message_deflate=False, lifespan="off", log_config=None, log_level="warning", access_log=False,
            server_header=False, timeout_keep_alive=75, timeout_graceful_shutdown=3,
        )
        self._server = _Quiet(config)
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Take the port, before anything is started that would have to be stopped again."""
        family = socket.AF_INET6 if ":" in self._where[0] else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(self._where)
        except OSError as error:
            listener.close()
            raise KilonovaError(
                f"Cannot listen on {self._where[0]} port {self._where[1]}: {error.strerror}.",
                hint="choose another with --port-base, or stop what uses it",
            ) from error
        listener.listen(2048)
        listener.setblocking(False)
        self._socket = listener

    async def start(self) -> None:
        assert self._socket is not None
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        if self._task is not None:
            self._server.should_exit = True
            await asyncio.gather(self._task, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
