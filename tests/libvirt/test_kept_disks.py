"""Disks of another size beside the kept ones, as files."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from libvirt_installations import FileImages, Installation, empty_guest

from kilonova.domain.errors import InvalidInput
from kilonova.domain.states import PowerState
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import kept_disks
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

GIB = 1 << 30


def facts(disk: Path) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", str(disk)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def kept(directory: Path) -> list[str]:
    """The names of what is kept."""
    return sorted(path.name for path in directory.glob("*.kept-*"))


def disks(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("disk.*"))


def write(disk: Path, byte: str, form: str) -> None:
    subprocess.run(["qemu-io", "-f", form, "-c", f"write -P {byte} 1M 64k", str(disk)], check=True, capture_output=True)


def holds(disk: Path, byte: str, form: str) -> bool:
    done = subprocess.run(
        ["qemu-io", "-f", form, "-c", f"read -P {byte} 1M 64k", str(disk)], check=True, capture_output=True, text=True
    )
    return "Pattern verification failed" not in done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", made, "4M"], check=True)
    return made


@pytest.fixture
async def old(driver: LibvirtDriver, images: FileImages, image: Path) -> Guest:
    """A guest with all its disks."""
    made = empty_guest(image=images.add(image), root_gib=1, ephemeral_gib=1, swap_mib=8, config_drive=True)
    await driver.create_disks(made)
    return made


@pytest.fixture
def directory(shared_installation: Installation, old: Guest) -> Path:
    """Of that guest, after something was written to its disks."""
    found = shared_installation.directory / "guests/instances" / old.uuid
    write(found / "disk", "0x11", "qcow2")
    write(found / "disk.ephemeral", "0x22", "raw")
    return found


def bigger(guest: Guest) -> Guest:
    return msgspec.structs.replace(guest, root_gib=3, ephemeral_gib=2, swap_mib=16)


async def test_disks_grow_with_what_they_hold(driver: LibvirtDriver, old: Guest, directory: Path) -> None:
    backing = facts(directory / "disk")["backing-filename"]
    swap = digest(directory / "disk.swap")
    await driver.resize_disks(old, bigger(old), keep="m")
    root = facts(directory / "disk")
    assert (root["virtual-size"], root["backing-filename"]) == (3 * GIB, backing)
    assert holds(directory / "disk", "0x11", "qcow2")
    assert (directory / "disk.ephemeral").stat().st_size == 2 * GIB
    assert (directory / "disk.ephemeral").stat().st_blocks * 512 < GIB  # holes stay holes
    assert holds(directory / "disk.ephemeral", "0x22", "raw")
    assert (directory / "disk.swap").stat().st_size == 16 << 20
    assert facts(directory / "disk.kept-m")["virtual-size"] == GIB
    assert digest(directory / "disk.swap.kept-m") == swap
    await driver.power_on(bigger(old))
    assert await driver.power_state(old.uuid) is PowerState.RUNNING
    await driver.drop_kept_disks(old.uuid, keep="m")
    assert kept(directory) == []


async def test_swap_of_the_same_size_stays_the_same(driver: LibvirtDriver, old: Guest, directory: Path) -> None:
    swap = digest(directory / "disk.swap")  # it is mounted by its UUID
    await driver.resize_disks(old, msgspec.structs.replace(old, root_gib=2), keep="m")
    assert digest(directory / "disk.swap") == swap


async def test_a_revert_forgets_what_was_written_since(driver: LibvirtDriver, old: Guest, directory: Path) -> None:
    names = ("disk", "disk.ephemeral", "disk.swap")
    before = {name: digest(directory / name) for name in names}
    await driver.resize_disks(old, bigger(old), keep="m")
    write(directory / "disk", "0x33", "qcow2")
    await driver.revert_disks(old, keep="m")
    assert {name: digest(directory / name) for name in names} == before
    assert kept(directory) == []


async def test_disks_that_only_the_new_flavor_has_come_and_go(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    bare = empty_guest()
    directory = shared_installation.directory / "guests/instances" / bare.uuid
    await driver.create_disks(bare)
    rich = msgspec.structs.replace(bare, swap_mib=4, ephemeral_gib=1)
    await driver.resize_disks(bare, rich, keep="m")
    assert disks(directory) == ["disk.ephemeral", "disk.swap"]
    await driver.revert_disks(bare, keep="m")
    assert disks(directory) == []
    await driver.create_disks(rich)
    await driver.resize_disks(rich, msgspec.structs.replace(rich, swap_mib=0), keep="m")
    assert not (directory / "disk.swap").exists()
    await driver.revert_disks(rich, keep="m")
    assert (directory / "disk.swap").stat().st_size == 4 << 20


@pytest.mark.spec("MIG-66")
async def test_a_root_disk_is_not_made_smaller(driver: LibvirtDriver, old: Guest, directory: Path) -> None:
    before = digest(directory / "disk")
    await driver.resize_disks(old, bigger(old), keep="m")
    await driver.drop_kept_disks(old.uuid, keep="m")
    with pytest.raises(InvalidInput, match="smaller"):
        await driver.resize_disks(bigger(old), old, keep="n")
    assert facts(directory / "disk")["virtual-size"] == 3 * GIB
    assert kept(directory) == []
    assert digest(directory / "disk") != before


async def test_what_another_resize_kept_is_removed(driver: LibvirtDriver, old: Guest, directory: Path) -> None:
    await driver.resize_disks(old, bigger(old), keep="m")
    await driver.resize_disks(bigger(old), msgspec.structs.replace(bigger(old), root_gib=4), keep="n")
    assert {name.rpartition("-")[2] for name in kept(directory)} == {"n"}
    assert facts(directory / "disk.kept-n")["virtual-size"] == 3 * GIB


@pytest.mark.spec("INI-168")
@pytest.mark.parametrize("forward", [True, False])
async def test_whatever_was_cut_off_is_done_or_taken_back(
    driver: LibvirtDriver, old: Guest, directory: Path, monkeypatch: pytest.MonkeyPatch, *, forward: bool
) -> None:
    """At each renaming and each copy in turn."""
    before = digest(directory / "disk")
    for cut in range(1, 5):
        left = cut

        def stop(*_arguments: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise InterruptedError

        copy, flush = kept_disks._copy, kept_disks.flush
        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.setattr(kept_disks, "_copy", lambda *a, copy=copy: (stop(), copy(*a)))
            patch.setattr(kept_disks, "flush", lambda *a, flush=flush: (stop(), flush(*a)))
            await driver.resize_disks(old, bigger(old), keep="m")
        if forward:
            await driver.resize_disks(old, bigger(old), keep="m")
            assert facts(directory / "disk")["virtual-size"] == 3 * GIB
            assert holds(directory / "disk", "0x11", "qcow2")
            assert digest(directory / "disk.kept-m") == before
        await driver.revert_disks(old, keep="m")
        assert digest(directory / "disk") == before
