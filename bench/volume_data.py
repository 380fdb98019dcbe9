"""How fast the data of volumes go: over the socket of a storage pool against a file, and from one pool to another."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.installation import Installation
from bench.report import Result

POOLS = "".join(f'[[volume.pool]]\nname = "{name}"\nformat = "raw"\n' for name in ("one", "two"))
SHARE = 0.8
"""Of the throughput of a file that is promised for its volume."""
SIZES = (("1M", 1 << 20), ("64k", 64 << 10))
"""Of requests, of which 16 are made at once."""
MIB = 1 << 20


def data(cloud: Installation, volume: str, rounds: int, mib: int) -> Iterator[Result]:
    """In turn over the socket of the pool, as the QEMU of a guest does it, and on a file as guests have their local
    disks, past the cache of the host. All that is written is flushed, and nothing that is read is in a cache."""
    body = {"volume_uuid": volume, "connector": {"host": "bench"}, "instance_uuid": str(uuid.uuid4())}
    info = cloud.call("POST", "/volume/v3/attachments", {"attachment": body})["attachment"]["connection_info"]
    server = f"file.server.type=unix,file.server.path={info['socket']}"
    plain = cloud.data_dir / "plain"
    files = (_file_of(cloud, volume), plain)
    images = (
        f"driver=raw,file.driver=nbd,file.export={info['export']},{server}",
        f"driver=raw,file.driver=file,file.cache.direct=on,file.filename={plain}",
    )
    for file in files:
        _fill(file, mib)
    for name, options in (("writing", ("-w",)), ("reading", ())):
        for size, each in SIZES:
            found: list[list[float]] = [[], []]
            for _ in range(rounds):
                for image, file, took in zip(images, files, found, strict=True):
                    took.append(_throughput(image, file, (*options, "-s", size), mib, mib * MIB // each))
            over, on = (statistics.median(took) for took in found)
            yield Result(f"{name} a volume against a file, {size}", over / on, "times", SHARE, at_least=True,
                         note=f"{over:.0f} MiB/s of {on:.0f}")


def swap(cloud: Installation, volume: str, rounds: int, mib: int) -> Iterator[Result]:
    """To the other pool while a guest uses it, until it uses it there, and in turn with `qemu-img` from file to file.
    Both go past the cache of the host, as the data of guests do.

    Args: volume: that a guest has.
    """
    _fill(_file_of(cloud, volume), mib)
    moved, copied = [], []
    for _ in range(rounds):
        copied.append(mib / _copy(cloud, volume))
        moved.append(mib / _move(cloud, volume))
    move, copy = statistics.median(moved), statistics.median(copied)
    yield Result("moving a volume in use against `qemu-img convert`", move / copy, "times", SHARE, at_least=True,
                 note=f"{move:.0f} MiB/s of {copy:.0f}, {mib} MiB, libvirt")


def _copy(cloud: Installation, volume: str) -> float:
    """Seconds that `qemu-img` takes for the data of a volume."""
    file, copy = _file_of(cloud, volume), cloud.data_dir / "copy"
    _forget(file)
    began = time.perf_counter()
    past = ("-T", "none", "-t", "none")
    subprocess.run(["qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", *past, str(file), str(copy)], check=True)
    took = time.perf_counter() - began
    copy.unlink()
    return took


def _move(cloud: Installation, volume: str) -> float:
    """Seconds until the server has a volume from the other pool; returns when the old data are gone, too."""
    pools = cloud.call("GET", "/volume/v3/scheduler-stats/get_pools")["pools"]
    where = _shown(cloud, volume)["os-vol-host-attr:host"]
    other = next(one["name"] for one in pools if one["name"] != where)
    _forget(_file_of(cloud, volume))
    began, took = time.perf_counter(), 0.0
    cloud.exchange("POST", f"/volume/v3/volumes/{volume}/action", {"os-migrate_volume": {"host": other}})
    while True:
        found = _shown(cloud, volume)
        if found["os-vol-host-attr:host"] == other:
            took = took or time.perf_counter() - began
            if found["migration_status"] == "success":
                return took
        if found["migration_status"] == "error" or time.perf_counter() - began > 300:
            raise RuntimeError(f"the migration of volume {volume} is in the state {found['migration_status']}")
        time.sleep(0.01)


def _shown(cloud: Installation, volume: str) -> dict[str, Any]:
    shown: dict[str, Any] = cloud.call("GET", f"/volume/v3/volumes/{volume}")["volume"]
    return shown


def _file_of(cloud: Installation, volume: str) -> Path:
    name = _shown(cloud, volume)["os-vol-mig-status-attr:name_id"] or volume
    return next((cloud.data_dir / "volumes").glob(f"*/volumes/{name}.raw"))


def _fill(path: Path, mib: int) -> None:
    """Write data to its beginning."""
    random = os.urandom(MIB)
    with path.open("r+b" if path.exists() else "wb") as file:
        for _ in range(mib):
            file.write(random)
        file.flush()
        os.fsync(file.fileno())


def _forget(path: Path) -> None:
    """Nothing of a file is in the cache of the host."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _throughput(image: str, file: Path, options: tuple[str, ...], mib: int, count: int) -> float:
    """MiB per second, until all is on the disk. count: of requests."""
    _forget(file)
    flush = ("--flush-interval", str(count)) if "-w" in options else ()
    done = subprocess.run(
        ["qemu-img", "bench", *options, *flush, "-c", str(count), "-d", "16", "--image-opts", image],
        capture_output=True, text=True, check=True,
    )
    found = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout)
    return mib / float(found[1])
