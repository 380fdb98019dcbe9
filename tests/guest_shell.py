"""Commands in guests with an operating system, through their agent and with nothing of the product in between."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

LIMIT = 60.0


class GuestAway(Exception):
    """The agent of a guest does not answer: the guest is booting, stands still, or is gone."""


class GuestShell:
    """Args: data_dir: of the installation whose libvirt daemon has the guest. server: its id."""

    def __init__(self, data_dir: Path, server: str) -> None:
        self._server = server
        self._virsh = (
            "virsh", "--quiet", "-c", f"qemu+unix:///system?socket={data_dir}/libvirt/run/libvirt-sock",
        )

    def run(self, script: str, limit: float = LIMIT) -> str:
        """Run a shell script that must succeed; returns what it wrote. It may stand still meanwhile, with its guest.

        Args: limit: seconds. Raises GuestAway: it was not begun. AssertionError: it failed.
        """
        command = {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True}
        pid = self._ask("guest-exec", command)["pid"]
        give_up = time.monotonic() + limit
        while not (done := self._state(pid))["exited"]:
            assert time.monotonic() < give_up, f"{script!r} did not end within {limit:.0f} s"
            time.sleep(0.05)
        said, complained = (base64.b64decode(done.get(name, "")).decode() for name in ("out-data", "err-data"))
        assert done.get("exitcode") == 0, (script, said, complained)
        return said

    def sees(self, device: str) -> None:
        """Wait until the guest has found a disk that was plugged in: whoever writes to its name before makes a file in
        the guest's memory, which stays there in its place."""
        self.run(f"until [ -b {device} ]; do sleep 0.1; done")

    def _state(self, pid: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._ask("guest-exec-status", {"pid": pid})
        except GuestAway:
            return {"exited": False}
        return found

    def answers(self) -> bool:
        """Whether the agent runs."""
        try:
            self._ask("guest-ping", {})
        except GuestAway:
            return False
        return True

    def _ask(self, name: str, arguments: dict[str, Any]) -> Any:
        asked = json.dumps({"execute": name, "arguments": arguments})
        done = subprocess.run(
            [*self._virsh, "qemu-agent-command", "--timeout", "10", self._server, asked],
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )
        if done.returncode:
            raise GuestAway(done.stderr)
        return json.loads(done.stdout)["return"]
