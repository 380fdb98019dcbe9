"""An installation of its own for a measurement, used through its public API."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

KILONOVA = [sys.executable, "-m", "kilonova"]


class Installation:
    """A running cloud.

    Args:
        data_dir: where it lives. port: its first port.
    """

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir
        self.port = port
        self.pids: dict[str, int] = {}
        self._local = threading.local()
        self._token = ""
        self.project = ""

    def up(self, driver: str, hosts: int = 1) -> float:
        """Bring it up; returns the seconds from the start of the command to its end, when all is ready."""
        began = time.perf_counter()
        done = subprocess.run(
            [*KILONOVA, "up", "--detach", "--json", "--driver", driver, "--hosts", str(hosts),
             "--port-base", str(self.port), "--data-dir", str(self.data_dir)],
            capture_output=True, text=True, check=False,
        )
        took = time.perf_counter() - began
        if done.returncode != 0:
            raise RuntimeError(f"kilonova up: {done.stderr}")
        self.pids = json.loads(done.stdout)["pids"]
        return took

    def down(self, *options: str) -> None:
        subprocess.run(
            [*KILONOVA, "down", *options, "--data-dir", str(self.data_dir)], capture_output=True, check=True
        )

    def sign_in(self) -> None:
        auth = yaml.safe_load((self.data_dir / "clouds.yaml").read_text())["clouds"]["kilonova"]["auth"]
        user = {"name": "admin", "domain": {"id": "default"}, "password": auth["password"]}
        scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
        identity = {"methods": ["password"], "password": {"user": user}}
        answer, body = self.exchange("POST", "/identity/v3/auth/tokens",
                                     {"auth": {"identity": identity, "scope": scope}})
        self._token = answer.headers["x-subject-token"]
        self.project = json.loads(body)["token"]["project"]["id"]

    def exchange(self, method: str, path: str, body: Any = None) -> tuple[http.client.HTTPResponse, bytes]:
        """One request on the connection of this thread."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        connection.request(method, path, data, {
            "X-Auth-Token": self._token, "OpenStack-API-Version": "compute 2.79, volume 3.59", "Content-Type": kind,
        })
        answer = connection.getresponse()
        return answer, answer.read()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request that must succeed; returns the document of the answer."""
        answer, content = self.exchange(method, path, body)
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content!r}")
        return json.loads(content) if content else None

    def memory(self) -> float:
        """Proportional memory (PSS) of all its processes but the guests, in MiB."""
        total = 0
        for pid in self._processes():
            with suppress(OSError):  # it has ended
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
        return total / 1024

    def _processes(self) -> set[int]:
        """Those of `up`, those that were started on its directory, and what they have started."""
        mine = set(self.pids.values())
        parents: dict[int, int] = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes()
                if b"qemu-system" in command:
                    continue
                pid = int(process.name)
                parents[pid] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if os.fsencode(self.data_dir) in command:
                    mine.add(pid)
        while found := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= found
        return mine

    def cpu(self) -> float:
        """Seconds of processor time its processes have used."""
        ticks = 0
        for pid in self.pids.values():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / 100

    # --- servers ---------------------------------------------------------------------------------

    def prepare(self) -> dict[str, Any]:
        """Room for thousands of servers; returns the body of a request for one."""
        unlimited = {"instances": -1, "cores": -1, "ram": -1}
        self.call("PUT", f"/compute/v2.1/os-quota-sets/{self.project}", {"quota_set": unlimited})
        self.call("PUT", f"/network/v2.0/quotas/{self.project}", {"quota": {"port": -1}})
        network = self.call("POST", "/network/v2.0/networks", {"network": {"name": "bench"}})["network"]["id"]
        self.call("POST", "/network/v2.0/subnets", {"subnet": {
            "network_id": network, "cidr": "10.224.0.0/17", "ip_version": 4,
        }})
        image = self.call("POST", "/image/v2/images", {
            "name": "bench", "disk_format": "raw", "container_format": "bare", "visibility": "public",
        })["id"]
        self.exchange("PUT", f"/image/v2/images/{image}/file", bytes(4096))
        return {"server": {
            "name": "bench", "imageRef": image, "flavorRef": self.flavor("m1.nano"), "networks": [{"uuid": network}],
        }}

    def flavor(self, name: str) -> str:
        """Its id."""
        flavors = self.call("GET", "/compute/v2.1/flavors")["flavors"]
        found: str = next(one["id"] for one in flavors if one["name"] == name)
        return found

    def fill(self, body: object, count: int, clients: int) -> list[float]:
        """Make so many servers and wait until they are ACTIVE; returns the seconds that each request took."""
        took = self.every([partial(self.call, "POST", "/compute/v2.1/servers", body)] * count, clients)
        self.until("/compute/v2.1/servers?status=BUILD&limit=1")
        if failed := self.call("GET", "/compute/v2.1/servers/detail?status=ERROR&limit=1")["servers"]:
            raise RuntimeError(f"a server is in ERROR: {failed[0].get('fault')}")
        return took

    def every(self, jobs: list[Callable[[], None]], clients: int) -> list[float]:
        """Run requests from so many clients at once; returns the seconds each took."""
        took: list[float] = []
        errors: list[BaseException] = []
        left = iter(jobs)
        lock = threading.Lock()

        def client() -> None:
            while not errors:
                with lock:
                    job = next(left, None)
                if job is None:
                    return
                began = time.perf_counter()
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 - raised again below
                    errors.append(error)
                    return
                took.append(time.perf_counter() - began)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return took

    def until(self, path: str, limit: float = 300.0) -> None:
        """Poll a list of servers until it is empty."""
        give_up = time.monotonic() + limit
        while self.call("GET", path)["servers"]:
            if time.monotonic() > give_up:
                raise RuntimeError(f"{path} is not empty after {limit:.0f} s")
            time.sleep(0.02)


@contextmanager
def installation(driver: str, hosts: int = 1, configuration: str = "") -> Iterator[Installation]:
    """One that runs during the block, and is removed without a trace. configuration: of its file `kilonova.toml`."""
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-") as directory:
        Path(directory).chmod(0o711)  # QEMU does not run as root, and passes it to the sockets of volumes
        cloud = fresh(Path(directory))
        cloud.data_dir.mkdir()
        (cloud.data_dir / "kilonova.toml").write_text(configuration)
        try:
            cloud.up(driver, hosts)
            cloud.sign_in()
            yield cloud
        finally:
            cloud.down("--purge", "--yes")


def fresh(directory: Path) -> Installation:
    """One that is not up yet, in that directory, on free ports."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return Installation(directory / "data", port)
