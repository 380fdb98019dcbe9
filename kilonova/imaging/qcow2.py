"""The header of a qcow2 file, versions 2 and 3."""

from __future__ import annotations

import struct

from kilonova.domain.errors import InvalidInput
from kilonova.imaging.facts import BoundedFile, ImageFacts, sane_size

MAGIC = b"QFI\xfb"

HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
"""magic, version, backing offset, backing length, cluster bits, virtual size, encryption, L1 entries, L1
offset, refcount table offset, refcount table clusters, snapshots, snapshots offset."""

HEADER_V3 = struct.Struct(">QQQII")
"""Incompatible, compatible and autoclear features, refcount order, header length."""

SNAPSHOT = struct.Struct(">QIHHIIQII")
"""Of an entry of the table of snapshots: L1 offset and entries, lengths of id and name, date (2), clock of the guest,
size of its state, length of the extra data, which follow; then come id and name, and zeros up to 8 bytes."""

SNAPSHOT_SIZES = struct.Struct(">QQ")
"""How the extra data begin: size of the guest's state, virtual size."""

EXTENSION = struct.Struct(">II")
EXTENSION_DATA_FILE = 0x44415441

CORRUPT = 1 << 1
DATA_FILE = 1 << 2
KNOWN_INCOMPATIBLE = 0b11111
"""Dirty, corrupt, external data file, compression type, extended L2 entries."""

MAX_BACKING_NAME = 1023
MAX_L1_ENTRIES = 4 * 1024 * 1024
MAX_SNAPSHOTS = 65536
MAX_EXTENSIONS = 64


def empty(virtual_size: int) -> bytes:
    """A whole qcow2 in which the guest sees nothing but zeros, in the smallest clusters there are.

    Args:
        virtual_size: bytes, at most 2 MiB.
    """
    bits = 9
    cluster = 1 << bits
    entries = -(-virtual_size // (cluster * cluster // 8))
    header = HEADER_V2.pack(MAGIC, 3, 0, 0, bits, virtual_size, 0, entries, 3 * cluster, cluster, 1, 0, 0)
    header += HEADER_V3.pack(0, 0, 0, 4, HEADER_V2.size + HEADER_V3.size)
    counts = struct.pack(">4H", 1, 1, 1, 1)
    return b"".join(part.ljust(cluster, b"\0") for part in (header, struct.pack(">Q", 2 * cluster), counts, b""))


def parse(file: BoundedFile) -> ImageFacts:
    """Read the header, its extensions and the name of the backing file.

    Raises:
        InvalidInput: the header contradicts itself or the format's limits.
    """
    (_, version, backing_offset, backing_length, cluster_bits, size, encryption, l1_entries, _, _, _,
     snapshots, _) = HEADER_V2.unpack(file.exactly(0, HEADER_V2.size))
    if version == 1:
        # The first format shares the magic; nobody makes it, and no driver here opens it.
        return ImageFacts(format="qcow", virtual_size=0, file_size=file.size)
    if version not in (2, 3):
        raise InvalidInput(f"qcow2 version {version} is not known.")
    if not 9 <= cluster_bits <= 21:
        raise InvalidInput(f"The qcow2 header has impossible clusters of 2^{cluster_bits} bytes.")
    if l1_entries > MAX_L1_ENTRIES or snapshots > MAX_SNAPSHOTS:
        raise InvalidInput("The qcow2 header asks for tables larger than the format allows.")
    cluster = 1 << cluster_bits
    incompatible, length = _features(file, version, cluster)
    data_file = _data_file(file, length, backing_offset or cluster)
    if incompatible & DATA_FILE and data_file is None:
        data_file = ""
    return ImageFacts(
        format="qcow2",
        virtual_size=sane_size(size),
        file_size=file.size,
        backing_file=_backing_file(file, backing_offset, backing_length, cluster) if backing_offset else None,
        data_file=data_file,
        encrypted=encryption != 0,
        unknown_features=incompatible & ~KNOWN_INCOMPATIBLE,
        corrupt=bool(incompatible & CORRUPT),
    )


def snapshots(file: BoundedFile) -> list[tuple[str, int]]:
    """Names and virtual sizes (bytes) of the snapshots in a qcow2, in the order in which they were taken.

    Raises:
        InvalidInput: the table is cut off or too long.
    """
    fields = HEADER_V2.unpack(file.exactly(0, HEADER_V2.size))
    size, count, offset = fields[5], fields[11], fields[12]
    found = []
    for _ in range(count):
        _, _, id_length, name_length, *_, extra_length = SNAPSHOT.unpack(file.exactly(offset, SNAPSHOT.size))
        offset += SNAPSHOT.size
        if extra_length >= SNAPSHOT_SIZES.size:
            _, size = SNAPSHOT_SIZES.unpack(file.exactly(offset, SNAPSHOT_SIZES.size))
        offset += extra_length + id_length
        found.append((_text(file.exactly(offset, name_length)), size))
        offset = (offset + name_length + 7) & ~7
    return found


def _features(file: BoundedFile, version: int, cluster: int) -> tuple[int, int]:
    """The incompatible features and the length of the header."""
    if version == 2:
        return 0, HEADER_V2.size
    fields = HEADER_V3.unpack(file.exactly(HEADER_V2.size, HEADER_V3.size))
    incompatible, _, _, refcount_order, length = fields
    if length < HEADER_V2.size + HEADER_V3.size or length > cluster:
        raise InvalidInput(f"The qcow2 header has an impossible length of {length} bytes.")
    if refcount_order > 6:
        raise InvalidInput(f"The qcow2 header has impossible reference counts of 2^{refcount_order} bits.")
    return incompatible, length


def _data_file(file: BoundedFile, start: int, end: int) -> str | None:
    """The name in the extension for an external data file, or None when there is no such extension."""
    offset = start
    for _ in range(MAX_EXTENSIONS):
        if offset + EXTENSION.size > end:
            return None
        kind, length = EXTENSION.unpack(file.exactly(offset, EXTENSION.size))
        offset += EXTENSION.size
        if kind == 0:
            return None
        if length > end - offset:
            raise InvalidInput("A qcow2 header extension is larger than the header.")
        if kind == EXTENSION_DATA_FILE:
            return _text(file.exactly(offset, min(length, MAX_BACKING_NAME)))
        offset += (length + 7) & ~7
    raise InvalidInput(f"The qcow2 header has more than {MAX_EXTENSIONS} extensions.")


def _backing_file(file: BoundedFile, offset: int, length: int, cluster: int) -> str:
    if length > MAX_BACKING_NAME or offset + length > cluster:
        raise InvalidInput("The qcow2 header names a backing file outside the header.")
    return _text(file.exactly(offset, length)) if length else ""


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
