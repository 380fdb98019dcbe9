"""What an inspection of a disk-image file found, and how much of the file it may read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Self

import msgspec

from kilonova.domain.errors import InvalidInput

READ_LIMIT = 512 * 1024
"""Bytes that one inspection reads of a file at most, whatever the file says of itself."""

MAX_VIRTUAL_SIZE = 1 << 62
"""Bytes; a header that claims more is nonsense."""


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a file is, by its own headers.

    Args:
        format: raw, gpt, mbr, luks, iso, qcow, qcow2, qed, vmdk, vdi, vhd, vhdx or ploop. The first four are
            all raw bytes, told apart by what is in them.
        virtual_size: bytes the guest sees; for raw bytes the size of the file.
        file_size: bytes of the file.
        backing_file: the other image this one is a difference to, or None. "" when it has one without a name.
        data_file: a file outside that holds the guest's data, or None. "" when it has one without a name.
        encrypted: the contents need a key.
        unknown_features: bits that a reader must understand and this code does not know.
        corrupt: the header says that the image must be repaired before use.
    """

    format: str
    virtual_size: int
    file_size: int
    backing_file: str | None = None
    data_file: str | None = None
    encrypted: bool = False
    unknown_features: int = 0
    corrupt: bool = False


class BoundedFile:
    """A regular file opened for reading no more than READ_LIMIT bytes in all.

    Raises:
        InvalidInput: it is not a regular file, or the limit is reached.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise InvalidInput("The image is not a regular file.")
        self.size = status.st_size
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes at `offset`; fewer (or none) where the file ends."""
        if not 0 <= offset < self.size:
            return b""
        if self.bytes_read + length > READ_LIMIT:
            raise InvalidInput("The headers of the image are too large to be inspected.")
        data = os.pread(self._fd, length, offset)
        self.bytes_read += len(data)
        return data

    def exactly(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`. Raises InvalidInput where the file is shorter."""
        data = self.read(offset, length)
        if len(data) != length:
            raise InvalidInput("The image ends within its headers.")
        return data


def sane_size(size: int) -> int:
    """The virtual size, if it is one. Raises InvalidInput."""
    if size > MAX_VIRTUAL_SIZE:
        raise InvalidInput(f"The image claims a virtual size of {size} bytes, which cannot be.")
    return size
