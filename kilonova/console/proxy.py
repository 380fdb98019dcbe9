"""One console in one browser: who comes with a live token is connected to the guest, for as long as it is there."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

import structlog
from starlette.types import Receive, Scope, Send

from kilonova.console import rfb
from kilonova.console.channel import Channel, Ended, subprotocol
from kilonova.console.guest_end import PIECE, connect
from kilonova.domain.clock import Clock
from kilonova.domain.console import KINDS, ConsoleKind, ConsoleToken
from kilonova.domain.errors import KilonovaError
from kilonova.operations.consoles import Consoles

log = structlog.get_logger(__name__)

LOOK_INTERVAL = 5.0
"""Seconds between looks at whether the server of an open connection is still there."""
HANDSHAKE_LIMIT = 20.0
"""Seconds that guest and browser may take to agree on the protocol."""

NORMAL, GOING, UNREACHABLE = 1000, 1001, 1011
"""Codes that close a WebSocket."""


class ConsoleProxy:
    """Serves WebSockets, whatever their path: a token says what is wanted.

    Args:
        url: under which clients reach this installation. allowed_origins: host names of other pages that may connect.
    """

    def __init__(self, consoles: Consoles, clock: Clock, *, url: str, allowed_origins: Sequence[str] = ()) -> None:
        self._consoles = consoles
        self._clock = clock
        self._origins = {*allowed_origins, urlsplit(url).hostname}
        self._lines: dict[str, asyncio.Event] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Nobody is let in without a live token, nor from a page of somebody else. Spec: CON-26, CON-28."""
        await receive()
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            right = await self._admit(scope, headers)
        except KilonovaError as error:
            log.info("console refused", reason=error.message)
            await send({"type": "websocket.close", "code": NORMAL})
            return
        protocol = subprotocol(scope["subprotocols"])
        await send({"type": "websocket.accept", "subprotocol": protocol})
        channel = Channel(receive, send, protocol)
        where = {"instance": right.instance_uuid, "type": right.type}
        log.info("console opened", **where)
        code, reason = await self._serve(channel, right)
        log.info("console closed", reason=reason, **where)
        with contextlib.suppress(OSError, RuntimeError):  # the browser may have closed it before
            await channel.close(code, reason)

    async def _admit(self, scope: Scope, headers: dict[bytes, str]) -> ConsoleToken:
        origin = headers.get(b"origin")
        if origin is not None:
            own = urlsplit(f"//{headers.get(b'host', '')}").hostname
            if urlsplit(origin).hostname not in {own, *self._origins} - {None}:
                raise KilonovaError("The page belongs to another host.")
        return await self._consoles.admit(_token(scope, headers))

    async def _serve(self, channel: Channel, right: ConsoleToken) -> tuple[int, str]:
        """Returns code and reason of the end."""
        screen = KINDS[right.type] is ConsoleKind.VNC
        try:
            reader, writer = await connect(right.address)
        except KilonovaError as error:
            if screen:
                await _tell(channel, error.message)
            return UNREACHABLE, error.message
        try:
            if screen:
                async with asyncio.timeout(HANDSHAKE_LIMIT):
                    if (refused := await _shake_hands(channel, reader, writer)) is not None:
                        return UNREACHABLE, refused
            return await self._pass_on(channel, reader, writer, right)
        except (Ended, OSError):
            return NORMAL, "The browser has gone."
        finally:
            writer.close()

    async def _pass_on(
        self, channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, right: ConsoleToken
    ) -> tuple[int, str]:
        """Until one of the sides, or the server, is gone. A socket takes one client, so the newest one gets it."""
        line, taken = right.address.internal_access_path, asyncio.Event()
        if line:
            before = self._lines.get(line)
            self._lines[line] = taken
            if before is not None:
                before.set()
        ends = {
            asyncio.create_task(_from_guest(reader, channel)): (NORMAL, "The guest has closed its console."),
            asyncio.create_task(_to_guest(channel, writer)): (NORMAL, "The browser has gone."),
            asyncio.create_task(self._watch(right)): (GOING, "The server has been deleted or moved."),
            asyncio.create_task(_until(taken)): (GOING, "The console is open elsewhere."),
        }
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if self._lines.get(line) is taken:
                del self._lines[line]
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        for task in done:
            task.result()
        return next(ends[task] for task in ends if task in done)

    async def _watch(self, right: ConsoleToken) -> None:
        """Return when the server has been deleted or moved: its guest may live on for a while on a lost host."""
        while True:
            await self._clock.sleep(LOOK_INTERVAL)
            try:
                if not await self._consoles.still_there(right):
                    return
            except KilonovaError as error:
                log.warning("server of an open console not looked at", error=str(error))


async def _shake_hands(
    channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str | None:
    """Returns why the screen is not to be had, None if it is."""
    try:
        await rfb.meet_server(reader, writer)
    except (rfb.RfbError, EOFError, OSError) as error:
        reason = error.message if isinstance(error, rfb.RfbError) else "The screen does not answer."
        await _tell(channel, reason)
        return reason
    try:
        await rfb.meet_client(channel)
    except rfb.RfbError as error:
        return error.message
    return None


async def _tell(channel: Channel, reason: str) -> None:
    with contextlib.suppress(Ended, rfb.RfbError, TimeoutError):
        async with asyncio.timeout(HANDSHAKE_LIMIT):
            await rfb.refuse_client(channel, reason)


async def _from_guest(reader: asyncio.StreamReader, channel: Channel) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE):
            await channel.write(data)


async def _to_guest(channel: Channel, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, Ended):
        while True:
            writer.write(await channel.read())
            await writer.drain()


async def _until(event: asyncio.Event) -> None:
    await event.wait()


def _token(scope: Scope, headers: dict[bytes, str]) -> str:
    """From the query, or from a cookie as older clients send it; "" without one, which no token is."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
    if given:
        return str(given[-1])
    try:
        cookie = SimpleCookie(headers.get(b"cookie", "")).get("token")
    except CookieError:
        return ""
    return str(cookie.value) if cookie is not None else ""
