"""The metadata service: tells guests about themselves at http://169.254.169.254 and http://[fe80::a9fe:a9fe].

There is one listening socket for each network and version of IP, bound to its bridge. Who asks follows from that
socket and the source address alone, which the network's filters vouch for; no header can claim to be somebody else.
Two networks may use the same addresses.

The HTTP spoken is the least that guests need: GET, and POST of the encrypted password, one request for each
connection, small and soon.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import structlog

from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.document import is_dynamic_vendor_data, is_password, render
from kilonova.metadata.vendor_data import VendorData

log = structlog.get_logger(__name__)

ADDRESS, ADDRESS_V6, PORT = "169.254.169.254", "fe80::a9fe:a9fe", 80
REQUEST_LIMIT = 10.0
"""Seconds a guest may take to send its request, and to take the answer."""

_FREEBIND_V6 = 78  # IPV6_FREEBIND of Linux, which Python has no name for
MAX_HEAD = 8192
MAX_CONNECTIONS = 64
"""At once, for each network: a guest cannot use up the machine's file descriptors."""

InstanceAt = Callable[[str, str], Awaitable[str | None]]
"""The instance that has an address (second) on a network (first)."""

Lookup = Callable[[str], Awaitable[GuestMetadata | None]]
"""What an instance may know of itself."""

Keep = Callable[[str, str], Awaitable[bool]]
"""Keeps what an instance (first) tells of its password (second); False if it has told before."""

MAX_PASSWORD = 1020
"""Bytes of an encrypted password."""

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 409: "Conflict",
    503: "Service Unavailable",
}


class MetadataService:
    """Answers guests on every network it is told of (a `BridgeListener` of the network service).

    Args:
        instance_at: usually `EmbeddedNetwork.instance_at`. lookup: None for an instance that is not known.
        keep: where a password goes that a guest tells.
        vendor: what the operator tells guests.
        address, port: where to listen on each bridge.
    """

    def __init__(
        self, instance_at: InstanceAt, lookup: Lookup, keep: Keep, vendor: VendorData, *, address: str = ADDRESS,
        port: int = PORT,
    ) -> None:
        self._instance_at = instance_at
        self._lookup = lookup
        self._keep = keep
        self._vendor = vendor
        self._where = (address, port)
        self._servers: dict[str, list[asyncio.Server]] = {}
        self._connections: dict[str, set[asyncio.Task[None]]] = {}

    async def opened(self, network_id: str, bridge: str) -> None:
        """Listen on a network's bridge. Doing so again begins anew, as the bridge may be a new one."""
        await self.closed(network_id)
        connections = self._connections[network_id] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            if len(connections) >= MAX_CONNECTIONS:
                writer.transport.abort()
                return
            connections.add(task)
            try:
                await self._serve(network_id, reader, writer)
            finally:
                connections.discard(task)

        listeners = [_listener(socket.AF_INET, self._where, bridge)]
        try:
            if bridge and has_ipv6():
                where = (ADDRESS_V6, self._where[1], 0, socket.if_nametoindex(bridge))
                listeners.append(_listener(socket.AF_INET6, where, bridge))
            for listener in listeners:
                server = await asyncio.start_server(serve, sock=listener, limit=MAX_HEAD)
                self._servers.setdefault(network_id, []).append(server)
        except BaseException:
            for listener in listeners:
                listener.close()
            raise

    async def closed(self, network_id: str) -> None:
        """Stop listening for a network; requests that run are cut."""
        for server in self._servers.pop(network_id, []):
            server.close()
        tasks = self._connections.pop(network_id, set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop listening everywhere."""
        for network_id in list(self._servers):
            await self.closed(network_id)

    async def _serve(self, network_id: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_LIMIT):
                head = await reader.readuntil(b"\r\n\r\n")
                source = writer.get_extra_info("peername")[0].partition("%")[0]
                status, body = await self._answer(network_id, source, head, reader)
                writer.write(_response(status, body))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()

    async def _answer(
        self, network_id: str, source: str, head: bytes, reader: asyncio.StreamReader
    ) -> tuple[int, bytes]:
        request = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        if len(request) != 3 or not request[2].startswith("HTTP/1."):
            return 400, b"Bad Request"
        method, target, _ = request
        path = unquote(urlsplit(target).path)
        if method != "GET" and not (method == "POST" and is_password(path)):
            return 405, b"Method Not Allowed"
        try:
            instance = await self._instance_at(network_id, source)
            metadata = await self._lookup(instance) if instance else None
            if method == "POST" and metadata is not None:
                return await self._take_password(metadata.instance_uuid, head, reader)
            vendor = self._vendor.fixed
            if metadata is not None and is_dynamic_vendor_data(path):
                vendor = await self._vendor.of(metadata)
        except KilonovaError as error:
            log.warning("metadata cannot be told now", network=network_id, error=str(error))
            return 503, b"Service Unavailable"
        body = render(metadata, path, vendor=vendor) if metadata and method == "GET" else None
        return (404, b"Not Found") if body is None else (200, body)

    async def _take_password(
        self, instance_uuid: str, head: bytes, reader: asyncio.StreamReader
    ) -> tuple[int, bytes]:
        """A guest tells its password once; what it told may be cleared through the Compute API."""
        length = _content_length(head)
        if length is None or length > MAX_PASSWORD:
            return 400, b"Bad Request"
        password = await reader.readexactly(length)
        if not password.isascii():
            return 400, b"Bad Request"
        return (200, b"") if await self._keep(instance_uuid, password.decode("ascii")) else (409, b"Conflict")


def has_ipv6() -> bool:
    """Whether the machine's kernel speaks IPv6."""
    return Path("/proc/sys/net/ipv6").exists()


def _listener(family: int, where: tuple[str, int] | tuple[str, int, int, int], bridge: str) -> socket.socket:
    """A listening socket; the bridge may have the address later."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bridge:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, _FREEBIND_V6, 1)
        listener.bind(where)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _content_length(head: bytes) -> int | None:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length" and value.strip().isdigit():
            return int(value)
    return None


def _response(status: int, body: bytes) -> bytes:
    kind = b"application/json" if body[:1] in (b"{", b"[") else b"text/plain; charset=utf-8"
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    return head.encode() + b"Content-Type: " + kind + b"\r\n\r\n" + body
