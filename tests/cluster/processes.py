"""A cluster of processes of this machine: PostgreSQL, nats-server, and every role apart from the others."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from clouds import free_port, wait_for
from servers import PostgresServer

from kilonova.bus import credentials
from kilonova.bus.server import BusServer

READY_LIMIT = 120.0
STOP_LIMIT = 15.0
HOSTS = ("alpha", "beta", "gamma")


class Role:
    """One process of the cluster. Args: name: unique in the cluster; role: the command."""

    def __init__(self, name: str, role: str, directory: Path, environment: dict[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "kilonova", role, "--data-dir", str(directory), "--json"]
        self._directory = directory
        self._environment = os.environ | environment
        self.process: subprocess.Popen[str] | None = None
        self.lives = 0

    @property
    def log_file(self) -> Path:
        return self._directory / f"{self.name}.log"

    def start(self) -> None:
        """Start it; `until_ready` waits for it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self.lives += 1
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def until_ready(self) -> None:
        """Wait for its line on standard output."""
        assert self.process is not None and self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], READY_LIMIT)[0]:
            raise AssertionError(f"{self.name} was not ready within {READY_LIMIT:.0f} s")
        line = self.process.stdout.readline()
        assert line and json.loads(line)["ready"], f"{self.name} ended while it came up"

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(STOP_LIMIT) == -signal.SIGKILL

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.name} did not stop within {STOP_LIMIT:.0f} s") from None

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class Cluster:
    """Everything but PostgreSQL, which outlives it."""

    def __init__(self, directory: Path, postgres: PostgresServer, api_database: str, cell_database: str) -> None:
        self.directory = directory
        self.database_urls = (postgres.url(api_database), postgres.url(cell_database))
        self.port = free_port()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        self._headers: dict[str, str] = {}
        self.project = ""
        self.bus = directory / "bus"
        self._bus_port = free_port()
        self.nats: subprocess.Popen[bytes] | None = None
        self.roles: dict[str, Role] = {}

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        asyncio.run(self._make_users())
        self.start_bus()
        for name, role in (("api", "api"), ("conductor1", "conductor"), ("conductor2", "conductor"),
                           ("scheduler", "scheduler"), *((host, "agent") for host in HOSTS)):
            user = f"host.{name}" if role == "agent" else credentials.CONTROL
            self.roles[name] = Role(name, role, self.directory / name, self._environment(name, user))
            if role == "api":
                (self.directory / name).mkdir()
                (self.directory / name / "kilonova.toml").write_text('[[volume.pool]]\nname = "one"\n')
            self.roles[name].start()
        for role_ in self.roles.values():
            role_.until_ready()
        self._sign_in()

    async def _make_users(self) -> None:
        """The configuration of the bus with a user for each host, as an operator makes it."""
        server = BusServer(self.bus, port=self._bus_port)
        await server.start()
        credentials.store(self.directory / "control.json", server.control())
        for host in HOSTS:
            made = await server.add_host(host)
            credentials.store(self.directory / f"host.{host}.json", made)
        await server.stop()

    def start_bus(self) -> None:
        binary = Path(sys.executable).parent / "nats-server"
        with (self.directory / "nats.out").open("ab") as output:
            self.nats = subprocess.Popen(
                [str(binary), "-c", str(self.bus / "nats.conf")], stdout=output, stderr=output, cwd=self.bus
            )

    def kill_bus(self) -> None:
        assert self.nats is not None
        self.nats.kill()
        self.nats.wait(STOP_LIMIT)

    def _environment(self, name: str, user: str) -> dict[str, str]:
        api, cell = self.database_urls
        common = {
            "BUS__SERVERS": f'["nats://127.0.0.1:{self._bus_port}"]',
            "BUS__CREDENTIALS": str(self.directory / f"{user}.json"),
            "AGENT__DRIVER": "fake", "AGENT__FAKE_LATENCY": "0.05", "AGENT__REPORT_INTERVAL": "1",
            "AGENT__HOST": name, "LEASE_SECONDS": "3", "API__PORT": str(self.port), "LOG_LEVEL": "info",
        }
        if not user.startswith("host."):  # a host has no way to a database
            common |= {"DATABASE__API": api, "DATABASE__CELL": cell, "DATABASE__POOL_SIZE": "6"}
        return {f"KILONOVA__{option}": value for option, value in common.items()}

    def add(self, name: str, role: str, **options: str) -> None:
        """Start one more process of the control plane, with options of its own."""
        own = {f"KILONOVA__{option}": value for option, value in options.items()}
        environment = self._environment(name, credentials.CONTROL) | own
        self.roles[name] = Role(name, role, self.directory / name, environment)
        self.restart(name)

    def restart(self, name: str) -> None:
        """After a kill."""
        self.roles[name].start()
        self.roles[name].until_ready()

    def stop(self) -> dict[str, int]:
        """End every process in good order; returns their statuses."""
        self.http.close()
        statuses = {name: role.stop() for name, role in reversed(self.roles.items()) if role.runs}
        if self.nats is not None and self.nats.poll() is None:
            self.nats.terminate()
            self.nats.wait(STOP_LIMIT)
        return statuses

    def destroy(self) -> None:
        """Leave nothing behind, whatever happened."""
        for role in self.roles.values():
            if role.runs and role.process is not None:
                role.process.kill()
                role.process.wait(STOP_LIMIT)
        if self.nats is not None and self.nats.poll() is None:
            self.kill_bus()
        for pid in self.directory.glob("api/volumes/*/daemon/daemon.pid"):  # they outlive the api, for the guests
            os.kill(int(pid.read_text()), signal.SIGTERM)

    def story(self) -> str:
        """What goes on, for a failed test."""
        try:
            found = self.operations()
        except (httpx.HTTPError, AssertionError) as error:
            return f"the api does not answer: {error}"
        return "\n".join(json.dumps(operation) for operation in found[:10])

    def logs(self) -> str:
        """The ends of all logs, for a failed test."""
        files = [*(role.log_file for role in self.roles.values()), self.bus / "nats.log"]
        return "\n".join(
            f"===== {file.name}\n" + "\n".join(file.read_text(errors="replace").splitlines()[-40:])
            for file in files if file.exists()
        )

    # --- use -------------------------------------------------------------------------------------

    def _sign_in(self) -> None:
        auth = yaml.safe_load((self.directory / "api" / "clouds.yaml").read_text())["clouds"]["kilonova"]["auth"]
        identity = {"methods": ["password"], "password": {"user": {
            "name": "admin", "domain": {"id": "default"}, "password": auth["password"],
        }}}
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        answer = self.http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
        assert answer.status_code == 201, answer.text
        self._headers = {"x-auth-token": answer.headers["x-subject-token"]}
        self.project = answer.json()["token"]["project"]["id"]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request as the administrator; returns the body."""
        answer = self.http.request(method, path, json=body, headers=self._headers)
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    def upload(self) -> str:
        """An image; its content does not matter to the fake driver. Returns its id."""
        described = {"name": "nothing", "disk_format": "raw", "container_format": "bare"}
        image: str = self.call("POST", "/image/v2/images", described)["id"]
        self.http.put(
            f"/image/v2/images/{image}/file", content=bytes(4096),
            headers=self._headers | {"content-type": "application/octet-stream"},
        ).raise_for_status()
        return image

    def servers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", "/compute/v2.1/servers/detail?limit=1000")["servers"]
        return found

    def operations(self) -> list[Any]:
        """Those that have not ended."""
        states = "&".join(f"state={state}" for state in ("running", "undoing", "queued", "held", "stranded"))
        found: list[Any] = self.call("GET", f"/control/operations?{states}")["operations"]
        return found

    def audit(self) -> list[Any]:
        """What differs from the records, when all hosts are back on the bus."""
        found: list[Any] = []

        def heard_from_all() -> bool:
            found[:] = self.call("GET", "/control/audit")["differences"]
            return not any(difference["kind"] == "host-silent" for difference in found)

        wait_for("all hosts to answer", heard_from_all, 60)
        return found


@contextmanager
def cluster(directory: Path, postgres: PostgresServer) -> Iterator[Cluster]:
    """A running cluster, gone afterwards; a failure shows the logs of all its processes."""
    names = [postgres.create_database(), postgres.create_database()]
    running = Cluster(directory, postgres, *names)
    try:
        running.start()
        yield running
    except BaseException as error:
        error.add_note(f"{running.story()}\n{running.logs()}")
        raise
    finally:
        running.destroy()
        for name in names:
            postgres.drop_database(name)
