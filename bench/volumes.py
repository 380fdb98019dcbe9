"""Volumes: how long servers take to get and lose one, many of them at once, and how fast their data go."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.installation import Installation, installation
from bench.report import Result
from bench.volume_data import POOLS, data, swap
from kilonova.guestimage.build import build

VOLUMES = "/volume/v3/volumes"
CLIENTS = 8
CROWDED = "[scheduler]\ninitial_cpu_allocation_ratio = 16.0\n"
"""More servers than the processors of a small machine would get."""
READY = b"LOGIN READY"


def volumes(rounds: int, many: int, servers: int, mib: int, moves: int, moved_mib: int) -> Iterator[Result]:
    """Args: rounds: of each measurement of one volume. many: volumes that are attached at once, to so many servers.
    mib: of data. moves: from pool to pool, of so many MiB."""
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-image-") as directory:
        image = build(Path(directory, "guest.qcow2"))
        with installation("libvirt", configuration=CROWDED + POOLS) as cloud:
            body = _request(cloud, image)
            [guest] = _booted(cloud, [_server(cloud, body)])
            yield from _one(cloud, guest, rounds)
            yield from data(cloud, new_volume(cloud), rounds, mib)
            moved = new_volume(cloud, math.ceil(moved_mib / 1024))
            _attach(cloud, guest, moved)
            _until(cloud, moved, "in-use")
            yield from swap(cloud, moved, moves, moved_mib)
            others = [_server(cloud, body) for _ in range(servers - 1)]
            yield from _many(cloud, "libvirt", [guest, *_booted(cloud, others)], many)
    with installation("fake", configuration=CROWDED + POOLS) as cloud:
        cloud.fill(cloud.prepare(), servers, CLIENTS)
        simulated = [one["id"] for one in cloud.call("GET", "/compute/v2.1/servers")["servers"]]
        yield from _many(cloud, "fake", simulated, many)


def _one(cloud: Installation, server: str, rounds: int) -> Iterator[Result]:
    """A volume to a real guest that runs, and away from it: until the volume says so."""
    volume = new_volume(cloud)
    attached, detached = [], []
    for _ in range(rounds):
        attached.append(_timed(cloud, partial(_attach, cloud, server, volume), volume, "in-use"))
        detached.append(_timed(cloud, partial(_detach, cloud, server, volume), volume, "available"))
    for name, took in (("attach", attached), ("detach", detached)):
        yield Result(f"{name} of a volume, libvirt, p50", statistics.median(took), "ms",
                     note=f"max {max(took):.0f} ms of {rounds}")


def _many(cloud: Installation, driver: str, servers: list[str], count: int) -> Iterator[Result]:
    """So many volumes at once to servers, and away from them."""
    cloud.call("PUT", f"/volume/v3/os-quota-sets/{cloud.project}", {"quota_set": {"volumes": -1, "gigabytes": -1}})
    made = [new_volume(cloud) for _ in range(count)]
    pairs = [(servers[number % len(servers)], volume) for number, volume in enumerate(made)]
    for name, ask, status in (("attaches", _attach, "in-use"), ("detaches", _detach, "available")):
        before = len(cloud.call("GET", f"{VOLUMES}?status={status}")["volumes"])
        began = time.perf_counter()
        took = cloud.every([partial(ask, cloud, server, volume) for server, volume in pairs], CLIENTS)
        while len(cloud.call("GET", f"{VOLUMES}?status={status}")["volumes"]) < before + count:
            if time.perf_counter() - began > 300:
                raise RuntimeError(f"not all volumes are {status} after 300 s")
            time.sleep(0.02)
        seconds = time.perf_counter() - began
        yield Result(f"{name}, {count} volumes at once, {len(servers)} servers, {driver}", count / seconds, "/s",
                     note=f"{CLIENTS} clients, accepted p50 {1000 * statistics.median(took):.0f} ms")


def _request(cloud: Installation, image: Path) -> dict[str, object]:
    """For a server with a guest that has an operating system: guests let go of devices then."""
    known = cloud.call("POST", "/image/v2/images", {
        "name": "guest", "disk_format": "qcow2", "container_format": "bare",
    })["id"]
    cloud.exchange("PUT", f"/image/v2/images/{known}/file", image.read_bytes())
    return {"server": {"name": "guest", "imageRef": known, "flavorRef": cloud.flavor("m1.nano"), "networks": "none"}}


def _server(cloud: Installation, body: dict[str, object]) -> str:
    made: str = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
    return made


def _booted(cloud: Installation, servers: list[str], limit: float = 300.0) -> list[str]:
    """The same, when their guests have."""
    give_up = time.monotonic() + limit
    for server in servers:
        console = cloud.data_dir / "guests" / "instances" / server / "console.log"
        while not console.exists() or READY not in console.read_bytes():
            found = cloud.call("GET", f"/compute/v2.1/servers/{server}")["server"]
            if found["status"] == "ERROR" or time.monotonic() > give_up:
                raise RuntimeError(f"the guest did not boot and is {found['status']}: {found.get('fault', console)}")
            time.sleep(0.1)
    return servers


def new_volume(cloud: Installation, gib: int = 1) -> str:
    """A new one."""
    made: str = cloud.call("POST", VOLUMES, {"volume": {"size": gib}})["volume"]["id"]
    _until(cloud, made, "available")
    return made


def _attach(cloud: Installation, server: str, volume: str) -> Any:
    path = f"/compute/v2.1/servers/{server}/os-volume_attachments"
    return cloud.call("POST", path, {"volumeAttachment": {"volumeId": volume}})


def _detach(cloud: Installation, server: str, volume: str) -> Any:
    return cloud.call("DELETE", f"/compute/v2.1/servers/{server}/os-volume_attachments/{volume}")


def _timed(cloud: Installation, ask: partial[Any], volume: str, status: str) -> float:
    """Milliseconds from a request until the volume has this status."""
    began = time.perf_counter()
    ask()
    _until(cloud, volume, status)
    return 1000 * (time.perf_counter() - began)


def _until(cloud: Installation, volume: str, status: str, limit: float = 120.0) -> None:
    give_up = time.monotonic() + limit
    while (found := cloud.call("GET", f"{VOLUMES}/{volume}")["volume"]["status"]) != status:
        if found == "error" or time.monotonic() > give_up:
            raise RuntimeError(f"volume {volume} is {found}, not {status}")
        time.sleep(0.005)
