"""A machine of our own for tests of the data path: network namespaces for the host and for guests.

The test's thread moves into a fresh namespace, which thus is "the host" for everything under test; guests are
further namespaces, joined by veth pairs whose host end has the name of the port's tap.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
LIMIT = 15.0
V4, V6 = socket.AF_INET, socket.AF_INET6
SILENCE = 0.7
"""Seconds after which a packet that has not arrived counts as dropped."""

_libc = ctypes.CDLL(None, use_errno=True)
_SCRIPT = """#!/bin/sh
case "$1" in
 deconfig) ip -4 addr flush dev $interface; ip link set $interface up;;
 bound|renew) ip addr add $ip/$mask dev $interface
  [ -n "$mtu" ] && ip link set dev $interface mtu $mtu
  set -- $staticroutes
  while [ -n "$1" ]; do
   [ "$2" = 0.0.0.0 ] && ip route add $1 dev $interface || ip route add $1 via $2 dev $interface
   shift 2
  done
  echo "dns=$dns" > $0.out;;
esac
"""


def _call(function: str, *arguments: int) -> None:
    if getattr(_libc, function)(*arguments):
        raise OSError(ctypes.get_errno(), f"{function} failed: these tests need root")


def _in_thread(work: Callable[[], T]) -> T:
    """Run in a thread of its own, which may change its namespace."""
    result: list[T] = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join(LIMIT)
    return result[0]


def _new_namespace() -> int:
    def make() -> int:
        _call("unshare", CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    return _in_thread(make)


def tool(*arguments: str) -> str:
    """Run a command and return its output."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


class Namespace:
    """A network namespace, alive as long as this object's file."""

    def __init__(self) -> None:
        self.fd = _new_namespace()
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *arguments: str) -> str:
        return tool("nsenter", f"--net={self.path}", *arguments)

    def within(self, work: Callable[[], T]) -> T:
        """Do some work in the namespace."""
        def inside() -> T:
            _call("setns", self.fd, CLONE_NEWNET)
            return work()

        return _in_thread(inside)

    def socket(self, kind: int = socket.SOCK_STREAM, family: int = V4, protocol: int = 0) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(family, kind, protocol)
            made.setblocking(False)
            return made

        return self.within(make)

    async def connects(self, address: str, port: int, source: str | None = None) -> bool:
        """Whether a TCP connection is made before silence."""
        with self.socket(family=family_of(address)) as client:
            return await connects(client, address, port, source)

    async def reaches(self, address: str, port: int, source: str | None = None) -> bool:
        """As `connects`, where one is expected: it may take its time on a machine that is busy."""
        with self.socket(family=family_of(address)) as client:
            return await reaches(client, address, port, source)

    async def listen(self, port: int, family: int = V4) -> asyncio.Server:
        """An echo server."""
        return await listen(self.socket(family=family), port)

    def close(self) -> None:
        os.close(self.fd)


class Guest(Namespace):
    """A guest whose interface is plugged as the tap `tap` and has this MAC."""

    def __init__(self, tap: str, mac: str, bridge: str, directory: Path) -> None:
        super().__init__()
        self.tap = tap
        self._script = directory / f"udhcpc-{tap}"
        self._script.write_text(_SCRIPT)
        self._script.chmod(0o755)
        tool("ip", "link", "add", tap, "type", "veth", "peer", "name", "eth0", "address", mac, "netns", self.path)
        self.run("ip", "link", "set", "eth0", "up")
        tool("ip", "link", "set", tap, "master", bridge, "up")

    async def dhcp(self) -> str:
        """Get an address; returns the interface's state as `ip addr` and `ip route` show it."""
        busybox = shutil.which("busybox")
        assert busybox, "install busybox-static"
        await asyncio.to_thread(
            self.run, busybox, "udhcpc", "-O", "staticroutes", "-O", "mtu", "-s", str(self._script), "-i", "eth0",
            "-t", "8", "-T", "1", "-n", "-q", "-f",
        )
        return self.run("ip", "addr", "show", "eth0") + self.run("ip", "route")

    def told(self) -> str:
        return Path(f"{self._script}.out").read_text()

    def static(self, address: str, gateway: str | None = None) -> None:
        self.run("ip", "addr", "add", address, "dev", "eth0")
        if gateway:
            self.run("ip", "route", "add", "default", "via", gateway)

    async def built(self, *wanted: str) -> str:
        """Wait until the guest has these IPv6 addresses for good; each look takes a command, so this does not spin."""
        async with asyncio.timeout(LIMIT):
            while True:
                state = await asyncio.to_thread(self.run, "ip", "-6", "addr", "show", "dev", "eth0")
                if all(f"inet6 {address}" in state for address in ("fe80:", *wanted)) and "tentative" not in state:
                    return state + self.run("ip", "-6", "route")

    async def routed(self, *wanted: str) -> str:
        """As `built`, and it has heard of a router, whose announcements come when they come."""
        async with asyncio.timeout(LIMIT):
            while True:
                if "default via fe80::1 " in (state := await self.built(*wanted)):
                    return state

    def unplug(self) -> None:
        tool("ip", "link", "delete", self.tap)


def family_of(address: str) -> int:
    return V6 if ":" in address else V4


async def reaches(client: socket.socket, address: str, port: int, source: str | None = None) -> bool:
    return await connects(client, address, port, source, LIMIT)


async def connects(
    client: socket.socket, address: str, port: int, source: str | None = None, limit: float = SILENCE
) -> bool:
    if source:
        client.bind((source, 0))
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(client, (address, port)), limit)
    except (TimeoutError, OSError):
        return False
    return True


async def listen(server: socket.socket, port: int) -> asyncio.Server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0" if server.family == V4 else "::", port))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        writer.write(f"{peer}\n".encode())
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    return await asyncio.start_server(echo, sock=server)


@contextlib.contextmanager
def own_machine() -> Iterator[None]:
    """Move this thread, and the commands it starts, into a fresh namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _call("unshare", CLONE_NEWNET)
    try:
        tool("ip", "link", "set", "lo", "up")
        yield
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)
