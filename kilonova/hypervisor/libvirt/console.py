"""The record of a guest's serial console: a file that the guest can fill as it likes, and so is kept short."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PUNCH_HOLE = 0x1 | 0x2
"""fallocate: give the blocks back, keep the size."""
MOST = 4 << 20
KEPT = 1 << 20
"""Bytes: a record that grows past MOST loses all but its last KEPT."""

_libc = ctypes.CDLL(None, use_errno=True)


def tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of what the guest wrote. Raises FileNotFoundError without a record."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - limit))
        return file.read(limit).lstrip(b"\0")  # where the record was cut, the file has a hole


def trim(path: Path) -> None:
    """Give back the disk space of the older part.

    The size stays as it is, so QEMU, which has the file open, need not be told.
    """
    with path.open("rb+") as file:
        status = os.fstat(file.fileno())
        if status.st_blocks * 512 <= MOST:
            return
        length = (status.st_size - KEPT) & ~4095
        if _libc.fallocate(file.fileno(), PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(length)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
