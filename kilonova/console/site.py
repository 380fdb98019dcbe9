"""The pages that show consoles. What they are made of is installed by the distribution, and served from there."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.console.proxy import ConsoleProxy

PAGES = Path(__file__).parent / "pages"
NOVNC = Path("/usr/share/novnc")
XTERM = Path("/usr/share/javascript/xterm")

_HEADERS = [
    (b"referrer-policy", b"no-referrer"),  # the addresses of these pages hold tokens
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),
]


class ConsoleSite:
    """An ASGI application: pages below `/console`, and all WebSockets.

    Args:
        novnc, xterm: where noVNC and xterm.js are installed, if they are.
    """

    def __init__(self, proxy: ConsoleProxy, *, novnc: Path = NOVNC, xterm: Path = XTERM) -> None:
        self._proxy = proxy
        self._xterm = xterm
        self._pages: ASGIApp = Starlette(routes=[
            Mount("/novnc", _Installed(novnc, "noVNC", "novnc")),
            Mount("/xterm", _Installed(xterm, "xterm.js", "libjs-xterm")),
            Route("/serial.html", self._serial),
        ])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._proxy(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        await self._pages(scope, receive, with_headers)

    async def _serial(self, _request: Request) -> Response:
        if not self._xterm.is_dir():
            return _missing("xterm.js", "libjs-xterm")
        return FileResponse(PAGES / "serial.html")


class _Installed:
    """The files of a package, or a page that says how to install it."""

    def __init__(self, directory: Path, name: str, package: str) -> None:
        self._directory = directory
        self._files = StaticFiles(directory=directory, check_dir=False, follow_symlink=True)
        self._missing = _missing(name, package)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._files if self._directory.is_dir() else self._missing)(scope, receive, send)


def _missing(name: str, package: str) -> Response:
    return HTMLResponse(
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>{name} is not installed</title>"
        f"<body style='font-family: sans-serif; max-width: 40em; margin: 3em auto'><h1>{name} is not installed</h1>"
        f"<p>This page needs {name} on the machine that serves it. Install it there and load the page again; nothing "
        f"has to be restarted.</p><pre>apt install {package}</pre>",
        status_code=503,
    )
