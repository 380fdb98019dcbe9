"""The screen and the serial console of a real guest, as a browser reaches them."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from clouds import RealCloud, real_cloud, wait_for
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from kilonova import guestimage

BOOT_LIMIT = 180.0
ANSWER_LIMIT = 30.0


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KILONOVA__CONSOLES__SPICE_ENABLED", "true")
        with real_cloud("libvirt") as made:
            yield made


@pytest.fixture(scope="module")
def server(cloud: RealCloud, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A server whose guest has come up."""
    image = cloud.upload(guestimage.build(tmp_path_factory.mktemp("image") / "guest.qcow2"))
    body = {"server": {"name": "seen", "flavorRef": "1", "imageRef": image, "networks": [{"uuid": cloud.network()}]}}
    made: str = cloud.call("POST", "/compute/v2.1/servers", body).json()["server"]["id"]
    wait_for("the boot", lambda: "LOGIN READY" in output(cloud, made), BOOT_LIMIT, 1.0)
    return made


def output(cloud: RealCloud, server: str) -> str:
    answer = cloud.call("POST", f"/compute/v2.1/servers/{server}/action", {"os-getConsoleOutput": {}})
    return str(answer.json().get("output", "")) if answer.status_code == 200 else ""


def open_console(cloud: RealCloud, server: str, protocol: str, type_: str) -> str:
    """Ask for a console; returns the URL of its WebSocket."""
    body = {"remote_console": {"protocol": protocol, "type": type_}}
    answer = cloud.call("POST", f"/compute/v2.1/servers/{server}/remote-consoles", body, version="2.6")
    assert answer.status_code == 200, answer.text
    url: str = answer.json()["remote_console"]["url"]
    if type_ != "novnc":
        return url
    (path,) = parse_qs(urlsplit(url).query)["path"]
    return f"ws://127.0.0.1:{cloud.port}/{path}"


class Screen:
    """What a VNC client does."""

    def __init__(self, browser: ClientConnection) -> None:
        self._browser = browser
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            data = self._browser.recv(ANSWER_LIMIT)
            assert isinstance(data, bytes)
            self._left += data
        data, self._left = self._left[:size], self._left[size:]
        return data

    def begin(self) -> tuple[int, int, str]:
        """Width, height and name of the screen."""
        assert self.read(12) == b"RFB 003.008\n"
        self._browser.send(b"RFB 003.008\n")
        assert self.read(2) == b"\x01\x01"
        self._browser.send(b"\x01")
        assert self.read(4) == bytes(4)
        self._browser.send(b"\x01")
        width, height, bits, size = struct.unpack(">HHB15xI", self.read(24))
        assert bits in (8, 16, 32)
        return width, height, self.read(size).decode()

    def picture(self, width: int, height: int) -> bytes:
        """The first rectangle of the picture, without compression."""
        self._browser.send(struct.pack(">BxHi", 2, 1, 0))
        self._browser.send(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        kind, count = struct.unpack(">BxH", self.read(4))
        assert (kind, count >= 1) == (0, True)
        _x, _y, w, h, encoding = struct.unpack(">HHHHi", self.read(12))
        assert encoding == 0
        return self.read(w * h * 4)


def type_until(browser: ClientConnection, typed: bytes, wanted: bytes) -> None:
    """Type it, again and again: programs that take over a terminal throw away what was typed before."""
    seen = b""
    for _ in range(10):
        browser.send(typed)
        with contextlib.suppress(TimeoutError):
            while wanted not in seen:
                data: Any = browser.recv(ANSWER_LIMIT / 10)
                seen += data
            return
    raise AssertionError(f"{wanted!r} is not in {seen!r}")


@pytest.mark.timeout(600)
@pytest.mark.spec("API-182", "CON-13")
def test_the_screen_is_seen_through_the_proxy(cloud: RealCloud, server: str) -> None:
    with connect(open_console(cloud, server, "vnc", "novnc"), compression=None, max_size=None) as browser:
        screen = Screen(browser)
        width, height, name = screen.begin()
        assert width >= 320
        assert height >= 200
        assert name.startswith("QEMU")
        assert len(set(screen.picture(width, height))) > 1


@pytest.mark.timeout(600)
@pytest.mark.spec("API-182", "CON-13")
def test_commands_are_typed_on_the_serial_console_and_recorded(cloud: RealCloud, server: str) -> None:
    with connect(open_console(cloud, server, "serial", "serial"), compression=None, subprotocols=["binary"]) as browser:
        type_until(browser, b"\n", b"login: ")
        type_until(browser, b"root\n", b"# ")
        type_until(browser, b"echo answer $((6 * 7))\n", b"answer 42")
        browser.send(b"exit\n")
    wait_for("the record", lambda: "answer 42" in output(cloud, server), 20)
    with connect(open_console(cloud, server, "serial", "serial"), compression=None) as browser:
        type_until(browser, b"\n", b"login: ")


@pytest.mark.timeout(600)
@pytest.mark.spec("API-182", "CON-13")
def test_spice_answers_through_the_proxy(cloud: RealCloud, server: str) -> None:
    url = open_console(cloud, server, "spice", "spice-html5")
    (token,) = parse_qs(urlsplit(url).query)["token"]
    with connect(
        f"ws://127.0.0.1:{cloud.port}/websockify", compression=None, additional_headers={"Cookie": f"token={token}"}
    ) as browser:
        main_channel, no_capabilities, end = 1, 0, 18
        link = struct.pack("<IBBIII", 0, main_channel, 0, no_capabilities, no_capabilities, end)
        browser.send(struct.pack("<4sIII", b"REDQ", 2, 2, len(link)) + link)
        answer: Any = b""
        while len(answer) < 20:
            answer += browser.recv(ANSWER_LIMIT)
        magic, major, _minor, _size, error = struct.unpack("<4sIIII", answer[:20])
        assert (magic, major, error) == (b"REDQ", 2, 0)


@pytest.mark.timeout(600)
@pytest.mark.spec("API-145", "API-147")
def test_the_openstack_client_shows_addresses(cloud: RealCloud, server: str) -> None:
    for kind, start in (("--spice", f"http://127.0.0.1:{cloud.port}/console/spice/spice_auto.html?token="),
                        ("--novnc", f"http://127.0.0.1:{cloud.port}/console/novnc/vnc_lite.html?path="),
                        ("--serial", f"ws://127.0.0.1:{cloud.port}/console/?token=")):
        shown = json.loads(cloud.openstack("console", "url", "show", kind, server, "-f", "json"))
        assert shown["url"].startswith(start)
    assert "Unavailable console type rdp" in cloud.openstack(
        "console", "url", "show", "--rdp", server, check=False
    )


@pytest.mark.timeout(600)
@pytest.mark.spec("CON-20", "CON-28")
def test_the_end_of_the_server_ends_its_consoles(cloud: RealCloud, server: str) -> None:
    url = open_console(cloud, server, "vnc", "novnc")
    with connect(url, compression=None, max_size=None) as browser:
        Screen(browser).begin()
        cloud.call("POST", f"/compute/v2.1/servers/{server}/action", {"reboot": {"type": "HARD"}})
        with pytest.raises(ConnectionClosed):
            while True:
                browser.recv(ANSWER_LIMIT)
    with pytest.raises(InvalidStatus):
        connect(url)
    wait_for("the reboot", lambda: cloud.servers()[0]["OS-EXT-STS:task_state"] is None, 60)
    url = open_console(cloud, server, "vnc", "novnc")
    with connect(url, compression=None, max_size=None) as browser:
        Screen(browser).begin()
        assert cloud.call("DELETE", f"/compute/v2.1/servers/{server}").status_code == 204
        with pytest.raises(ConnectionClosed):
            while True:
                browser.recv(ANSWER_LIMIT)
    with pytest.raises(InvalidStatus):
        connect(url)
