"""Fetch image data from a URI, over connections to addresses that were checked.

The address that is checked is the one that is connected to: a name that resolves differently the second time,
or a redirection, leads nowhere else. All functions block; they run in a thread.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urljoin, urlsplit

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.image.files import CHUNK
from kilonova.embedded.image.import_rules import DEFAULT_PORTS, ImportRules, check_address, check_uri, local_file

SILENCE = 20.0
"""Seconds a server may be silent."""

DEADLINE = 6 * 3600.0
"""Seconds one import may take."""

MAX_REDIRECTS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Sink = Callable[[bytes], None]


class _Readable(Protocol):
    def read(self, amount: int, /) -> bytes: ...


def fetch(uri: str, rules: ImportRules, sink: Sink, stopped: threading.Event) -> None:
    """Give the data behind the URI to `sink`, chunk by chunk.

    Raises:
        InvalidInput: the rules do not allow it, or the server does not deliver it. InterruptedError: `stopped`
        was set. What `sink` raises.
    """
    check_uri(uri, rules)
    if urlsplit(uri).scheme == "file":
        _copy_file(local_file(uri, rules), sink, stopped)
        return
    for _ in range(MAX_REDIRECTS + 1):
        connection = _connect(uri, rules)
        try:
            location = _get(connection, uri, sink, stopped)
        except (http.client.HTTPException, OSError) as error:
            if isinstance(error, InterruptedError):
                raise
            raise InvalidInput(f"The server of the image failed: {error or type(error).__name__}.") from error
        finally:
            connection.close()
        if location is None:
            return
        uri = urljoin(uri, location)
        check_uri(uri, rules)
        if urlsplit(uri).scheme == "file":
            raise InvalidInput("The server of the image redirects to a file.")
    raise InvalidInput(f"The server of the image redirects more than {MAX_REDIRECTS} times.")


def _get(connection: http.client.HTTPConnection, uri: str, sink: Sink, stopped: threading.Event) -> str | None:
    """Fetch once; returns where the server redirects to."""
    parts = urlsplit(uri)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", path, headers={"Accept": "*/*", "User-Agent": "kilonova"})
    response = connection.getresponse()
    if response.status in REDIRECTS:
        location = response.getheader("Location")
        if not location:
            raise InvalidInput("The server of the image redirects to nowhere.")
        return location
    if response.status != 200:
        raise InvalidInput(f"The server of the image answered {response.status}.")
    expected = response.length
    if _copy(response, sink, stopped) != expected and expected is not None:
        raise InvalidInput("The server of the image broke off.")
    return None


def _copy(source: _Readable, sink: Sink, stopped: threading.Event) -> int:
    give_up = time.monotonic() + DEADLINE
    copied = 0
    while data := source.read(CHUNK):
        if stopped.is_set():
            raise InterruptedError
        if time.monotonic() > give_up:
            raise InvalidInput(f"The import took longer than {DEADLINE:.0f} seconds.")
        sink(data)
        copied += len(data)
    return copied


def _copy_file(path: Path, sink: Sink, stopped: threading.Event) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        raise InvalidInput("The file to import from cannot be opened.") from error
    with os.fdopen(fd, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidInput("The file to import from is not a regular file.")
        _copy(file, sink, stopped)


def _connect(uri: str, rules: ImportRules) -> http.client.HTTPConnection:
    parts = urlsplit(uri)
    host, port = parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme]
    try:
        sock = _open_socket(host, port, rules)
        if parts.scheme == "https":
            sock = _encrypted(sock, host)
    except (OSError, UnicodeError) as error:
        raise InvalidInput(f"The server of the image, {host}, cannot be reached: {error}.") from error
    connection = http.client.HTTPConnection(host, port, timeout=SILENCE)
    connection.sock = sock
    return connection


def _encrypted(sock: socket.socket, host: str) -> socket.socket:
    try:
        return ssl.create_default_context().wrap_socket(sock, server_hostname=host)
    except OSError:
        sock.close()
        raise


def _open_socket(host: str, port: int, rules: ImportRules) -> socket.socket:
    """Connect to the first of the host's addresses that answers, provided that all of them are allowed."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(sockaddr[0]).partition("%")[0] for *_, sockaddr in found]
    for address in addresses:
        check_address(ipaddress.ip_address(address), rules)
    failure = OSError("it has no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=SILENCE)
        except OSError as error:
            failure = error
    raise failure
