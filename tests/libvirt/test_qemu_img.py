"""qemu-img within its limits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import uvloop

from kilonova.hypervisor.libvirt import qemu_img
from kilonova.imaging import qemu_img as limited

NARROW = 384 << 20
"""Bytes of address space that are enough if memory is not set aside for each thread, and else half of the time not."""


async def test_copying_takes_no_address_space_for_each_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    qemu_img.create_empty(disk, 1 << 30)
    _fill(disk)
    monkeypatch.setattr(limited, "ADDRESS_SPACE", NARROW)
    for number in range(5):
        copy = tmp_path / f"copy{number}"
        await qemu_img.flatten(disk, copy)
        copy.unlink()


def _fill(disk: Path) -> None:
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 300M", str(disk)], check=True, capture_output=True)


def test_a_passphrase_is_read_on_the_event_loop_of_the_product(tmp_path: Path) -> None:
    """Whose pipes are sockets."""
    disk = tmp_path / "disk"
    options = f"key-secret=key,{limited.KEY_ITERATIONS}"
    uvloop.run(limited.run("create", "-q", *limited.KEY, "-f", "luks", "-o", options, str(disk), "1M", key="sesame"))
    assert disk.read_bytes().startswith(b"LUKS")
