"""A real guest through the API against the same guest by `virsh create`."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from bench.installation import Installation, installation
from bench.report import Result
from kilonova.guestimage.build import build

READY = b"LOGIN READY"
TARGET = 1.25


def guest_up(rounds: int) -> Iterator[Result]:
    """Both ways in turn, on one libvirt daemon and one machine: disk overlay, start, boot."""
    with tempfile.TemporaryDirectory(prefix="kilonova-bench-image-") as directory:
        image = build(Path(directory, "guest.qcow2"))
        with installation("libvirt") as cloud:
            body = _request(cloud, image)
            domain, disks = _pattern(cloud, body)
            ours, plain = [], []
            for _ in range(rounds):
                ours.append(_through_the_api(cloud, body))
                plain.append(_plainly(cloud, domain, disks))
    for place, what, target in ((0, "running", None), (1, "up", TARGET)):
        mine = statistics.median(one[place] for one in ours)
        theirs = statistics.median(one[place] for one in plain)
        yield Result(f"POST to guest {what}, libvirt", mine, "s",
                     note=f"median of {rounds}; `qemu-img` and `virsh create`: {theirs:.2f} s")
        yield Result(f"POST to guest {what} against plain libvirt", mine / theirs, "times", target)


def _request(cloud: Installation, image: Path) -> dict[str, object]:
    kind = {"name": "guest", "disk_format": "qcow2", "container_format": "bare"}
    known = cloud.call("POST", "/image/v2/images", kind)["id"]
    cloud.exchange("PUT", f"/image/v2/images/{known}/file", image.read_bytes())
    flavors = {one["name"]: one["id"] for one in cloud.call("GET", "/compute/v2.1/flavors")["flavors"]}
    return {"server": {"name": "guest", "imageRef": known, "flavorRef": flavors["m1.nano"], "networks": "none",
                       "config_drive": True}}


def _through_the_api(cloud: Installation, body: dict[str, object]) -> tuple[float, float]:
    """Seconds from the request until the server is ACTIVE, and until its guest has booted."""
    began = time.perf_counter()
    server = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
    while (status := cloud.call("GET", f"/compute/v2.1/servers/{server}")["server"]["status"]) == "BUILD":
        time.sleep(0.005)
    running = time.perf_counter() - began
    if status != "ACTIVE":
        raise RuntimeError(f"the guest is {status}")
    _booted(cloud.data_dir / "guests" / "instances" / server / "console.log")
    booted = time.perf_counter() - began
    cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
    cloud.until("/compute/v2.1/servers?limit=1")
    return running, booted


def _pattern(cloud: Installation, body: dict[str, object]) -> tuple[str, Path]:
    """The definition of a guest that the cloud has made, under the name PATTERN, and a copy of its directory.

    The image is in the host's cache afterwards, as it is for every guest but the first.
    """
    server = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
    cloud.until("/compute/v2.1/servers?status=BUILD&limit=1")
    xml = _virsh(cloud, "dumpxml", "--inactive", server)
    directory = cloud.data_dir / "guests" / "instances" / server
    kept = cloud.data_dir / "guests" / "instances" / "PATTERN"
    shutil.copytree(directory, kept, ignore=shutil.ignore_patterns("*.sock", "console.log"))
    _own_as(directory, kept)
    cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
    cloud.until("/compute/v2.1/servers?limit=1")
    name = f"instance-{server.replace('-', '')[:12]}"
    return xml.replace(server, "PATTERN").replace(name, "NAME"), kept


def _plainly(cloud: Installation, domain: str, pattern: Path) -> tuple[float, float]:
    """The same by hand: an overlay on the cached image, then `virsh create`."""
    known = str(uuid.uuid4())
    directory = pattern.with_name(known)
    directory.mkdir()
    shutil.copy(pattern / "disk.config", directory)
    definition = directory / "domain.xml"
    definition.write_text(domain.replace("PATTERN", known).replace("NAME", f"plain-{known[:8]}"))
    backing = subprocess.run(
        ["qemu-img", "info", "--output=json", str(pattern / "disk")], capture_output=True, text=True, check=True
    ).stdout.split('"backing-filename": "')[1].split('"')[0]
    began = time.perf_counter()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, "disk", "1G"], check=True,
        cwd=directory,
    )
    _own_as(pattern, directory)
    _virsh(cloud, "create", str(definition))
    running = time.perf_counter() - began
    _booted(directory / "console.log")
    booted = time.perf_counter() - began
    _virsh(cloud, "destroy", f"plain-{known[:8]}")
    shutil.rmtree(directory)
    return running, booted


def _own_as(pattern: Path, directory: Path) -> None:
    """Owners and modes as the cloud has given them, so that QEMU may read and write."""
    for path in (directory, *directory.iterdir()):
        owner = (pattern if path == directory else pattern / "disk").stat()
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(owner.st_mode & 0o777)


def _booted(console: Path) -> None:
    give_up = time.monotonic() + 120
    while not console.exists() or READY not in console.read_bytes():
        if time.monotonic() > give_up:
            raise RuntimeError(f"the guest did not boot: {console}")
        time.sleep(0.02)


def _virsh(cloud: Installation, *command: str) -> str:
    socket = cloud.data_dir / "libvirt" / "run" / "libvirt-sock"
    done = subprocess.run(
        ["virsh", "--quiet", "-c", f"qemu+unix:///system?socket={socket}", *command], capture_output=True, text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"virsh {command[0]}: {done.stderr}")
    return done.stdout
