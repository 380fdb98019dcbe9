"""The bootable disk: a boot partition for BIOS and UEFI, and a small data partition.

All of it is made by programs that write to plain files: no root, mount or loop device.
"""

from __future__ import annotations

import struct
from pathlib import Path

from kilonova.domain.errors import KilonovaError
from kilonova.guestimage.tools import run

SECTOR = 512
MIB = 1024 * 1024
BOOT_START, BOOT_SIZE = 1 * MIB, 40 * MIB
DATA_START, DATA_SIZE = 41 * MIB, 24 * MIB
DISK_SIZE = 66 * MIB
EFI_SYSTEM, LINUX = 0xEF, 0x83
COMMAND_LINE = "console=tty0 console=ttyS0,115200 loglevel=4 panic=5 edd=off"
SYSLINUX = f"DEFAULT guest\nLABEL guest\nLINUX /vmlinuz\nINITRD /initrd\nAPPEND {COMMAND_LINE}\n"
LOADER = "timeout 0\ndefault guest.conf\n"
LOADER_ENTRY = f"title guest\nlinux /vmlinuz\ninitrd /initrd\noptions {COMMAND_LINE}\n"


def make_disk(unpacked: Path, kernel: bytes, initrd: bytes, work: Path, target: Path) -> None:
    """Write a compressed qcow2 at `target`.

    Args:
        unpacked: unpacked packages with mtools, dosfstools, syslinux and systemd-boot.
        work: an existing directory for intermediate files.
    """
    boot = _boot_partition(unpacked, kernel, initrd, work)
    data = _data_partition(work)
    raw = work / "disk.raw"
    with raw.open("wb") as disk:
        disk.write(_boot_sector(_one(unpacked, "usr/lib/syslinux/mbr/mbr.bin").read_bytes()))
        disk.seek(BOOT_START)
        disk.write(boot.read_bytes())
        disk.seek(DATA_START)
        disk.write(data.read_bytes())
        disk.truncate(DISK_SIZE)
    run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(raw), str(target)])


def _boot_partition(unpacked: Path, kernel: bytes, initrd: bytes, work: Path) -> Path:
    files = {
        "vmlinuz": kernel,
        "initrd": initrd,
        "syslinux.cfg": SYSLINUX.encode(),
        "EFI/BOOT/BOOTX64.EFI": _one(unpacked, "usr/lib/systemd/boot/efi/systemd-bootx64.efi").read_bytes(),
        "loader/loader.conf": LOADER.encode(),
        "loader/entries/guest.conf": LOADER_ENTRY.encode(),
    }
    content = work / "boot"
    for name, data in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(data)
    partition = work / "boot.img"
    with partition.open("wb") as file:
        file.truncate(BOOT_SIZE)
    hidden = str(BOOT_START // SECTOR)
    run(["mkfs.vfat", "-F", "16", "-n", "BOOT", "-h", hidden, str(partition)], unpacked=unpacked)
    tops = sorted(str(path) for path in content.iterdir())
    run(["mcopy", "-s", "-i", str(partition), *tops, "::/"], unpacked=unpacked)
    run(["syslinux", "--install", str(partition)], unpacked=unpacked)
    return partition


def _data_partition(work: Path) -> Path:
    content = work / "data"
    content.mkdir()
    partition = work / "data.img"
    options = ["-q", "-F", "-t", "ext4", "-m", "0", "-L", "data", "-d", str(content)]
    run(["mke2fs", *options, str(partition), f"{DATA_SIZE // 1024}k"])
    return partition


def _boot_sector(code: bytes) -> bytes:
    """Boot code and a partition table of two entries, the first one active."""
    table = _partition(0x80, EFI_SYSTEM, BOOT_START, BOOT_SIZE) + _partition(0, LINUX, DATA_START, DATA_SIZE)
    signature = struct.pack("<IH", 0x4B4E4F56, 0)
    return code[:440].ljust(440, b"\0") + signature + table.ljust(64, b"\0") + b"\x55\xaa"


def _partition(active: int, kind: int, start: int, size: int) -> bytes:
    """Sector numbers only; the cylinder fields hold the value that stands for 'see the sector numbers'."""
    beyond = b"\xfe\xff\xff"
    extent = struct.pack("<II", start // SECTOR, size // SECTOR)
    return bytes([active]) + beyond + bytes([kind]) + beyond + extent


def _one(unpacked: Path, name: str) -> Path:
    path = unpacked / name
    if not path.exists():
        raise KilonovaError(f"The packages of this distribution hold no {name}.")
    return path
