"""The pages that show consoles. Those of others are installed by the distribution, and served from there."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.console.proxy import ConsoleProxy

PAGES = Path(__file__).parent / "pages"
NOVNC = Path("/usr/share/novnc")
SPICE = Path("/usr/share/spice-html5")

MISSING = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{name} is not installed</title>
<body style="font-family: sans-serif; max-width: 40em; margin: 3em auto">
<h1>{name} is not installed</h1>
<p>This page needs {name} on the machine that serves it. Install it there and load the page again; nothing has to be
restarted.</p>
<pre>apt install {package}</pre>
"""

_HEADERS = [
    (b"referrer-policy", b"no-referrer"),  # the addresses of these pages hold tokens
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),
]


class ConsoleSite:
    """An ASGI application: pages below `/console`, and all WebSockets.

    Args:
        novnc, spice: where noVNC and spice-html5 are installed, if they are.
    """

    def __init__(self, proxy: ConsoleProxy, *, novnc: Path = NOVNC, spice: Path = SPICE) -> None:
        self._proxy = proxy
        self._pages: ASGIApp = Starlette(routes=[
            Mount("/novnc", _Installed(novnc, "noVNC", "novnc")),
            Mount("/spice", _Installed(spice, "spice-html5", "spice-html5")),
            Mount("/", StaticFiles(directory=PAGES)),
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


class _Installed:
    """The files of a package, or a page that says how to install it."""

    def __init__(self, directory: Path, name: str, package: str) -> None:
        self._directory = directory
        self._files = StaticFiles(directory=directory, check_dir=False, follow_symlink=True)
        self._missing = HTMLResponse(MISSING.format(name=name, package=package), status_code=503)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._files if self._directory.is_dir() else self._missing)(scope, receive, send)
