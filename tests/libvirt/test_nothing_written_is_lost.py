"""A real guest writes to a volume without pause, while that grows, is copied and moves and its servers die.

`KILONOVA_TEST_RUNS` says how often this is done, each time with a volume of its own.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for
from guest_shell import GuestShell

from kilonova import guestimage

RUNS = int(os.environ.get("KILONOVA_TEST_RUNS", "1"))
SEED = int(os.environ.get("KILONOVA_TEST_SEED", str(random.SystemRandom().randrange(10**6))))
POOLS = ("one", "two")
VOLUMES = "/volume/v3/volumes"
VERSION = {"OpenStack-API-Version": "volume 3.71"}
BLOCK, STEP, MOST = 4096, 17, 15_000
"""Bytes of a block; blocks between those that are written, each in a cluster of its own; blocks that fit in 1 GiB."""
LIMIT = 180.0
WRITER = """
number=0
while [ $number -lt MOST ] && [ ! -e /tmp/RUN.stop ]; do
    yes "RUN block $number" | head -c 4096 >/tmp/block
    if dd if=/tmp/block of=/dev/vdb bs=4096 seek=$((number * STEP)) count=1 conv=notrunc,fsync 2>/dev/null
    then echo "RUN BLOCK $number." >/dev/console; else echo "RUN FAILED $number." >/dev/console; fi
    number=$((number + 1))
done
echo "RUN ENDED $number." >/dev/console
""".replace("MOST", str(MOST)).replace("STEP", str(STEP))
"""What the guest runs: it tells of each block when it has been told that it is written."""


@pytest.fixture
def cloud() -> Iterator[RealCloud]:
    pools = "".join(f'[[volume.pool]]\nname = "{name}"\n' for name in POOLS)
    with real_cloud("libvirt", configuration=pools) as made:
        yield made


class Writing:
    """A guest that writes to its volume. Args: name: of the run."""

    def __init__(self, cloud: RealCloud, server: str, name: str) -> None:
        self._cloud = cloud
        self._name = name
        self._server = server
        self._shell = GuestShell(cloud.directory, server)
        self._size = 1
        answer = cloud.call("POST", VOLUMES, {"volume": {"size": 1}}, headers=VERSION)
        assert answer.status_code == 202, answer.text
        made = answer.json()["volume"]["id"]
        self.volume: str = made
        self._until("available")
        path = f"/compute/v2.1/servers/{server}/os-volume_attachments"
        assert cloud.call("POST", path, {"volumeAttachment": {"volumeId": made}}).status_code == 200
        self._until("in-use")
        self._shell.sees("/dev/vdb")
        script = WRITER.replace("RUN", name)
        self._shell.run(f"cat >/tmp/writer <<'END'\n{script}\nEND\nsh /tmp/writer >/dev/null 2>&1 </dev/null &")
        self.goes_on()

    def console(self) -> str:
        """What the guest has told so far."""
        log = self._cloud.directory / "guests/instances" / self._server / "console.log"
        return log.read_bytes().decode(errors="replace")

    def told(self) -> set[int]:
        """The blocks that the guest knows to be written."""
        return {int(number) for number in re.findall(rf"{self._name} BLOCK (\d+)\.", self.console())}

    def goes_on(self) -> None:
        """Wait until it has written some more."""
        before = len(self.told())
        wait_for("more blocks", lambda: len(self.told()) >= before + 5, LIMIT)

    def extend(self) -> None:
        self._size += 1
        assert self._act({"os-extend": {"new_size": self._size}}) == 202
        self._until("in-use")

    def snapshot(self) -> None:
        body = {"snapshot": {"volume_id": self.volume}}
        made = self._cloud.call("POST", "/volume/v3/snapshots", body, headers=VERSION).json()["snapshot"]["id"]
        path = f"/volume/v3/snapshots/{made}"
        wait_for("a snapshot", lambda: self._cloud.get(path)["snapshot"]["status"] == "available", LIMIT)
        assert self._cloud.call("DELETE", path).status_code == 202
        wait_for("the end of a snapshot", lambda: self._cloud.call("GET", path).status_code == 404, LIMIT)

    def migrate(self) -> None:
        """To the other pool."""
        host, _, pool = self._shown()["os-vol-host-attr:host"].rpartition("#")
        other = next(name for name in POOLS if name != pool)
        there = f"{host.removesuffix(pool)}{other}#{other}"
        assert self._act({"os-migrate_volume": {"host": there, "force_host_copy": False, "lock_volume": False}}) == 202
        wait_for(f"volume on {there}", lambda: self._shown()["os-vol-host-attr:host"] == there, LIMIT)
        self._until("in-use")

    def kill_daemon(self) -> None:
        number = self._pool / "daemon/daemon.pid"
        killed = int(number.read_text())
        os.kill(killed, signal.SIGKILL)
        wait_for("another daemon", lambda: number.exists() and int(number.read_text() or killed) != killed, LIMIT)

    def kill_cloud(self) -> None:
        self._cloud.kill()
        self._cloud.up()

    def kill_both(self) -> None:
        """What serves the volume comes back with the cloud only."""
        number = int((self._pool / "daemon/daemon.pid").read_text())
        self._cloud.kill()
        os.kill(number, signal.SIGKILL)
        self._cloud.up()

    def end(self) -> None:
        """Stop it and take the volume away."""
        self._shell.run(f"touch /tmp/{self._name}.stop")
        wait_for("the end of writing", lambda: f"{self._name} ENDED" in self.console(), LIMIT)
        path = f"/compute/v2.1/servers/{self._server}/os-volume_attachments/{self.volume}"
        assert self._cloud.call("DELETE", path).status_code == 202
        self._until("available")

    def check(self, copy: Path) -> int:
        """Whether all that the guest was told is there; returns how many blocks that are."""
        assert f"{self._name} FAILED" not in self.console()
        name = self._shown()["os-vol-mig-status-attr:name_id"] or self.volume
        file = self._pool / "volumes" / f"{name}.qcow2"
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", str(file), str(copy)], check=True)
        told, lost = self.told(), []
        with copy.open("rb") as found:
            for number in sorted(told):
                found.seek(number * STEP * BLOCK)
                line = f"{self._name} block {number}\n".encode()
                if found.read(BLOCK) != (line * BLOCK)[:BLOCK]:
                    lost.append(number)
        assert lost == [], f"{len(lost)} of {len(told)} blocks"
        copy.unlink()
        assert self._cloud.call("DELETE", f"{VOLUMES}/{self.volume}").status_code == 202
        return len(told)

    def _act(self, body: dict[str, Any]) -> int:
        path = f"{VOLUMES}/{self.volume}/action"
        return self._cloud.call("POST", path, body, headers=VERSION).status_code

    def _shown(self) -> dict[str, Any]:
        shown: dict[str, Any] = self._cloud.get(f"{VOLUMES}/{self.volume}")["volume"]
        return shown

    @property
    def _pool(self) -> Path:
        """The directory of the pool in which it is."""
        return self._cloud.directory / "volumes" / str(self._shown()["os-vol-host-attr:host"]).rpartition("#")[2]

    def _until(self, status: str) -> None:
        def reached() -> bool:
            volume = self._shown()
            return (volume["status"], volume["size"]) == (status, self._size)

        wait_for(f"volume {status} with {self._size} GiB", reached, LIMIT)


@pytest.mark.timeout(300 + 400 * RUNS)
@pytest.mark.spec("SWP-01")
def test_what_a_guest_was_told_to_be_written_is_there(cloud: RealCloud, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    image = cloud.upload(guestimage.build(tmp_path / "guest.qcow2"), hw_qemu_guest_agent="yes")
    body = {"name": "writer", "imageRef": image, "flavorRef": "1", "networks": "none"}
    server = cloud.call("POST", "/compute/v2.1/servers", {"server": body}, version="2.37").json()["server"]["id"]
    wait_for("the guest's agent", GuestShell(cloud.directory, server).answers, LIMIT)
    for run in range(RUNS):
        writing = Writing(cloud, server, f"run{run}")
        disturbances = [
            writing.extend, writing.snapshot, writing.migrate, writing.kill_daemon, writing.kill_cloud,
            writing.kill_both,
        ]
        chance.shuffle(disturbances)
        for disturb in disturbances:
            print(f"run {run}: {disturb.__name__}")
            disturb()
            writing.goes_on()
        writing.end()
        print(f"run {run}: {writing.check(tmp_path / 'copy')} blocks")
    wait_for("a clean audit", lambda: not cloud.differences(), LIMIT)
