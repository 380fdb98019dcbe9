"""The headers of the image formats other than qcow2: VMDK, VDI, VHD, VHDX, QED, Parallels."""

from __future__ import annotations

import re
import struct
import uuid

from kilonova.domain.errors import InvalidInput
from kilonova.imaging.facts import BoundedFile, ImageFacts, sane_size

SECTOR = 512

VMDK_MAGIC = b"KDMV"
VMDK_ESX_MAGIC = b"COWD"
VMDK_DESCRIPTOR = b"# Disk DescriptorFile"
VMDK_HEADER = struct.Struct("<4sIIQQQQ")
"""magic, version, flags, capacity, grain, descriptor offset, descriptor length; the last four in sectors."""
VMDK_MAX_DESCRIPTOR = 64 * 1024
VMDK_SELF_CONTAINED = frozenset({"monolithicsparse", "streamoptimized"})
VMDK_NO_PARENT = "ffffffff"

VDI_MAGIC = b"\x7f\x10\xda\xbe"
VDI_MAGIC_OFFSET = 64
VDI_DIFFERENCE = 4

VHD_MAGIC = b"conectix"
VHD_FOOTER = 512
VHD_DIFFERENCE = 4

VHDX_MAGIC = b"vhdxfile"
VHDX_REGION_TABLE = 192 * 1024
VHDX_ENTRY = struct.Struct("<16sQII")
VHDX_ITEM = struct.Struct("<16sIIII")
VHDX_MAX_ENTRIES = 2047
VHDX_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
VHDX_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
VHDX_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
VHDX_HAS_PARENT = 2

QED_MAGIC = b"QED\0"
QED_HEADER = struct.Struct("<4sIIIQQQQQII")
"""magic, cluster, table, header, features, compatible, autoclear, L1 offset, virtual size, backing offset and
length."""
QED_BACKING = 1
QED_KNOWN_FEATURES = 0b111
QED_MAX_NAME = 1023

PLOOP_MAGICS = (b"WithoutFreeSpace", b"WithouFreSpacExt")


def vmdk(file: BoundedFile) -> ImageFacts:
    """A sparse VMDK with its descriptor inside. One whose extents are other files has them as `data_file`."""
    _, _, _, capacity, _, offset, length = VMDK_HEADER.unpack(file.exactly(0, VMDK_HEADER.size))
    if capacity == 0:
        # Readers then take the descriptor for a whole image and open the files it names.
        return ImageFacts(format="vmdk", virtual_size=0, file_size=file.size, data_file="")
    if not 0 < length * SECTOR <= VMDK_MAX_DESCRIPTOR:
        raise InvalidInput("The VMDK has no descriptor or one too large to be inspected.")
    trailer = file.read(file.size - 2 * SECTOR, VMDK_HEADER.size)
    if trailer[:4] == VMDK_MAGIC and len(trailer) == VMDK_HEADER.size:
        # A stream-optimised file repeats its header at the end, and readers believe that copy.
        capacity = max(capacity, VMDK_HEADER.unpack(trailer)[3])
    return _vmdk_descriptor(file, file.exactly(offset * SECTOR, length * SECTOR), capacity * SECTOR)


def vmdk_text(file: BoundedFile) -> ImageFacts:
    """A VMDK that is only a descriptor: all its data lies in other files."""
    facts = _vmdk_descriptor(file, file.read(0, VMDK_MAX_DESCRIPTOR), 0)
    if facts.data_file is None:
        return ImageFacts(format="vmdk", virtual_size=0, file_size=file.size, backing_file=facts.backing_file,
                          data_file="")
    return facts


def vmdk_esx(file: BoundedFile) -> ImageFacts:
    """The host's own sparse format: part of an image whose descriptor is elsewhere."""
    return ImageFacts(format="vmdk", virtual_size=0, file_size=file.size, data_file="")


def _vmdk_descriptor(file: BoundedFile, descriptor: bytes, size: int) -> ImageFacts:
    text = descriptor.partition(b"\0")[0].decode("utf-8", "replace")
    kind = re.search(r'^\s*createType\s*=\s*"([^"]*)"', text, re.MULTILINE | re.IGNORECASE)
    if kind is None:
        raise InvalidInput("The descriptor of the VMDK does not say what kind of image it is.")
    data_file = None
    if kind[1].lower() not in VMDK_SELF_CONTAINED:
        extent = re.search(r'^\s*(?:RW|RDONLY)\s+\d+\s+\w+\s+"([^"]*)"', text, re.MULTILINE)
        data_file = extent[1] if extent else ""
    parent = re.search(r'^\s*parentCID\s*=\s*([0-9a-zA-Z]+)', text, re.MULTILINE | re.IGNORECASE)
    hint = re.search(r'^\s*parentFileNameHint\s*=\s*"([^"]*)"', text, re.MULTILINE | re.IGNORECASE)
    has_parent = hint is not None or (parent is not None and parent[1].lower() != VMDK_NO_PARENT)
    return ImageFacts(
        format="vmdk",
        virtual_size=sane_size(size),
        file_size=file.size,
        backing_file=(hint[1] if hint else "") if has_parent else None,
        data_file=data_file,
    )


def vdi(file: BoundedFile) -> ImageFacts:
    header = file.exactly(0, SECTOR)
    kind = int.from_bytes(header[76:80], "little")
    parent = header[440:456]
    return ImageFacts(
        format="vdi",
        virtual_size=sane_size(int.from_bytes(header[368:376], "little")),
        file_size=file.size,
        backing_file="" if kind == VDI_DIFFERENCE or any(parent) else None,
    )


def vhd(file: BoundedFile, footer: bytes) -> ImageFacts:
    """A VHD by its footer (a dynamic one has a copy at the start)."""
    if len(footer) != VHD_FOOTER:
        raise InvalidInput("The image ends within its headers.")
    current, cylinders, heads, sectors, kind = struct.unpack_from(">QHBBI", footer, 48)
    # Which of the two sizes counts depends on the program that wrote the file: believe the larger.
    size = max(current, cylinders * heads * sectors * SECTOR)
    return ImageFacts(
        format="vhd",
        virtual_size=sane_size(size),
        file_size=file.size,
        backing_file="" if kind == VHD_DIFFERENCE else None,
    )


def vhdx(file: BoundedFile) -> ImageFacts:
    """A VHDX: its size stands in an item of its metadata region, which the region table locates."""
    metadata = _vhdx_region(file)
    head = file.exactly(metadata, 32)
    if head[:8] != b"metadata":
        raise InvalidInput("The VHDX has no metadata where its region table says.")
    count = int.from_bytes(head[10:12], "little")
    size = None
    has_parent = False
    table = _table(file, metadata + 32, count, VHDX_ITEM.size)
    for item, offset, _length, _item_flags, _ in VHDX_ITEM.iter_unpack(table):
        if item == VHDX_DISK_SIZE:
            size = int.from_bytes(file.exactly(metadata + offset, 8), "little")
        elif item == VHDX_PARAMETERS:
            flags = int.from_bytes(file.exactly(metadata + offset + 4, 4), "little")
            has_parent |= bool(flags & VHDX_HAS_PARENT)
    if size is None:
        raise InvalidInput("The VHDX does not tell its virtual size.")
    return ImageFacts(format="vhdx", virtual_size=sane_size(size), file_size=file.size,
                      backing_file="" if has_parent else None)


def _vhdx_region(file: BoundedFile) -> int:
    head = file.exactly(VHDX_REGION_TABLE, 16)
    if head[:4] != b"regi":
        raise InvalidInput("The VHDX has no region table.")
    table = _table(file, VHDX_REGION_TABLE + 16, int.from_bytes(head[8:12], "little"), VHDX_ENTRY.size)
    for region, offset, _length, _required in VHDX_ENTRY.iter_unpack(table):
        if region == VHDX_METADATA:
            return int(offset)
    raise InvalidInput("The VHDX has no metadata region.")


def _table(file: BoundedFile, offset: int, count: int, entry: int) -> bytes:
    if count > VHDX_MAX_ENTRIES:
        raise InvalidInput("A table of the VHDX is larger than the format allows.")
    return file.exactly(offset, count * entry)


def qed(file: BoundedFile) -> ImageFacts:
    (_, _, _, _, features, _, _, _, size, backing_offset,
     backing_length) = QED_HEADER.unpack(file.exactly(0, QED_HEADER.size))
    backing = None
    if features & QED_BACKING:
        name = file.exactly(backing_offset, min(backing_length, QED_MAX_NAME))
        backing = name.decode("utf-8", "replace")
    return ImageFacts(format="qed", virtual_size=sane_size(size), file_size=file.size, backing_file=backing,
                      unknown_features=features & ~QED_KNOWN_FEATURES)


def ploop(file: BoundedFile) -> ImageFacts:
    sectors = int.from_bytes(file.exactly(36, 8), "little")
    return ImageFacts(format="ploop", virtual_size=sane_size(sectors * SECTOR), file_size=file.size)
