"""Messages that give leases back, in the name of guests that can no longer do so."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

import msgspec

_SERVERS_V6 = "ff02::1:2"
_RELEASE_V6, _CLIENT_ID, _SERVER_ID, _IA_NA, _ADDRESS, _TIME = 8, 1, 2, 3, 5, 8


class ReleaseV4(msgspec.Struct, frozen=True):
    """A DHCPRELEASE message (RFC 2131)."""

    mac: str
    address: str
    server: str

    def encode(self) -> bytes:
        hardware = bytes.fromhex(self.mac.replace(":", ""))
        head = struct.pack("!BBBBIHH", 1, 1, 6, 0, 0x6B6E, 0, 0)
        head += IPv4Address(self.address).packed + bytes(12) + hardware + bytes(10 + 192)
        return head + b"\x63\x82\x53\x63" + b"\x35\x01\x07" + b"\x36\x04" + IPv4Address(self.server).packed + b"\xff"


class ReleaseV6(msgspec.Struct, frozen=True):
    """A Release message of DHCPv6 (RFC 8415). association: the client's number of the interface."""

    client: bytes
    server: bytes
    association: int
    address: str

    def encode(self) -> bytes:
        held = _option(_ADDRESS, IPv6Address(self.address).packed + bytes(8))
        return bytes([_RELEASE_V6, 0, 0x6B, 0x6E]) + b"".join((
            _option(_CLIENT_ID, self.client), _option(_SERVER_ID, self.server), _option(_TIME, bytes(2)),
            _option(_IA_NA, struct.pack("!III", self.association, 0, 0) + held),
        ))


def of_leases(text: str, addresses: frozenset[str]) -> Iterator[ReleaseV6]:
    """What gives these addresses back, read from the server's file of leases.

    Its lines are "duid" and the server's ID, and for each lease time, number, address, name and ID of the client.
    """
    lines = [line.split() for line in text.splitlines()]
    server = next((_octets(line[1]) for line in lines if line[:1] == ["duid"]), b"")
    for line in lines:
        if len(line) == 5 and line[2] in addresses and line[1].isdigit():
            yield ReleaseV6(_octets(line[4]), server, int(line[1]), line[2])


def send_v4(bridge: str, server: str, mac: str, address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        sender.sendto(ReleaseV4(mac, address, server).encode(), (server, 67))


def send_v6(bridge: str, release: ReleaseV6) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
        sender.bind(("::", 546))  # the port that guests send from: others do not reach the server
        sender.sendto(release.encode(), (_SERVERS_V6, 547))


def _option(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
