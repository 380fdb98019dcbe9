"""`kilonova bus`: the message bus as an operator runs it, and lets hosts use it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clouds import free_port, wait_for

from kilonova.bus import credentials
from kilonova.bus.nats import NatsBus
from kilonova.domain.errors import KilonovaError

pytestmark = pytest.mark.servers

KILONOVA = (sys.executable, "-m", "kilonova")


def bus(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        [*KILONOVA, "bus", *arguments, "--data-dir", str(directory)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def lets_in(url: str, file: Path) -> bool:
    """Whether the server takes these credentials."""

    async def connect() -> bool:
        try:
            async with asyncio.timeout(3):
                connection = await NatsBus.connect((url,), credentials.load(file))
        except (KilonovaError, TimeoutError):
            return False
        await connection.close()
        return True

    return asyncio.run(connect())


def test_hosts_come_and_go_while_it_runs(tmp_path: Path) -> None:
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    early = Path(bus(tmp_path, "add-host", "early.example.org"))
    assert early.stat().st_mode & 0o777 == 0o600
    with subprocess.Popen(
        [*KILONOVA, "bus", "serve", "--port", str(port), "--data-dir", str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        control = tmp_path / "bus" / "control.json"
        assert lets_in(url, control)
        assert lets_in(url, early)
        late = Path(bus(tmp_path, "add-host", "late"))
        wait_for("the late host to be let in", lambda: lets_in(url, late), 20)
        os.kill(int((tmp_path / "bus" / "nats.pid").read_text()), signal.SIGKILL)
        wait_for("the server to be there again", lambda: lets_in(url, control), 20)
        bus(tmp_path, "remove-host", "early.example.org")
        assert not early.exists()
        credentials.store(early, credentials.Credentials(user=credentials.host_user("early.example.org"), password="x"))
        assert not lets_in(url, early)
        assert lets_in(url, late)
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
