"""VLANs on an interface, also on a kernel that was built without devices for them.

Such a kernel still carries tagged frames. So here a device of a VLAN is a TAP device, and a thread takes the frames
of its tag from the interface and tags those that leave by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Awaitable, Callable

from network_machine import Namespace, tool

Run = Callable[..., Awaitable[str]]
_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x2, 0x1000
_SOL_PACKET, _AUXDATA, _ALL, _OUTGOING, _TAGGED = 263, 8, 3, 4, 0x10
_TPID = b"\x81\x00"


class _Device:
    """A VLAN of an interface, in the namespace of the thread that makes it."""

    def __init__(self, interface: str, name: str, tag: int) -> None:
        self.index, self.tag = socket.if_nametoindex(interface), tag
        self._tap = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self._tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_HEADER))
        self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._wire.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        self._wire.bind((interface, _ALL))
        self._end, self._ended = socket.socketpair()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.close()
        self._thread.join()

    def _relay(self) -> None:
        try:
            while True:
                ready, _, _ = select.select([self._tap, self._wire, self._end], [], [])
                if self._end in ready:
                    return
                if self._tap in ready:
                    frame = os.read(self._tap, 65536)
                    with contextlib.suppress(BlockingIOError):
                        self._wire.send(frame[:12] + _TPID + struct.pack("!H", self.tag) + frame[12:])
                if self._wire in ready:
                    frame, aux, _, address = self._wire.recvmsg(65536, 256)
                    if address[2] != _OUTGOING and self._is_own(aux):
                        os.write(self._tap, frame)
        except OSError:  # one of the two was deleted or is down: a VLAN goes with its interface
            return
        finally:
            self._wire.close()
            self._end.close()
            os.close(self._tap)

    def _is_own(self, aux: list[tuple[int, int, bytes]]) -> bool:
        for level, kind, data in aux:
            if (level, kind) == (_SOL_PACKET, _AUXDATA):
                status, _, _, _, _, tci, _ = struct.unpack("IIIHHHH", data[:20])
                return bool(status & _TAGGED) and tci & 0xFFF == self.tag
        return False


class Vlans:
    """Makes devices of VLANs, by the kernel if it can.

    Args:
        interface: any, to try it with.
    """

    def __init__(self, interface: str) -> None:
        self._devices: dict[str, _Device] = {}
        trial = ("ip", "link", "add", "link", interface, "name", "trial", "type", "vlan", "id", "1")
        self.real = subprocess.run(trial, capture_output=True, check=False).returncode == 0
        if self.real:
            tool("ip", "link", "delete", "trial")

    def add(self, world: Namespace, interface: str, tag: int, address: str) -> None:
        """Put a namespace on a VLAN of an interface of its."""
        name = f"{interface}.{tag}"
        if self.real:
            world.run("ip", "link", "add", "link", interface, "name", name, "type", "vlan", "id", str(tag))
        else:
            self._devices[f"{world.path} {name}"] = world.within(lambda: _Device(interface, name, tag))
        world.run("ip", "addr", "add", address, "dev", name)
        world.run("ip", "link", "set", name, "up")

    def running(self, run: Run) -> Run:
        """`run` of the product, with an `ip` that knows VLANs."""
        async def running(arguments: list[str], text: str = "") -> str:
            if "-batch" not in arguments:
                return self._shown(await run(arguments, text), arguments[-1])
            for line in text.splitlines():
                words = line.split()
                if "vlan" not in words:
                    await run(arguments, f"{line}\n")
                    continue
                given = dict(zip(words[2::2], words[3::2], strict=False))
                self._devices[given["name"]] = _Device(given["link"], given["name"], int(words[-1]))
                await run([arguments[0], "link", "set", given["name"], "mtu", given["mtu"]])
            return ""

        return run if self.real else running

    def _shown(self, shown: str, name: str) -> str:
        if name not in self._devices or not shown:
            return shown
        made = self._devices[name]
        (link,) = json.loads(shown)
        link |= {"link": socket.if_indextoname(made.index), "linkinfo": {"info_data": {"id": made.tag}}}
        return json.dumps([link])

    def close(self) -> None:
        for device in self._devices.values():
            device.close()
