"""Whether a server of NBD is found to serve a volume."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_daemon import NbdDaemon

from kilonova.hypervisor.libvirt import nbd
from kilonova.hypervisor.volumes import NbdSource

pytestmark = pytest.mark.servers


@pytest.fixture
def daemon() -> Iterator[NbdDaemon]:
    made = NbdDaemon()
    made.start()
    yield made
    made.close()


def test_an_export_is_found_while_it_is_served(daemon: NbdDaemon) -> None:
    source, other = daemon.add(1 << 20), daemon.add(1 << 20)
    assert nbd.is_served(source)
    daemon.withdraw(source)
    assert (nbd.is_served(source), nbd.is_served(other)) == (False, True)
    daemon.kill()
    assert not nbd.is_served(other)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", nbd.GREETING, nbd.GREETING + b"\0\3\0"])
def test_whoever_says_something_else_serves_nothing(says: bytes) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def answer() -> None:
            client, _ = listening.accept()
            client.sendall(says)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                client.recv(1 << 10)
            client.close()

        server = threading.Thread(target=answer)
        server.start()
        port = listening.getsockname()[1]
        assert not nbd.is_served(NbdSource(export="any", host="127.0.0.1", port=port))
        server.join()


def test_a_server_that_wants_tls_is_believed(tmp_path: Path) -> None:
    assert nbd.is_served(NbdSource(export="any", socket=str(tmp_path / "absent"), tls=True))
    assert not nbd.is_served(NbdSource(export="any", socket=str(tmp_path / "absent")))
