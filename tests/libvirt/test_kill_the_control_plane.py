"""SIGKILL of `kilonova up` at random moments while servers are made, rebooted and deleted with real guests."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clouds import RealCloud, real_cloud, wait_for

from kilonova import guestimage

KILLS = int(os.environ.get("KILONOVA_TEST_KILLS", "10"))
SEED = int(os.environ.get("KILONOVA_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
SETTLES = 30.0
"""Seconds after a restart within which everything must be at rest."""


@pytest.fixture
def cloud() -> Iterator[RealCloud]:
    with real_cloud("libvirt") as made:
        yield made


class User(threading.Thread):
    """Creates, reboots and deletes servers until told to stop; a control plane that is away is tried again."""

    def __init__(self, cloud: RealCloud, body: dict[str, Any], seed: int) -> None:
        super().__init__(daemon=True)
        self._cloud = cloud
        self._body = body
        self._random = random.Random(seed)
        self.stop = threading.Event()
        self.done = 0

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self._once()
            except (httpx.HTTPError, KeyError, ValueError):
                self.stop.wait(0.3)

    def _once(self) -> None:
        made = self._cloud.call("POST", "/compute/v2.1/servers", self._body).json()["server"]["id"]
        path = f"/compute/v2.1/servers/{made}"
        self.stop.wait(self._random.random() * 4)
        for kind in ("HARD", "SOFT"):
            if self._random.random() < 0.6:
                self._cloud.call("POST", f"{path}/action", {"reboot": {"type": kind}})
                self.stop.wait(self._random.random() * 2)
        self._cloud.call("DELETE", path)
        self.done += 1


def _at_rest(cloud: RealCloud) -> bool:
    return all(server["OS-EXT-STS:task_state"] is None for server in cloud.servers())


@pytest.mark.timeout(1200)
@pytest.mark.spec("INI-012", "INI-111", "DEL-33", "RBT-24")
def test_everything_settles_after_every_kill(cloud: RealCloud, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    image = cloud.upload(guestimage.build(tmp_path / "guest.qcow2"))
    body = {"server": {"name": "victim", "flavorRef": "1", "imageRef": image,
                       "networks": [{"uuid": cloud.network()}]}}
    longest = 0.0
    requests = 0
    for kill in range(KILLS):
        users = [User(cloud, body, SEED + kill * 10 + number) for number in range(2)]
        for user in users:
            user.start()
        time.sleep(chance.uniform(0.3, 6.0))  # the moment of the kill is the point of the test
        cloud.kill()
        for user in users:
            user.stop.set()
        cloud.up()
        restarted = time.monotonic()
        for user in users:
            user.join(60)
        try:
            wait_for("rest", lambda: _at_rest(cloud), SETTLES + 10)
        except AssertionError:
            print(cloud.servers(), cloud.kilonova("ops", check=False).stdout, cloud.log(), sep="\n")
            raise
        wait_for("a clean audit", lambda: not cloud.differences(), SETTLES + 10, 0.5)
        longest = max(longest, time.monotonic() - restarted)
        requests += sum(user.done for user in users)
        assert longest <= SETTLES, f"kill {kill} took {longest:.1f} s to settle"
    for server in cloud.servers():
        assert cloud.call("DELETE", f"/compute/v2.1/servers/{server['id']}").status_code == 204
    wait_for("the end of all servers", lambda: not cloud.servers(), 60)
    wait_for("a clean audit", lambda: not cloud.differences(), 30, 0.5)
    print(f"{KILLS} kills, {requests} servers made and deleted, at rest within {longest:.1f} s")
