"""A RabbitMQ server for tests, on a private directory and free ports of the loopback address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clouds import free_port

PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_LIMIT = 120.0


class RabbitServer:
    """One that can be stopped and started again, keeping what is durable."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = free_port()
        self._epmd = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"rabbit://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Returns when it takes connections."""
        here = self._directory
        (here / "home").mkdir(parents=True, exist_ok=True)
        (here / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{self.port}\n")
        (here / "plugins").write_text("[].\n")
        log = (here / "output").open("ab")
        self._process = subprocess.Popen(
            [str(PROGRAM)], stdout=log, stderr=log, start_new_session=True,
            env={
                "PATH": os.environ["PATH"], "HOME": str(here / "home"), "LANG": "C.UTF-8",
                "RABBITMQ_NODENAME": f"kilonova{self.port}@localhost", "RABBITMQ_CONFIG_FILE": str(here / "rabbitmq"),
                "RABBITMQ_MNESIA_BASE": str(here / "data"), "RABBITMQ_LOG_BASE": str(here / "log"),
                "RABBITMQ_PID_FILE": str(here / "pid"), "RABBITMQ_ENABLED_PLUGINS_FILE": str(here / "plugins"),
                "RABBITMQ_DIST_PORT": str(free_port()), "ERL_EPMD_PORT": str(self._epmd),
                "ERL_EPMD_ADDRESS": "127.0.0.1", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
            },
        )
        log.close()
        give_up = time.monotonic() + START_LIMIT
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (here / "output").read_text()
            assert time.monotonic() < give_up, f"not up within {START_LIMIT:.0f} s: {(here / 'output').read_text()}"
            time.sleep(0.2)

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it, and the port mapper that it started, as soon as that has noticed."""
        self.stop()
        command = ["epmd", "-port", str(self._epmd), "-kill"]
        environment = {"PATH": os.environ["PATH"], "ERL_EPMD_PORT": str(self._epmd)}
        for _ in range(50):
            ended = subprocess.run(command, capture_output=True, timeout=30, check=False, env=environment, text=True)
            if "not allowed" not in ended.stdout:
                return
            time.sleep(0.2)


@contextmanager
def rabbit_server(directory: Path) -> Iterator[RabbitServer]:
    server = RabbitServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.close()
