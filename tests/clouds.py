"""Real installations for tests: `kilonova up` in processes of its own, driven over HTTP and by the openstack client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

BIN = Path(sys.executable).parent
KILONOVA = (sys.executable, "-m", "kilonova")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(what: str, check: Callable[[], Any], limit: float, pause: float = 0.2) -> Any:
    """Wait until `check` gives something true; fails after `limit` seconds."""
    give_up = time.monotonic() + limit
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"{what} did not happen within {limit:.0f} s")
        time.sleep(pause)


class RealCloud:
    """One installation. `up` again after `kill` or `down`."""

    def __init__(self, directory: Path, driver: str, *options: str) -> None:
        self.directory = directory
        self.driver = driver
        self.port = free_port()
        self._options = options
        self.running: dict[str, Any] = {}
        self._headers: dict[str, str] = {}
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def kilonova(self, *arguments: str, limit: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `kilonova` command on this installation."""
        command = [*KILONOVA, *arguments, "--data-dir", str(self.directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(arguments)} failed:\n{done.stdout}\n{done.stderr}\n{self.log()}")
        return done

    def up(self) -> None:
        done = self.kilonova(
            "up", "--detach", "--json", "--driver", self.driver, "--port-base", str(self.port), *self._options
        )
        self.running = json.loads(done.stdout)
        auth = yaml.safe_load((self.directory / "clouds.yaml").read_text())["clouds"]["kilonova"]["auth"]
        user = {"name": "admin", "domain": {"id": "default"}, "password": auth["password"]}
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        identity = {"methods": ["password"], "password": {"user": user}}
        answer = self._http.post("/identity/v3/auth/tokens", json={"auth": {"identity": identity, "scope": scope}})
        self._headers = {"x-auth-token": answer.headers["x-subject-token"]}

    def kill(self) -> None:
        """SIGKILL of the control plane."""
        os.kill(self.running["pids"]["kilonova"], signal.SIGKILL)

    def purge(self) -> None:
        """Remove guests, devices and data."""
        self.kilonova("down", "--purge", "--yes", check=False)
        self._http.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        log = self.directory / "kilonova.log"
        return log.read_text()[-6000:] if log.exists() else ""

    def call(self, method: str, path: str, body: Any = None, *, version: str = "2.1", **options: Any) -> httpx.Response:
        """A request as the administrator."""
        headers = self._headers | {"OpenStack-API-Version": f"compute {version}"} | options.pop("headers", {})
        return self._http.request(method, path, json=body, headers=headers, **options)

    def get(self, path: str, **options: Any) -> Any:
        answer = self.call("GET", path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(self, file: Path, name: str = "guest", **properties: str) -> str:
        """Make an image of a qcow2 file, unless the properties say what else it is; returns its id."""
        described = {"name": name, "disk_format": "qcow2", "container_format": "bare", "visibility": "public"}
        described |= properties
        image: str = self.call("POST", "/image/v2/images", described).json()["id"]
        answer = self._http.put(
            f"/image/v2/images/{image}/file", content=file.read_bytes(),
            headers=self._headers | {"content-type": "application/octet-stream"},
        )
        assert answer.status_code == 204, answer.text
        return image

    def network(self) -> str:
        found: str = self.get("/network/v2.0/networks?name=private")["networks"][0]["id"]
        return found

    def servers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("/compute/v2.1/servers/detail?all_tenants=1")["servers"]
        return found

    def differences(self) -> list[Any]:
        """What `kilonova audit` finds."""
        done = self.kilonova("audit", "--json", check=False)
        report = json.loads(done.stdout)
        found: list[Any] = report["differences"]
        assert (done.returncode == 0) == (not found), done.stdout
        return found

    def openstack(self, *arguments: str, limit: float = 180, check: bool = True) -> str:
        """Run the real client; returns what it printed."""
        environment = os.environ | {
            "OS_CLIENT_CONFIG_FILE": str(self.directory / "clouds.yaml"), "OS_CLOUD": "kilonova", "COLUMNS": "100",
        }
        done = subprocess.run(
            [str(BIN / "openstack"), *arguments], capture_output=True, text=True, timeout=limit, env=environment,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"openstack {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}\n{self.log()}")
        return done.stdout if check else done.stdout + done.stderr


@contextmanager
def real_cloud(driver: str, *options: str, configuration: str = "") -> Iterator[RealCloud]:
    """An installation that is gone afterwards. configuration: of its file `kilonova.toml`."""
    cloud = RealCloud(Path(tempfile.mkdtemp(prefix="kilonova-test-")), driver, *options)
    (cloud.directory / "kilonova.toml").write_text(configuration)
    try:
        cloud.up()
        yield cloud
    finally:
        cloud.purge()
