"""A small qemu-storage-daemon that serves files over NBD, with nothing of the product in it."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from kilonova.hypervisor.volumes import NbdSource

MIB = 1 << 20
LIMIT = 20.0
OWN_GROUP = 0o711


class NbdDaemon:
    """Serves files of its directory on a socket. What it serves outlives it: `start` serves all of it again."""

    def __init__(self, *, qcow2: bool = False) -> None:
        self._format = "qcow2" if qcow2 else "raw"
        # Not pytest's directory: a socket's path must be short, and QEMU runs as another user.
        self.directory = Path(tempfile.mkdtemp(prefix="kn-nbd-", dir="/var/tmp"))
        self.directory.chmod(OWN_GROUP)
        self._served: dict[str, Path] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: socket.socket | None = None
        self._lines: Any = None

    @property
    def socket(self) -> Path:
        return self.directory / "nbd"

    def start(self) -> None:
        for name in ("qmp", "nbd"):
            (self.directory / name).unlink(missing_ok=True)
        self._process = subprocess.Popen([
            "qemu-storage-daemon", "--chardev", f"socket,id=q,path={self.directory}/qmp,server=on,wait=off",
            "--monitor", "chardev=q", "--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0",
        ])
        give_up = time.monotonic() + LIMIT
        while self._monitor is None:
            found = socket.socket(socket.AF_UNIX)
            try:
                found.connect(f"{self.directory}/qmp")
            except OSError:
                found.close()
                assert time.monotonic() < give_up, "the storage daemon does not start"
                time.sleep(0.01)
            else:
                self._monitor = found
        self._monitor.settimeout(LIMIT)
        self._lines = self._monitor.makefile("rb")
        self._lines.readline()
        self.ask("qmp_capabilities")
        self.socket.chmod(0o666)
        for name in tuple(self._served):
            self._export(name)

    def kill(self) -> None:
        """As a crash ends it."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        self._end(signal.SIGTERM)
        shutil.rmtree(self.directory)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.wait(LIMIT)
        assert self._monitor is not None
        self._lines.close()
        self._monitor.close()
        self._process = self._monitor = None

    def add(self, size: int, *, file: Path | None = None) -> NbdSource:
        """Serve a new volume, or one made of `file`."""
        name = f"vol-{secrets.token_hex(4)}"
        path = self.directory / name
        subprocess.run(["qemu-img", "create", "-q", "-f", self._format, str(path), str(size)], check=True)
        if file is not None:
            subprocess.run(["qemu-img", "convert", "-n", "-O", self._format, str(file), str(path)], check=True)
        self._served[name] = path
        self._export(name)
        return NbdSource(export=name, socket=str(self.socket))

    def content(self, source: NbdSource) -> bytes:
        """What is on a volume that nobody uses."""
        self.withdraw(source)
        found = self.directory / "content"
        path = self._served[source.export]
        subprocess.run(["qemu-img", "convert", "-f", self._format, "-O", "raw", str(path), str(found)], check=True)
        self.serve(source)
        return found.read_bytes()

    def resize(self, source: NbdSource, size: int) -> None:
        """Make a volume larger, as a pool does it: whoever uses it loses the connection."""
        self.withdraw(source)
        path = self._served[source.export]
        subprocess.run(["qemu-img", "resize", "-q", "-f", self._format, str(path), str(size)], check=True)
        self.serve(source)

    def withdraw(self, source: NbdSource) -> None:
        """Serve it no more."""
        self.ask("block-export-del", id=source.export, mode="hard")
        give_up = time.monotonic() + LIMIT
        while any(one["id"] == source.export for one in self.ask("query-block-exports")):
            assert time.monotonic() < give_up, "the export does not go"
            time.sleep(0.005)
        self.ask("blockdev-del", **{"node-name": source.export})

    def serve(self, source: NbdSource) -> None:
        """Serve it again."""
        self._export(source.export)

    def is_used(self, source: NbdSource) -> bool:
        """Whether somebody is connected."""
        answer = self._tell("block-export-del", id=source.export, mode="safe")
        if "error" in answer:
            return True
        give_up = time.monotonic() + LIMIT
        while any(one["id"] == source.export for one in self.ask("query-block-exports")):
            assert time.monotonic() < give_up, "the export does not go"
            time.sleep(0.005)
        self.ask("block-export-add", type="nbd", id=source.export, name=source.export, writable=True,
                 **{"node-name": source.export})
        return False

    def _export(self, name: str) -> None:
        self.ask("blockdev-add", **{
            "driver": self._format, "node-name": name, "discard": "unmap",
            "file": {"driver": "file", "filename": str(self._served[name])},
        })
        self.ask("block-export-add", type="nbd", id=name, name=name, writable=True, **{"node-name": name})

    def ask(self, command: str, **arguments: Any) -> Any:
        """Give a command. Returns its answer."""
        answer = self._tell(command, **arguments)
        assert "error" not in answer, (command, arguments, answer)
        return answer["return"]

    def _tell(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._monitor is not None
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer: dict[str, Any] = json.loads(self._lines.readline())
            if "return" in answer or "error" in answer:
                return answer
