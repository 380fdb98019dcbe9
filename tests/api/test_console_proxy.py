"""The console proxy: a real web server and real WebSockets, in front of consoles that the test plays."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from clouds import free_port
from compute_cloud import ComputeCloud, compute_cloud
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kilonova.console import proxy as proxy_module
from kilonova.console import rfb
from kilonova.console.proxy import ConsoleProxy
from kilonova.console.site import ConsoleSite
from kilonova.db import instances
from kilonova.domain.clock import SystemClock
from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import NotFound
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState
from kilonova.operations.consoles import ConsoleOptions
from kilonova.roles.web import Prefixes, WebServer

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SERVER_INIT = b"\x05\x00\x03\x20 and so on"


class Screen:
    """A VNC server. `types`: the security types that it offers; `result`: of the handshake."""

    def __init__(self) -> None:
        self.version = b"RFB 003.008\n"
        self.types = b"\x02\x01"
        self.result = b"\0\0\0\0"
        self.heard = b""
        self.hearing = asyncio.Event()
        self.writers: list[asyncio.StreamWriter] = []

    async def play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(EOFError, OSError):
            writer.write(self.version)
            assert await reader.readexactly(12) == b"RFB 003.008\n"
            writer.write(bytes([len(self.types)]) + self.types)
            if not self.types:
                writer.write(b"\0\0\0\4busy")
            assert await reader.readexactly(1) == b"\x01"
            writer.write(self.result)
            assert await reader.readexactly(1) == b"\x01"
            writer.write(SERVER_INIT)
            while data := await reader.read(65536):
                self.heard += data
                self.hearing.set()

    async def hears(self, wanted: bytes) -> None:
        while self.heard != wanted:
            self.hearing.clear()
            await self.hearing.wait()


class Site:
    """The web server with the proxy over the records of a `ComputeCloud`, and a guest that listens."""

    def __init__(self, cloud: ComputeCloud, directory: Path) -> None:
        self.cloud = cloud
        self.directory = directory
        self.port = free_port()
        self.screen = Screen()
        self.guest_ports: list[asyncio.Server] = []
        prefixes = Prefixes()
        self.site = ConsoleSite(
            ConsoleProxy(cloud.consoles, SystemClock(), url="http://public.test", allowed_origins=("dash.test",)),
            novnc=directory / "novnc", spice=directory / "spice",
        )
        prefixes.mount_sockets(self.site)
        prefixes.mount({"/console": self.site})
        self.web = WebServer(prefixes, "127.0.0.1", self.port)

    async def listen(self, play: Play) -> None:
        server = await asyncio.start_server(play, "127.0.0.1", 0)
        self.guest_ports.append(server)
        self.cloud.host.address = ConsoleAddress(host="127.0.0.1", port=server.sockets[0].getsockname()[1])

    async def listen_on_socket(self, play: Play) -> None:
        path = self.directory / ("long" * 40) / "console.sock"
        path.parent.mkdir(exist_ok=True)
        short = self.directory / "short.sock"
        server = await asyncio.start_unix_server(play, short)
        short.rename(path)
        self.guest_ports.append(server)
        self.cloud.host.address = ConsoleAddress(internal_access_path=str(path))

    async def token(self, server: Instance, kind: ConsoleKind = ConsoleKind.VNC, type_: str = "novnc") -> str:
        made = await self.cloud.consoles.create(await self.cloud.cells.locate(server.uuid), kind, type_)
        return made.token

    async def line(self, server: Instance) -> str:
        return await self.token(server, ConsoleKind.SERIAL, "serial")

    def connect(self, path: str, **options: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, **options)


@contextlib.asynccontextmanager
async def serving(cloud: ComputeCloud, directory: Path) -> AsyncIterator[Site]:
    made = Site(cloud, directory)
    made.web.open()
    await made.web.start()
    yield made
    for server in made.guest_ports:
        server.close()
    await made.web.close()


@pytest.fixture
async def site(cloud: ComputeCloud, tmp_path: Path) -> AsyncIterator[Site]:
    async with serving(cloud, tmp_path) as made:
        yield made


async def shake_hands(browser: ClientConnection) -> bytes:
    """As a browser does. Returns the first bytes of the guest's own."""
    assert await browser.recv() == b"RFB 003.008\n"
    await browser.send(b"RFB 003.008\n")
    assert await browser.recv() == b"\x01\x01"
    await browser.send(b"\x01")
    assert await browser.recv() == b"\0\0\0\0"
    await browser.send(b"\x01")
    data = await browser.recv()
    assert isinstance(data, bytes)
    return data


async def end_of(browser: ClientConnection) -> str:
    """Wait for the end; the reason that was given."""
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(10):
            while True:
                await browser.recv()
    return str(browser.close_reason)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data.upper())
        await writer.drain()
    writer.close()


async def test_a_screen_through_the_proxy(site: Site, cloud: ComputeCloud) -> None:
    await site.listen(site.screen.play)
    server = await cloud.boot()
    made = await cloud.consoles.create(await cloud.cells.locate(server.uuid), ConsoleKind.VNC, "novnc")
    (path,) = parse_qs(urlsplit(made.url).query)["path"]
    async with site.connect(f"/{path}", subprotocols=["binary"]) as browser:
        assert browser.subprotocol == "binary"
        assert await shake_hands(browser) == SERVER_INIT
        await browser.send(b"key presses")
        await browser.send(b" and more")
        async with asyncio.timeout(5):
            await site.screen.hears(b"key presses and more")
        site.screen.writers[0].write(b"pixels")
        assert await browser.recv() == b"pixels"


@pytest.mark.parametrize("way", ["query", "cookie", "below the page"])
async def test_the_token_comes_as_clients_send_it(site: Site, cloud: ComputeCloud, way: str) -> None:
    await site.listen(site.screen.play)
    token = await site.token(await cloud.boot())
    cookie = {"Cookie": f"theme=dark; token={token}"} if way == "cookie" else {}
    path = {"query": f"/?token={token}", "cookie": "/websockify"}.get(way, f"/console/novnc/vnc.html?token={token}")
    async with site.connect(path, additional_headers=cookie) as browser:
        assert await shake_hands(browser) == SERVER_INIT


@pytest.mark.spec("CON-26", "CON-28", "CON-20")
async def test_without_a_live_token_nothing_is_reached(site: Site, cloud: ComputeCloud) -> None:
    await site.listen(site.screen.play)
    server = await cloud.boot()
    token = await site.token(server)

    async def refused(path: str, **headers: str) -> None:
        with pytest.raises(InvalidStatus) as caught:
            async with site.connect(path, additional_headers=headers):
                pass
        assert caught.value.response.status_code == 403

    for path in ("/", "/?token=", "/?token=nonsense", "/console/novnc/?path=x", f"/?other={token}"):
        await refused(path)
    await refused("/", Cookie="token=nonsense")
    address = cloud.host.address
    cloud.host.address = ConsoleAddress(host="127.0.0.1", port=1)
    await refused(f"/?token={token}")
    cloud.host.address, cloud.host.error = address, NotFound("no guest")
    await refused(f"/?token={token}")
    cloud.host.error = None
    cloud.clock.time += 601
    await refused(f"/?token={token}")
    token = await site.token(server)
    now = cloud.clock.now()
    await cloud.cell.database.write(
        lambda conn: instances.update(conn, server.uuid, now=now, task_state=TaskState.DELETING)
    )
    await refused(f"/?token={token}")
    assert site.screen.writers == []


async def test_pages_of_others_do_not_connect(site: Site, cloud: ComputeCloud) -> None:
    await site.listen(site.screen.play)
    token = await site.token(await cloud.boot())
    for origin in ("http://evil.test", "null", "http://127.0.0.1.evil.test"):
        with pytest.raises(InvalidStatus) as caught:
            async with site.connect(f"/?token={token}", origin=origin):
                pass
        assert caught.value.response.status_code == 403
    assert site.screen.writers == []
    for origin in (f"http://127.0.0.1:{site.port}", "https://dash.test", "http://public.test"):
        async with site.connect(f"/?token={token}", origin=origin) as browser:
            assert await shake_hands(browser) == SERVER_INIT


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"types": b""}, "The screen refuses: busy"), ({"types": b"\x02"}, "The screen demands a password."),
        ({"result": b"\0\0\0\x01\0\0\0\x03bad"}, "The screen refuses: bad"),
        ({"version": b"HTTP/1.1 200"}, "The screen speaks no protocol that is known."),
        ({"version": b"RFB"}, "The screen does not answer."),
    ],
)
async def test_a_screen_that_refuses_says_so_in_its_protocol(
    site: Site, cloud: ComputeCloud, fault: dict[str, Any], reason: str
) -> None:
    for name, value in fault.items():
        setattr(site.screen, name, value)

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if site.screen.version == b"RFB":
            writer.write(b"RFB")
            writer.close()
            return
        await site.screen.play(reader, writer)

    await site.listen(play)
    async with site.connect(f"/?token={await site.token(await cloud.boot())}") as browser:
        assert await browser.recv() == rfb.VERSION
        await browser.send(rfb.VERSION)
        data = await browser.recv()
        assert data == b"\0" + len(reason).to_bytes(4, "big") + reason.encode()
        assert await end_of(browser) == reason


async def test_a_screen_that_is_gone_is_told_of(site: Site, cloud: ComputeCloud) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        cloud.host.address = ConsoleAddress(host="127.0.0.1", port=closed.getsockname()[1])
    async with site.connect(f"/?token={await site.token(await cloud.boot())}") as browser:
        assert await browser.recv() == rfb.VERSION
        await browser.send(rfb.VERSION)
        assert b"does not answer" in await browser.recv()  # type: ignore[operator]
        assert await end_of(browser) == "The console does not answer."


async def test_a_browser_that_wants_a_password_is_refused(site: Site, cloud: ComputeCloud) -> None:
    await site.listen(site.screen.play)
    server = await cloud.boot()
    async with site.connect(f"/?token={await site.token(server)}") as browser:
        await browser.recv()
        await browser.send(rfb.VERSION)
        await browser.recv()
        await browser.send(b"\x02")
        assert (await browser.recv())[:4] == b"\0\0\0\x01"
        await end_of(browser)
    async with site.connect(f"/?token={await site.token(server)}") as browser:
        await browser.recv()
        await browser.send(b"RFB 003.003\n")
        await end_of(browser)
    assert site.screen.heard == b""


@pytest.mark.parametrize("protocol", [None, "binary", "base64"])
async def test_a_serial_console(site: Site, cloud: ComputeCloud, protocol: Any) -> None:
    """Its socket has a long name, as in a deep directory. Spec: API-147."""
    await site.listen_on_socket(echo)
    token = await site.line(await cloud.boot())
    offered = [protocol] if protocol else None
    async with site.connect(f"/console/?token={token}", subprotocols=offered) as browser:
        assert browser.subprotocol == protocol
        if protocol == "base64":
            await browser.send(base64.b64encode(b"uname\n").decode())
            assert base64.b64decode(await browser.recv()) == b"UNAME\n"
            await browser.send("no base64!")
            await end_of(browser)
        else:
            await browser.send(b"uname\n")
            assert await browser.recv() == b"UNAME\n"
            await browser.send("text as well\n")
            assert await browser.recv() == b"TEXT AS WELL\n"


async def test_spice_is_passed_on_as_it_is(tmp_path: Path) -> None:
    """Its client opens a connection for each channel, all with the same cookie."""
    spice = ConsoleOptions(spice_enabled=True)
    async with compute_cloud(consoles=spice) as cloud, serving(cloud, tmp_path) as site:
        await site.listen(echo)
        token = await site.token(await cloud.boot(), ConsoleKind.SPICE, "spice-html5")
        cookie = {"Cookie": f"token={token}"}
        async with (
            site.connect("/websockify", additional_headers=cookie, subprotocols=["binary"]) as main,
            site.connect("/websockify", additional_headers=cookie, subprotocols=["binary"]) as display,
        ):
            for channel in (main, display):
                await channel.send(b"redq")
                assert await channel.recv() == b"REDQ"


async def test_the_newest_browser_gets_the_serial_console(site: Site, cloud: ComputeCloud) -> None:
    await site.listen_on_socket(echo)
    token = await site.line(await cloud.boot())
    async with site.connect(f"/?token={token}") as first:
        await first.send(b"a")
        assert await first.recv() == b"A"
        async with site.connect(f"/?token={token}") as second:
            await second.send(b"b")
            assert await second.recv() == b"B"
            assert await end_of(first) == "The console is open elsewhere."
            await second.send(b"c")
            assert await second.recv() == b"C"


async def test_a_browser_that_goes_leaves_nothing_open(site: Site, cloud: ComputeCloud) -> None:
    ended = asyncio.Event()

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(100):
            continue
        ended.set()
        writer.close()

    await site.listen_on_socket(play)
    async with site.connect(f"/?token={await site.line(await cloud.boot())}") as browser:
        await browser.send(b"x")
    async with asyncio.timeout(5):
        await ended.wait()


async def test_the_end_of_the_guest_ends_the_connection(site: Site, cloud: ComputeCloud) -> None:
    await site.listen(site.screen.play)
    async with site.connect(f"/?token={await site.token(await cloud.boot())}") as browser:
        await shake_hands(browser)
        site.screen.writers[0].close()
        assert await end_of(browser) == "The guest has closed its console."


@pytest.mark.spec("CON-20")
@pytest.mark.parametrize("fields", [{"task_state": TaskState.DELETING}, {"host": "host-2"}, {"deleted_at": 1.0}])
async def test_the_end_of_the_server_ends_the_connection(
    site: Site, cloud: ComputeCloud, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its guest lives on, for example on a host that is lost."""
    monkeypatch.setattr(proxy_module, "LOOK_INTERVAL", 0.05)
    await site.listen(site.screen.play)
    server = await cloud.boot()
    now = cloud.clock.now()
    async with site.connect(f"/?token={await site.token(server)}") as browser:
        await shake_hands(browser)
        await cloud.cell.database.write(
            lambda conn: instances.update(conn, server.uuid, now=now, display_name="renamed")
        )
        site.screen.writers[0].write(b"still there")
        assert await browser.recv() == b"still there"
        await cloud.cell.database.write(lambda conn: instances.update(conn, server.uuid, now=now, **fields))
        assert await end_of(browser) == "The server has been deleted or moved."


async def test_an_expired_token_leaves_the_connection_open(
    site: Site, cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    still_there = cloud.consoles.still_there

    async def look(right: Any) -> bool:
        looked.set()
        return await still_there(right)

    monkeypatch.setattr(proxy_module, "LOOK_INTERVAL", 0.02)
    monkeypatch.setattr(cloud.consoles, "still_there", look)
    await site.listen_on_socket(echo)
    async with site.connect(f"/?token={await site.line(await cloud.boot())}") as browser:
        cloud.clock.time += 10_000
        looked.clear()
        await looked.wait()
        await browser.send(b"x")
        assert await browser.recv() == b"X"


async def test_a_guest_that_writes_faster_than_its_browser_reads_is_held_up(site: Site, cloud: ComputeCloud) -> None:
    sent = 0
    total = 64 << 20

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while sent < total:
                writer.write(bytes(65536))
                await writer.drain()
                sent += 65536

    await site.listen_on_socket(flood)
    path = f"/?token={await site.line(await cloud.boot())}"
    async with site.connect(path, max_queue=2, close_timeout=0.1) as browser:
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < total / 2
        async with asyncio.timeout(10):
            while sent == before:
                await browser.recv()


async def test_a_browser_that_writes_faster_than_its_guest_reads_is_held_up(site: Site, cloud: ComputeCloud) -> None:
    reads, all_read = asyncio.Event(), asyncio.Event()
    got = expected = 0

    async def lazy(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await reads.wait()
        while data := await reader.read(65536):
            got += len(data)
            if expected and got >= expected:
                all_read.set()

    await site.listen_on_socket(lazy)
    async with site.connect(f"/?token={await site.line(await cloud.boot())}") as browser:
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                await asyncio.wait_for(browser.send(bytes(65536)), 1)
                sent += 65536
        assert 0 < sent < 32 << 20
        expected = sent
        reads.set()
        async with asyncio.timeout(10):
            await all_read.wait()


async def test_the_page_is_that_of_the_distribution(site: Site) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{site.port}/console") as browser:
        for path, package in (("/novnc/vnc_lite.html", "novnc"), ("/spice/spice_auto.html", "spice-html5")):
            answer = await browser.get(path)
            assert (answer.status_code, f"apt install {package}" in answer.text) == (503, True)
        (site.directory / "novnc").mkdir()
        (site.directory / "novnc/vnc_lite.html").write_text("<html>noVNC")
        answer = await browser.get("/novnc/vnc_lite.html?path=%3Ftoken%3Dx")
        assert (answer.status_code, answer.text, answer.headers["referrer-policy"]) == (
            200, "<html>noVNC", "no-referrer")
        assert "new WebSocket" in (await browser.get("/serial.html?token=x")).text
        for path in ("/novnc/none", "/novnc/../../short.sock", "/novnc/%2e%2e/%2e%2e/etc/passwd", "/", "/other"):
            assert (await browser.get(path)).status_code == 404


async def test_a_web_server_without_consoles_takes_no_websocket() -> None:
    port = free_port()
    web = WebServer(Prefixes(), "127.0.0.1", port)
    web.open()
    await web.start()
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://127.0.0.1:{port}/?token=x"):
            pass
    assert caught.value.response.status_code == 403
    await web.close()
