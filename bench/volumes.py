"""Volumes: how long servers take to get and lose one, many of them at once, and how fast a storage pool is read and
written over its socket against the same file."""

from __future__ import annotations

import re
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.installation import Installation, installation
from bench.report import Result
from kilonova.guestimage.build import build

POOL = '[[volume.pool]]\nname = "bench"\nformat = "raw"\n'
VOLUMES = "/volume/v3/volumes"
SERVERS, CLIENTS = 10, 8
REQUESTS = 256
"""Of 1 MiB each, 16 at once, in each measurement of data."""
SHARE = 0.8
"""Of the throughput of a file that is promised for its volume."""
READY = b"LOGIN READY"


def volumes(rounds: int, many: int) -> Iterator[Result]:
    """Args: rounds: of each measurement of one volume. many: volumes that are attached at once."""
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-image-") as directory:
        image = build(Path(directory, "guest.qcow2"))
        with installation("libvirt", configuration=POOL) as cloud:
            yield from _one(cloud, image, rounds)
            yield from _data(cloud, rounds)
    with installation("fake", configuration=POOL) as cloud:
        yield from _many(cloud, many)


def _one(cloud: Installation, image: Path, rounds: int) -> Iterator[Result]:
    """A volume to a real guest that runs, and away from it: until the volume says so."""
    server, volume = _guest(cloud, image), _volume(cloud)
    attached, detached = [], []
    for _ in range(rounds):
        attached.append(_timed(cloud, partial(_attach, cloud, server, volume), volume, "in-use"))
        path = f"/compute/v2.1/servers/{server}/os-volume_attachments/{volume}"
        detached.append(_timed(cloud, partial(cloud.call, "DELETE", path), volume, "available"))
    for name, took in (("attach", attached), ("detach", detached)):
        yield Result(f"{name} of a volume, libvirt, p50", statistics.median(took), "ms",
                     note=f"max {max(took):.0f} ms of {rounds}")


def _guest(cloud: Installation, image: Path) -> str:
    """A server that has booted: guests let go of devices then."""
    known = cloud.call("POST", "/image/v2/images", {
        "name": "guest", "disk_format": "qcow2", "container_format": "bare",
    })["id"]
    cloud.exchange("PUT", f"/image/v2/images/{known}/file", image.read_bytes())
    body = {"name": "guest", "imageRef": known, "flavorRef": cloud.flavor("m1.nano"), "networks": "none"}
    server: str = cloud.call("POST", "/compute/v2.1/servers", {"server": body})["server"]["id"]
    console = cloud.data_dir / "guests" / "instances" / server / "console.log"
    give_up = time.monotonic() + 180
    while not console.exists() or READY not in console.read_bytes():
        if time.monotonic() > give_up:
            raise RuntimeError(f"the guest did not boot: {console}")
        time.sleep(0.05)
    return server


def _many(cloud: Installation, count: int) -> Iterator[Result]:
    """So many volumes at once to ten servers with simulated guests."""
    cloud.call("PUT", f"/volume/v3/os-quota-sets/{cloud.project}", {"quota_set": {"volumes": -1, "gigabytes": -1}})
    cloud.fill(cloud.prepare(), SERVERS, CLIENTS)
    servers = [one["id"] for one in cloud.call("GET", "/compute/v2.1/servers")["servers"]]
    made = [_volume(cloud) for _ in range(count)]
    began = time.perf_counter()
    took = cloud.every(
        [partial(_attach, cloud, servers[number % SERVERS], volume) for number, volume in enumerate(made)], CLIENTS
    )
    while len(cloud.call("GET", f"{VOLUMES}?status=in-use")["volumes"]) < count:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    yield Result(f"attaches, {count} volumes at once to {SERVERS} servers", count / seconds, "/s",
                 note=f"fake driver, {CLIENTS} clients, accepted p50 {1000 * statistics.median(took):.0f} ms")


def _data(cloud: Installation, rounds: int) -> Iterator[Result]:
    """In turn over the socket of the pool and on the file, both through the cache of the host."""
    volume = _volume(cloud)
    body = {"volume_uuid": volume, "connector": {"host": "bench"}, "instance_uuid": str(uuid.uuid4())}
    info = cloud.call("POST", "/volume/v3/attachments", {"attachment": body})["attachment"]["connection_info"]
    server = f"file.server.type=unix,file.server.path={info['socket']}"
    served = f"driver=raw,file.driver=nbd,file.export={info['export']},{server}"
    file = cloud.data_dir / "plain"
    with file.open("wb") as made:
        made.truncate(1 << 30)
    plain = f"driver=raw,file.driver=file,file.filename={file}"
    for name, option in (("writing", ("-w",)), ("reading", ())):
        over, on = [], []
        for _ in range(rounds):
            over.append(_throughput(served, option))
            on.append(_throughput(plain, option))
        yield Result(f"{name} a volume against a file", statistics.median(over) / statistics.median(on), "times",
                     SHARE, at_least=True, note=f"{statistics.median(over):.0f} MiB/s of {statistics.median(on):.0f}")


def _throughput(image: str, option: tuple[str, ...]) -> float:
    """MiB per second."""
    done = subprocess.run(
        ["qemu-img", "bench", *option, "-c", str(REQUESTS), "-s", "1M", "-d", "16", "--image-opts", image],
        capture_output=True, text=True, check=True,
    )
    found = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout)
    return REQUESTS / float(found[1])


def _volume(cloud: Installation) -> str:
    """A new one of 1 GiB."""
    made: str = cloud.call("POST", VOLUMES, {"volume": {"size": 1}})["volume"]["id"]
    _until(cloud, made, "available")
    return made


def _attach(cloud: Installation, server: str, volume: str) -> Any:
    path = f"/compute/v2.1/servers/{server}/os-volume_attachments"
    return cloud.call("POST", path, {"volumeAttachment": {"volumeId": volume}})


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
