"""How fast the data of volumes go: over the socket of a storage pool against a file, and from one pool to another."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

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


def swap(cloud: Installation, attach: Callable[[str], None], volume: str, mib: int) -> Iterator[Result]:
    """To the other pool while a guest uses it, until the old data are gone, against qemu-img, of file to file.

    Args: attach: gives the volume to the guest.
    """
    file = _file_of(cloud, volume)
    _fill(file, mib)
    began = time.perf_counter()
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "none", str(file), str(cloud.data_dir / "copy")],
        check=True,
    )
    plain = time.perf_counter() - began
    attach(volume)
    pools = cloud.call("GET", "/volume/v3/scheduler-stats/get_pools")["pools"]
    where = cloud.call("GET", f"/volume/v3/volumes/{volume}")["volume"]["os-vol-host-attr:host"]
    other = next(one["name"] for one in pools if one["name"] != where)
    began = time.perf_counter()
    cloud.exchange("POST", f"/volume/v3/volumes/{volume}/action", {"os-migrate_volume": {"host": other}})
    while (state := cloud.call("GET", f"/volume/v3/volumes/{volume}")["volume"]["migration_status"]) != "success":
        if state == "error" or time.perf_counter() - began > 300:
            raise RuntimeError(f"the migration of volume {volume} is in the state {state}")
        time.sleep(0.01)
    took = time.perf_counter() - began
    yield Result("moving a volume in use against `qemu-img convert`", plain / took, "times",
                 note=f"{mib / took:.0f} MiB/s of {mib / plain:.0f}, {mib} MiB, libvirt")


def _file_of(cloud: Installation, volume: str) -> Path:
    return next((cloud.data_dir / "volumes").glob(f"*/volumes/{volume}.raw"))


def _fill(path: Path, mib: int) -> None:
    """Write data to its beginning."""
    random = os.urandom(MIB)
    with path.open("r+b" if path.exists() else "wb") as file:
        for _ in range(mib):
            file.write(random)
        file.flush()
        os.fsync(file.fileno())


def _throughput(image: str, file: Path, options: tuple[str, ...], mib: int, count: int) -> float:
    """MiB per second, until all is on the disk. count: of requests."""
    with file.open("rb") as cached:
        os.posix_fadvise(cached.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    flush = ("--flush-interval", str(count)) if "-w" in options else ()
    done = subprocess.run(
        ["qemu-img", "bench", *options, *flush, "-c", str(count), "-d", "16", "--image-opts", image],
        capture_output=True, text=True, check=True,
    )
    found = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    if found is None:
        raise RuntimeError(done.stdout)
    return mib / float(found[1])
