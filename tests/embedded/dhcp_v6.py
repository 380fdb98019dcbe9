"""A DHCPv6 client of our own (RFC 8415): busybox has none, and tests choose which client they claim to be."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import msgspec
from network_machine import LIMIT, Guest

SOLICIT, ADVERTISE, REQUEST, REPLY, INFORMATION = 1, 2, 3, 7, 11
_CLIENT_ID, _SERVER_ID, _IA_NA, _ADDRESS, _ASKED, _TIME, _DNS = 1, 2, 3, 5, 6, 8, 23
_SERVERS = "ff02::1:2"


class Answer(msgspec.Struct, frozen=True):
    addresses: list[str]
    dns: list[str]


async def ask(guest: Guest, mac: str, *, generation: int = 0) -> Answer:
    """Get the addresses of the guest. generation: another one is another client on the same interface."""
    client = struct.pack("!HHI", 1, 1, generation) + bytes.fromhex(mac.replace(":", ""))
    wanted = _option(_IA_NA, struct.pack("!III", 1, 0, 0))
    offered = await _exchange(guest, SOLICIT, ADVERTISE, _option(_CLIENT_ID, client) + wanted)
    options = dict(_options(offered))
    chosen = _option(_CLIENT_ID, client) + _option(_SERVER_ID, options[_SERVER_ID])
    if _IA_NA in options:
        chosen += _option(_IA_NA, options[_IA_NA])
    reply = await _exchange(guest, REQUEST, REPLY, chosen)
    return _read(reply)


async def inform(guest: Guest, mac: str) -> Answer:
    """Ask for all but addresses."""
    client = struct.pack("!HH", 3, 1) + bytes.fromhex(mac.replace(":", ""))
    return _read(await _exchange(guest, INFORMATION, REPLY, _option(_CLIENT_ID, client)))


def _read(body: bytes) -> Answer:
    options = dict(_options(body))
    held = [bytes(value[:16]) for kind, value in _options(options.get(_IA_NA, bytes(12))[12:]) if kind == _ADDRESS]
    dns = options.get(_DNS, b"")
    return Answer([socket.inet_ntop(socket.AF_INET6, ip) for ip in held],
                  [socket.inet_ntop(socket.AF_INET6, dns[at:at + 16]) for at in range(0, len(dns), 16)])


async def _exchange(guest: Guest, kind: int, answer: int, body: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    index = _index(guest)
    await guest.built()  # it asks from its link-local address
    transaction = os.urandom(3)
    asked = _option(_ASKED, struct.pack("!H", _DNS)) + _option(_TIME, bytes(2))
    with guest.socket(socket.SOCK_DGRAM, socket.AF_INET6) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("::", 546))
        async with asyncio.timeout(LIMIT):
            while True:
                await loop.sock_sendto(client, bytes([kind]) + transaction + body + asked, (_SERVERS, 547, 0, index))
                try:
                    data = await asyncio.wait_for(loop.sock_recv(client, 4096), 1.0)
                except TimeoutError:
                    continue
                if data[0] == answer and data[1:4] == transaction:
                    return data[4:]


def _index(guest: Guest) -> int:
    return int(guest.run("ip", "-o", "link", "show", "eth0").partition(":")[0])


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value


def _options(data: bytes) -> list[tuple[int, bytes]]:
    found = []
    while len(data) >= 4:
        kind, length = struct.unpack_from("!HH", data)
        found.append((kind, data[4:4 + length]))
        data = data[4 + length:]
    return found
