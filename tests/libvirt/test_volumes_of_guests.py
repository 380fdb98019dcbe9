"""Volumes of guests with an operating system, served by a storage daemon that is not always there."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import uvloop
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation
from nbd_daemon import NbdDaemon

from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.hypervisor.volumes import CopyState, GuestVolume, NbdSource

MIB = 1 << 20
BLOCK = 4096
LAST = 7 * MIB
"""The size of the volume whose arrival tells the guest to stop writing."""
STEP = 17
"""Blocks between those that are written, so that each is in a cluster of its own for which a qcow2 has no place yet."""
LIMIT = 150.0
WRITES = """#!/bin/sh
disks() { cd /sys/block && for disk in vd*; do echo -n "$disk=$(cat $disk/size) "; done; }
(seen=; while true; do
    now=$(disks); [ "$now" = "$seen" ] || echo "DISKS $now." >/dev/console; seen=$now; sleep 0.2
done) &
number=0
until grep -q '^LASTS$' /sys/block/vd*/size; do
    yes "block $number" | head -c 4096 >/tmp/block
    if dd if=/tmp/block of=/dev/vdb bs=4096 seek=$((number * STEP)) count=1 conv=notrunc oflag=direct 2>/dev/null
    then echo "BLOCK $number." >/dev/console; else echo "FAILED $number." >/dev/console; fi
    number=$((number + 1))
done
echo "WRITTEN $number." >/dev/console
""".replace("LASTS", str(LAST // 512)).replace("STEP", str(STEP))


@pytest.fixture(params=["raw", "qcow2"])
def daemon(request: pytest.FixtureRequest) -> Iterator[NbdDaemon]:
    made = NbdDaemon(qcow2=request.param == "qcow2")
    made.start()
    yield made
    made.close()


@pytest.mark.timeout(900)
@pytest.mark.spec("SWP-01")
def test_a_guest_that_writes_loses_nothing(
    tmp_path: Path, daemon: NbdDaemon, request: pytest.FixtureRequest
) -> None:
    """The daemon keeps in memory where in a qcow2 something was written, until it is flushed."""
    write_through = "qcow2" in request.node.name
    uvloop.run(_lose_nothing(make_installation(), build(tmp_path / "guest.qcow2"), daemon, write_through))


async def _lose_nothing(installation: Installation, image: Path, daemon: NbdDaemon, write_through: bool) -> None:
    """While it writes, and flushes nothing, a volume comes and goes, its own volume grows and is exchanged,
    and the daemon that serves it is killed again and again."""
    driver = installation.driver()
    try:
        await driver.start(lambda _event: None)
        used = _volume("used", daemon.add(192 * MIB), device_name="/dev/vdb", write_through=write_through)
        guest = _guest(installation, image, WRITES, used)
        await driver.create_disks(guest)
        await driver.spawn(guest)
        await _blocks(driver, guest, 3)
        await _comes_and_goes(driver, guest, daemon, used)
        await _blocks(driver, guest, 3)
        await _grows(driver, guest, daemon, used)
        await _blocks(driver, guest, 3)
        new = await _is_exchanged(driver, guest, daemon, used)
        for _ in range(3):
            await _blocks(driver, guest, 3)
            daemon.kill()
            await _until(driver, guest, PowerState.PAUSED)
            daemon.start()
            await _until(driver, guest, PowerState.RUNNING)
        await _blocks(driver, guest, 3)
        driver = await _is_left_paused(installation, driver, guest, daemon)
        await _blocks(driver, guest, 3)
        last = _volume("last", daemon.add(LAST))
        await driver.attach_volume(msgspec.structs.replace(guest, volumes=(used, last)), last)
        await eventually(lambda: _told(driver, guest, rb"WRITTEN (\d+)\."), LIMIT)
        console = await driver.console_output(guest.uuid, MIB)
        (written,) = re.findall(rb"WRITTEN (\d+)\.", console)
        assert b"FAILED" not in console
        counted = (await driver.volume_usage(guest.uuid))["used"]
        assert counted.write_bytes >= BLOCK * 3
        assert counted.write_requests >= 3
        await driver.power_off(guest.uuid, grace=0, interval=0)
        content = daemon.content(new)
        for number in range(int(written)):
            found, line = content[number * STEP * BLOCK:][:BLOCK], f"block {number}\n".encode()
            assert found == (line * BLOCK)[:BLOCK], f"block {number} of {written.decode()} is lost"
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
        await driver.close()
    finally:
        await remove_installation(installation)


async def _comes_and_goes(driver: LibvirtDriver, guest: Guest, daemon: NbdDaemon, used: GuestVolume) -> None:
    other = _volume("other", daemon.add(5 * MIB))
    assert isinstance(other.source, NbdSource)
    seen = f"vdc={5 * MIB // 512}".encode()
    assert driver.volume_device_name(guest, other) == "/dev/vdc"
    await driver.attach_volume(msgspec.structs.replace(guest, volumes=(used, other)), other)
    await eventually(lambda: _told(driver, guest, seen), LIMIT)
    assert daemon.is_used(other.source)
    await driver.detach_volume(guest.uuid, other.id)
    assert not daemon.is_used(other.source)
    assert [one.id for one in (await driver.held_volumes())[guest.uuid]] == ["used"]


async def _grows(driver: LibvirtDriver, guest: Guest, daemon: NbdDaemon, used: GuestVolume) -> None:
    assert isinstance(used.source, NbdSource)
    daemon.resize(used.source, 256 * MIB)
    await driver.extend_volume(guest.uuid, used.id, 256 * MIB)
    await eventually(lambda: _told(driver, guest, f"vdb={256 * MIB // 512}".encode()), LIMIT)


async def _is_exchanged(driver: LibvirtDriver, guest: Guest, daemon: NbdDaemon, used: GuestVolume) -> NbdSource:
    assert isinstance(used.source, NbdSource)
    new = _volume("new", daemon.add(256 * MIB), write_through=used.write_through)
    assert isinstance(new.source, NbdSource)
    await driver.start_copy(guest.uuid, used.id, new)

    async def ready() -> bool:
        return (await driver.copy_state(guest.uuid, used.id, new)).state is CopyState.READY

    await eventually(ready, LIMIT)
    await driver.pivot_volume(guest.uuid, used.id, new)
    assert not daemon.is_used(used.source)
    return new.source


async def _is_left_paused(
    installation: Installation, driver: LibvirtDriver, guest: Guest, daemon: NbdDaemon
) -> LibvirtDriver:
    """A guest that a user pauses while it stands still anyway stays paused, also under the next driver, which is
    the one that lets a guest go on that stood still when it came."""
    daemon.kill()
    await _until(driver, guest, PowerState.PAUSED)
    await driver.pause(guest.uuid)
    daemon.start()
    await driver.close()
    driver = installation.driver()
    await driver.start(lambda _event: None)
    await asyncio.sleep(1.0)  # for what must not happen
    assert await driver.power_state(guest.uuid) is PowerState.PAUSED
    await driver.resume(guest.uuid)
    await _until(driver, guest, PowerState.RUNNING)
    await _blocks(driver, guest, 3)
    daemon.kill()
    await _until(driver, guest, PowerState.PAUSED)
    await driver.close()
    daemon.start()
    driver = installation.driver()
    await driver.start(lambda _event: None)
    await _until(driver, guest, PowerState.RUNNING)
    return driver


@pytest.mark.timeout(600)
def test_a_guest_boots_from_a_volume(tmp_path: Path, daemon: NbdDaemon) -> None:
    uvloop.run(_boot_from_volume(make_installation(), build(tmp_path / "guest.qcow2"), daemon))


async def _boot_from_volume(installation: Installation, image: Path, daemon: NbdDaemon) -> None:
    driver = installation.driver()
    try:
        await driver.start(lambda _event: None)
        root = _volume("root", daemon.add(128 * MIB, file=image), device_name="/dev/vda", boot_index=0)
        guest = empty_guest(memory_mib=128, properties={}, volumes=(root,))
        await driver.create_disks(guest)
        assert driver.root_device_name(guest) == "/dev/vda"
        await driver.spawn(guest)
        await eventually(lambda: _told(driver, guest, b"LOGIN READY"), LIMIT)
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
        await driver.close()
    finally:
        await remove_installation(installation)


def _volume(id_: str, source: NbdSource, **changes: object) -> GuestVolume:
    return GuestVolume(id=id_, source=source, **changes)  # type: ignore[arg-type]


def _guest(installation: Installation, image: Path, script: str, *volumes: GuestVolume) -> Guest:
    guest = empty_guest(
        image=installation.images.add(image), root_gib=1, memory_mib=128, config_drive=True, volumes=volumes,
    )
    encoded = base64.b64encode(script.encode()).decode()
    return msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=encoded))


async def _told(driver: LibvirtDriver, guest: Guest, what: bytes) -> bool:
    return re.search(what, await driver.console_output(guest.uuid, MIB)) is not None


async def _blocks(driver: LibvirtDriver, guest: Guest, more: int) -> None:
    """Wait until the guest has written some more."""
    async def count() -> int:
        return len(re.findall(rb"BLOCK \d+\.", await driver.console_output(guest.uuid, MIB)))

    before = await count()

    async def written() -> bool:
        return await count() >= before + more

    await eventually(written, LIMIT)


async def _until(driver: LibvirtDriver, guest: Guest, state: PowerState) -> None:
    async def reached() -> bool:
        return await driver.power_state(guest.uuid) is state

    await eventually(reached, LIMIT)
