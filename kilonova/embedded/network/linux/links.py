"""Follows the network devices and filter tables of the machine, through netlink.

Two small parts of the protocol are read here by hand: a library for all of it costs more memory and start-up
time than the rest of the network service.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator

import msgspec

from kilonova.domain.errors import Retryable

_ROUTE_LINK_GROUP = 1
_NFNETLINK, _NFTABLES_GROUP = 12, 7
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_DONE, _NEWLINK, _DELLINK, _GETLINK = 3, 16, 17, 18
_REQUEST, _DUMP = 0x1, 0x300
_NAME, _MASTER = 3, 10
_DELETE_TABLE, _TABLE_NAME = (10 << 8) | 2, 1
_BUFFER = 1 << 20
DUMP_LIMIT = 5.0


class Link(msgspec.Struct, frozen=True):
    """A device. master: index of the bridge it is a port of, 0 if none."""

    name: str
    index: int
    master: int


class LinkMonitor:
    """Knows all devices, and tells of each change.

    Args:
        on_change: called with the name of a device that appeared, changed or went.
    """

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self.by_name: dict[str, Link] = {}
        self._on_change = on_change
        self._socket: socket.socket | None = None
        self._listed: asyncio.Event = asyncio.Event()
        self._seen: set[int] = set()

    async def start(self) -> None:
        """Begin, and read what is there. Raises Retryable if the kernel does not answer."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, _ROUTE_LINK_GROUP))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        self._ask()
        try:
            await asyncio.wait_for(self._listed.wait(), DUMP_LIMIT)
        except TimeoutError as error:
            raise Retryable("The kernel does not list its network devices.") from error

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def master_of(self, name: str) -> str | None:
        """Name of the bridge that a device is a port of; None without one or without the device."""
        link = self.by_name.get(name)
        if link is None or not link.master:
            return None
        return next((other.name for other in self.by_name.values() if other.index == link.master), None)

    def _ask(self) -> None:
        assert self._socket is not None
        self._seen = set()
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), _GETLINK, _REQUEST | _DUMP, 1, 0) + body)

    def _read(self) -> None:
        assert self._socket is not None
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError:  # the kernel dropped messages: read everything again
                self._ask()
                continue
            for kind, sequence, body in messages(data):
                self._take(kind, sequence, body)

    def _take(self, kind: int, sequence: int, body: bytes) -> None:
        if kind == _DONE:
            gone = [link.name for link in self.by_name.values() if link.index not in self._seen]
            for name in gone:
                del self.by_name[name]
                self._on_change(name)
            self._listed.set()
        elif kind in (_NEWLINK, _DELLINK) and body[0] == socket.AF_UNSPEC:
            index = struct.unpack_from("=i", body, 4)[0]
            found = dict(attributes(body[16:]))
            name = found[_NAME].rstrip(b"\0").decode()
            self._seen.add(index)
            for old in [link.name for link in self.by_name.values() if link.index == index and link.name != name]:
                del self.by_name[old]
                self._on_change(old)
            if kind == _DELLINK:
                self.by_name.pop(name, None)
            else:
                master = struct.unpack("=I", found[_MASTER])[0] if _MASTER in found else 0
                self.by_name[name] = Link(name, index, master)
            self._on_change(name)


class TableMonitor:
    """Tells when somebody deletes a filter table (a firewall service that reloads, `nft flush ruleset`)."""

    def __init__(self, name: str, on_loss: Callable[[], None]) -> None:
        self._name = name
        self._on_loss = on_loss
        self._muted = False
        self._socket: socket.socket | None = None

    def start(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NFNETLINK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFTABLES_GROUP)
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Tell nothing of what happens meanwhile: it is our own doing."""
        self._muted = True
        try:
            yield
            for _ in self._losses():
                pass
        finally:
            self._muted = False

    def _read(self) -> None:
        if any(list(self._losses())) and not self._muted:
            self._on_loss()

    def _losses(self) -> Iterator[bool]:
        while self._socket is not None:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return
            except OSError:  # too much happened at once, which only our own large changes cause
                continue
            for kind, _, body in messages(data):
                if kind == _DELETE_TABLE:
                    yield dict(attributes(body[4:])).get(_TABLE_NAME, b"").rstrip(b"\0").decode() == self._name


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, sequence number, body) of each message of a datagram."""
    while len(data) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        if length < 16:
            return
        yield kind, sequence, data[16:length]
        data = data[(length + 3) & ~3:]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3:]
