"""Snapshots of a volume that is a file, while a guest with an operating system writes to it."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.hypervisor.volumes import FileMerge, FileSource, GuestVolume, MergeState

MIB = 1 << 20
BLOCK = 4096
STEP = 17
"""Blocks between those that are written, so that each is in a cluster of its own."""
LIMIT = 150.0
WRITES = """#!/bin/sh
number=0
while true; do
    yes "block $number" | head -c 4096 >/tmp/block
    if dd if=/tmp/block of=/dev/vdb bs=4096 seek=$((number * STEP)) count=1 conv=notrunc oflag=direct 2>/dev/null
    then echo "BLOCK $number." >/dev/console; else echo "FAILED $number." >/dev/console; fi
    number=$((number + 1))
done
""".replace("STEP", str(STEP))


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the files of the volume are, which guests reach."""
    made = Path(tempfile.mkdtemp(prefix="files-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.timeout(900)
@pytest.mark.spec("SNP-33", "EMV-40")
def test_a_guest_that_writes_loses_nothing(tmp_path: Path, directory: Path) -> None:
    uvloop.run(_lose_nothing(make_installation(), build(tmp_path / "guest.qcow2"), directory))


async def _lose_nothing(installation: Installation, image: Path, directory: Path) -> None:
    """Each snapshot has what was written before it, and the guest all that it wrote, whatever is merged; also if the
    merge was ended once."""
    driver = installation.driver()
    try:
        (directory / "base").write_bytes(os.urandom(64 * MIB) + bytes(192 * MIB))
        (directory / "base").chmod(0o666)
        used = GuestVolume(id="used", source=FileSource(path=str(directory / "base")), device_name="/dev/vdb")
        encoded = base64.b64encode(WRITES.encode()).decode()
        guest = empty_guest(
            image=installation.images.add(image), root_gib=1, memory_mib=128, config_drive=True, volumes=(used,)
        )
        guest = msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=encoded))
        await driver.start(lambda _event: None)
        await driver.create_disks(guest)
        await driver.spawn(guest)
        counts, below = [], "base"
        for name in ("one", "two", "three"):
            await _blocks(driver, guest, 3)
            counts.append(await _written(driver, guest))
            _make_above(directory, below, name)
            await driver.put_file_above(guest.uuid, used.id, FileSource(path=str(directory / name), format="qcow2"))
            below = name
        await _blocks(driver, guest, 3)
        for name, count in zip(("base", "one", "two"), counts, strict=True):
            assert _holds(directory / name, count)
        down, everything = FileMerge(file="one", into="base"), FileMerge(file=None)
        for merge in (down, everything):
            await driver.start_merge(guest.uuid, used.id, merge)
            await driver.abort_merge(guest.uuid, used.id)
            await _blocks(driver, guest, 1)
            await _merge(driver, guest, merge)
            await _blocks(driver, guest, 1)
            if merge == down:
                assert _holds(directory / "base", counts[1])
        await driver.power_off(guest.uuid, grace=0, interval=0)
        for needless in ("base", "one", "two"):
            (directory / needless).unlink()
        console = await driver.console_output(guest.uuid, MIB)
        assert b"FAILED" not in console
        assert _holds(directory / "three", await _written(driver, guest))
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
        await driver.close()
    finally:
        await remove_installation(installation)


def _make_above(directory: Path, below: str, name: str) -> None:
    kind = "raw" if below == "base" else "qcow2"
    subprocess.run(
        ["/usr/bin/qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", kind, name], cwd=directory, check=True,
    )
    (directory / name).chmod(0o666)


def _holds(file: Path, count: int) -> bool:
    """Whether a file, with those below it, has the first blocks that the guest wrote."""
    plain = file.with_suffix(".raw")
    kind = "raw" if file.name == "base" else "qcow2"
    subprocess.run(
        ["/usr/bin/qemu-img", "convert", "-U", "-f", kind, "-O", "raw", file.name, plain.name], cwd=file.parent,
        check=True,
    )
    content = plain.read_bytes()
    plain.unlink()
    lines = (f"block {number}\n".encode() for number in range(count))
    return all(
        content[number * STEP * BLOCK:][:BLOCK] == (line * BLOCK)[:BLOCK] for number, line in enumerate(lines)
    )


async def _merge(driver: LibvirtDriver, guest: Guest, merge: FileMerge) -> None:
    async def done() -> bool:
        return await driver.merge_state(guest.uuid, "used", merge) is MergeState.DONE

    await driver.start_merge(guest.uuid, "used", merge)
    await eventually(done, LIMIT)


async def _written(driver: LibvirtDriver, guest: Guest) -> int:
    """How many blocks the guest has written."""
    told = re.findall(rb"BLOCK (\d+)\.", await driver.console_output(guest.uuid, MIB))
    return int(told[-1]) + 1 if told else 0


async def _blocks(driver: LibvirtDriver, guest: Guest, more: int) -> None:
    """Wait until the guest has written more blocks."""
    enough = await _written(driver, guest) + more

    async def written() -> bool:
        return await _written(driver, guest) >= enough

    await eventually(written, LIMIT)
