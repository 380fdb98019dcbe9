"""The bus over NATS when its server dies, hangs, is not there yet, or is started by somebody else."""

from __future__ import annotations

import asyncio
import datetime
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nats_servers import bus_server, free_port

from kilonova.bus import nats as bus_nats
from kilonova.bus import nats_link
from kilonova.bus.credentials import CONTROL, Credentials
from kilonova.bus.nats import NatsBus
from kilonova.bus.server import BusServer
from kilonova.bus.server_config import TlsFiles
from kilonova.domain import trail
from kilonova.domain.errors import InvalidInput, ServiceUnavailable, Unreachable

pytestmark = pytest.mark.servers

LIMIT = 20.0


async def echo(_subject: str, payload: bytes) -> bytes:
    return payload


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds. What is asked does the waiting: a request, a connection."""
    async with asyncio.timeout(LIMIT):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.01)


async def answered(bus: NatsBus) -> bool:
    try:
        return await bus.request("kn.host.a.command", b"?", timeout=1) == b"?"
    except Unreachable:
        return False


def pid_of(directory: Path) -> int:
    return int((directory / "nats.pid").read_text())


async def test_after_the_death_of_the_server_everything_goes_on_by_itself(tmp_path: Path) -> None:
    async with bus_server(tmp_path) as server:
        here = await NatsBus.connect([server.url], server.control())
        there = await NatsBus.connect([server.url], await server.add_host("a"))
        await there.subscribe("kn.host.a.command", echo)
        first = pid_of(tmp_path)
        for _ in range(2):
            assert await answered(here)
            os.kill(pid_of(tmp_path), signal.SIGKILL)
            await until(lambda: _is(lambda: not here.connected))
            await until(lambda: answered(here))
        assert pid_of(tmp_path) != first
        await here.close()
        await there.close()


async def _is(holds: Callable[[], bool]) -> bool:
    return holds()


async def test_without_a_server_publishing_waits_and_requests_are_refused_at_once(tmp_path: Path) -> None:
    server = BusServer(tmp_path, port=free_port())
    await server.start()
    bus = await NatsBus.connect([server.url], server.control())
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(_subject: str, payload: bytes) -> None:
        heard.put_nowait(payload)

    await server.stop()
    await until(lambda: _is(lambda: not bus.connected))
    started = time.monotonic()
    await bus.publish("kn.watch.x", b"kept")
    await bus.subscribe("kn.watch.x", hear)
    with pytest.raises(Unreachable):
        await bus.request("kn.host.a.command", b"", timeout=LIMIT)
    assert time.monotonic() - started < 0.5
    await server.start()
    async with asyncio.timeout(LIMIT):
        assert await heard.get() == b"kept"
    await bus.close()
    await server.stop()


async def test_what_waits_is_bounded_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_nats, "BUFFER_LIMIT", 1000)
    monkeypatch.setattr(bus_nats, "FIRST_CONNECTION_LIMIT", 0.05)
    server = BusServer(tmp_path, port=free_port())
    bus = await NatsBus.connect([server.url], server.control())
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(_subject: str, payload: bytes) -> None:
        heard.put_nowait(payload)

    await bus.subscribe("kn.watch.x", hear)
    for number in range(100):
        await bus.publish("kn.watch.x", str(number).encode().ljust(100))
    await server.start()
    async with asyncio.timeout(LIMIT):
        assert [int(await heard.get()) for _ in range(10)] == list(range(90, 100))
    await bus.close()
    await server.stop()


async def test_a_request_under_way_ends_when_the_server_dies(tmp_path: Path) -> None:
    async with bus_server(tmp_path) as server:
        bus = await NatsBus.connect([server.url], server.control())
        running = asyncio.Event()

        async def endless(_subject: str, _payload: bytes) -> None:
            running.set()
            await asyncio.Event().wait()

        await bus.subscribe("kn.host.a.command", endless)
        asked = asyncio.create_task(bus.request("kn.host.a.command", b"", timeout=600))
        async with asyncio.timeout(LIMIT):
            await running.wait()
            os.kill(pid_of(tmp_path), signal.SIGKILL)
            with pytest.raises(Unreachable):
                await asked
        await bus.close()


async def test_a_server_that_hangs_counts_as_lost_and_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_link, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(nats_link, "ANSWER_LIMIT", 0.3)
    monkeypatch.setattr(nats_link, "PENDING_LIMIT", 2**20)
    monkeypatch.setattr(bus_nats, "BUFFER_LIMIT", 2**20)
    async with bus_server(tmp_path) as server:
        bus = await NatsBus.connect([server.url], server.control())
        await bus.subscribe("kn.host.a.command", echo)
        pid = pid_of(tmp_path)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(LIMIT):
                for _ in range(200):  # far more than sockets and buffers hold
                    await bus.publish("kn.watch.x", bytes(2**17))
            await until(lambda: _is(lambda: not bus.connected))
        finally:
            os.kill(pid, signal.SIGCONT)
        await until(lambda: answered(bus))
        await bus.close()


async def test_an_agent_may_be_there_before_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_nats, "FIRST_CONNECTION_LIMIT", 0.05)
    server = BusServer(tmp_path, port=free_port())
    bus = await NatsBus.connect([server.url], server.control())
    assert not bus.connected
    await bus.subscribe("kn.host.a.command", echo)
    await server.start()
    await until(lambda: answered(bus))
    await bus.close()
    await server.stop()


async def test_of_several_servers_one_that_answers_is_found(tmp_path: Path) -> None:
    async with bus_server(tmp_path) as server:
        nobody = f"nats://127.0.0.1:{free_port()}"
        for order in ([nobody, server.url], [server.url, nobody]):
            bus = await NatsBus.connect(order, server.control())
            assert bus.connected
            await bus.close()


async def test_refused_credentials_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host may start before it was added, or be added anew."""
    monkeypatch.setattr(bus_nats, "FIRST_CONNECTION_LIMIT", 0.05)
    monkeypatch.setattr("kilonova.bus.server.new_password", lambda: "known-in-advance")
    async with bus_server(tmp_path) as server:
        early = await NatsBus.connect([server.url], Credentials(user="host.late", password="known-in-advance"))
        assert not early.connected
        await early.subscribe("kn.host.late.command", echo)
        await server.add_host("late")
        await until(lambda: _is(lambda: early.connected))
        await early.close()


async def test_a_server_left_behind_is_taken_over(tmp_path: Path) -> None:
    port = free_port()
    left = leave_behind(tmp_path, port)
    server = BusServer(tmp_path, port=port)
    await server.start()
    assert pid_of(tmp_path) == left
    bus = await NatsBus.connect([server.url], await server.add_host("a"))
    assert bus.connected
    await bus.close()
    await server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1).close()


def leave_behind(directory: Path, port: int) -> int:
    """The pid of a server whose starter was killed."""
    killed = subprocess.run(
        [sys.executable, "-c", _START_AND_DIE, str(directory), str(port)], capture_output=True, timeout=60, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = pid_of(directory)
    os.kill(left, 0)
    return left


_START_AND_DIE = """
import asyncio, os, pathlib, signal, sys
from kilonova.bus.server import BusServer

async def main():
    await BusServer(pathlib.Path(sys.argv[1]), port=int(sys.argv[2])).start()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_server_left_behind_with_other_settings_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    left = leave_behind(tmp_path, port)
    server = BusServer(tmp_path, port=free_port())
    await server.start()
    assert pid_of(tmp_path) != left
    bus = await NatsBus.connect([server.url], server.control())
    assert bus.connected
    await bus.close()
    await server.stop()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


async def test_the_number_of_another_process_is_left_alone(
    tmp_path: Path, bystander: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "nats.pid").write_text(str(bystander.pid))
    async with bus_server(tmp_path):
        assert pid_of(tmp_path) != bystander.pid
    assert bystander.poll() is None


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = BusServer(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ServiceUnavailable, match="address already in use"):
            await server.start()


async def test_hosts_are_known_after_a_restart(tmp_path: Path) -> None:
    port = free_port()
    server = BusServer(tmp_path, port=port)
    await server.start()
    made, control = await server.add_host("a"), server.control()
    await server.stop()
    again = BusServer(tmp_path, port=port)
    await again.start()
    assert again.control() == control
    bus = await NatsBus.connect([again.url], made)
    assert bus.connected
    await bus.close()
    await again.stop()


@pytest.mark.parametrize("url", ["", "localhost", "http://h:4222", "nats://", "nats://h:port", "nats://h:99999"])
async def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="NATS"):
        await NatsBus.connect([url], Credentials(user=CONTROL, password="x"))


async def test_a_message_too_large_is_refused_and_the_connection_lives(tmp_path: Path) -> None:
    async with bus_server(tmp_path) as server:
        bus = await NatsBus.connect([server.url], server.control())

        async def huge(_subject: str, payload: bytes) -> bytes:
            return bytes(bus_nats.MAX_PAYLOAD + 1) if payload == b"huge" else bytes(bus_nats.MAX_PAYLOAD)

        await bus.subscribe("kn.host.a.command", huge)
        with pytest.raises(InvalidInput):
            await bus.publish("kn.watch.x", bytes(bus_nats.MAX_PAYLOAD + 1))
        with pytest.raises(Unreachable, match="failed"):
            await bus.request("kn.host.a.command", b"huge", timeout=LIMIT)
        with trail.serving("req-1"):  # what goes with a message must not make it too large
            assert len(await bus.request("kn.host.a.command", b"", timeout=LIMIT)) == bus_nats.MAX_PAYLOAD
            largest = bytes(bus_nats.MAX_PAYLOAD)
            assert len(await bus.request("kn.host.a.command", largest, timeout=LIMIT)) == bus_nats.MAX_PAYLOAD
        await bus.close()


async def test_over_tls_only_the_right_server_is_talked_to(tmp_path: Path) -> None:
    files, stranger = _certificates(tmp_path / "ours"), _certificates(tmp_path / "theirs")
    server = BusServer(tmp_path, port=free_port(), tls=files)
    await server.start()
    bus = await NatsBus.connect([server.url], server.control(), tls=ssl.create_default_context(cafile=files.authority))
    await bus.subscribe("kn.host.a.command", echo)
    assert await answered(bus)
    await bus.close()
    wrong = ssl.create_default_context(cafile=stranger.authority)
    with pytest.raises(ssl.SSLError):
        await nats_link.Link.open(server.url, server.control(), wrong)
    with pytest.raises(nats_link.LinkErrors):
        await nats_link.Link.open(server.url, server.control(), None)
    await server.stop()


async def test_a_client_that_wants_tls_sends_no_password_without(tmp_path: Path) -> None:
    files = _certificates(tmp_path / "ours")
    said: list[bytes] = []

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"auth_required":true}\r\n')
        said.append(await reader.read(65536))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
        url = f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        with pytest.raises(nats_link.LinkErrors):
            await nats_link.Link.open(
                url, Credentials(user=CONTROL, password="secret"), ssl.create_default_context(cafile=files.authority)
            )
    assert said
    assert not any(b"secret" in words for words in said)


def test_without_nats_its_client_is_not_loaded() -> None:
    program = "import sys, kilonova.bus.local, kilonova.bus.nats; sys.exit('nats' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def _certificates(directory: Path) -> TlsFiles:
    """A certificate for 127.0.0.1 that is its own authority."""
    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bus")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "bus.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (directory / "bus.key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ))
    crt = directory / "bus.crt"
    return TlsFiles(certificate=crt, key=directory / "bus.key", authority=crt)
