"""Tell what a disk-image file is and refuse what must not be used, reading it as the hostile input it is.

Programs that guess a format can be led: a raw disk whose guest wrote a qcow2 header into its first sector
becomes, for a guesser, an image backed by any file of the host. So a format is declared, never guessed, and
this module checks that the file is what the declaration says and names no other file.

Spec: EMG-22.
"""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.errors import InvalidInput
from kilonova.imaging import foreign, qcow2
from kilonova.imaging.facts import BoundedFile, ImageFacts

__all__ = ["ImageFacts", "check", "inspect"]

RAW_CONTENTS = frozenset({"raw", "gpt", "mbr", "luks", "iso"})
"""What may lie in a file of plain bytes."""

ACCEPTED: dict[str, frozenset[str]] = {
    "raw": RAW_CONTENTS,
    "ami": RAW_CONTENTS,
    "ari": RAW_CONTENTS,
    "aki": RAW_CONTENTS,
    "iso": frozenset({"iso"}),
    "gpt": frozenset({"gpt", "mbr"}),
    "qcow2": frozenset({"qcow2"}),
    "vmdk": frozenset({"vmdk"}),
    "vdi": frozenset({"vdi"}),
    "vhd": frozenset({"vhd"}),
    "vhdx": frozenset({"vhdx"}),
    "ploop": frozenset({"ploop"}),
}
"""The formats found that each declared format allows."""

PREFIX = 4608
"""Bytes: the first sectors, and the second one of a disk with sectors of 4096 bytes."""

ISO_OFFSET = 0x8001
ISO_MAGICS = (b"CD001", b"BEA01")
LUKS_MAGIC = b"LUKS\xba\xbe"


def inspect(path: Path) -> ImageFacts:
    """What the file is. Reads a bounded part of it.

    Raises:
        InvalidInput: it begins like a known format but its headers are damaged or absurd.
        OSError: it cannot be read.
    """
    with BoundedFile(path) as file:
        prefix = file.read(0, PREFIX)
        return _by_magic(file, prefix) or _by_contents(file, prefix)


def check(path: Path, declared_format: str, max_virtual_bytes: int | None = None) -> ImageFacts:
    """Inspect a file and make sure that it may be used as what it is declared to be.

    Args:
        declared_format: the disk_format of the image.
        max_virtual_bytes: bytes that the guest may see at most; None for no limit.

    Raises:
        InvalidInput: the format differs, the image depends on another file, is encrypted, is damaged, needs
            features that are not known, or is too large. Spec: EMG-22.
        OSError: it cannot be read.
    """
    accepted = ACCEPTED.get(declared_format)
    if accepted is None:
        raise InvalidInput(f"Images of format {declared_format!r} are not supported.")
    facts = inspect(path)
    if facts.format not in accepted:
        raise InvalidInput(
            f"The image is declared as {declared_format} but its contents are {facts.format}.",
            hint="set disk_format to what the file is",
        )
    if facts.backing_file is not None:
        raise InvalidInput(f"The image depends on a backing file ({facts.backing_file!r}).",
                           hint="flatten it with qemu-img convert")
    if facts.data_file is not None:
        raise InvalidInput(f"The image keeps its data in another file ({facts.data_file!r}).",
                           hint="make a self-contained one with qemu-img convert")
    if facts.unknown_features:
        raise InvalidInput(f"The {facts.format} image needs unknown features ({facts.unknown_features:#x}).")
    if facts.encrypted:
        raise InvalidInput(f"The {facts.format} image is encrypted, which is not supported.")
    if facts.corrupt:
        raise InvalidInput(f"The {facts.format} image is marked corrupt.",
                           hint="repair it with qemu-img check -r")
    if max_virtual_bytes is not None and facts.virtual_size > max_virtual_bytes:
        raise InvalidInput(
            f"The virtual size of the image, {facts.virtual_size} bytes, exceeds the limit of"
            f" {max_virtual_bytes} bytes."
        )
    return facts


def _by_magic(file: BoundedFile, prefix: bytes) -> ImageFacts | None:
    """The formats that a program would recognise by a signature within the first sector."""
    if prefix.startswith(qcow2.MAGIC):
        return qcow2.parse(file)
    if prefix.startswith(foreign.QED_MAGIC):
        return foreign.qed(file)
    if prefix.startswith(foreign.VMDK_MAGIC):
        return foreign.vmdk(file)
    if prefix.startswith(foreign.VMDK_ESX_MAGIC):
        return foreign.vmdk_esx(file)
    if prefix.lstrip().startswith(foreign.VMDK_DESCRIPTOR):
        return foreign.vmdk_text(file)
    if prefix.startswith(foreign.VHDX_MAGIC):
        return foreign.vhdx(file)
    if prefix.startswith(foreign.VHD_MAGIC):
        return foreign.vhd(file, prefix[:foreign.VHD_FOOTER])
    if prefix.startswith(foreign.PLOOP_MAGICS):
        return foreign.ploop(file)
    if prefix.startswith(foreign.VDI_MAGIC, foreign.VDI_MAGIC_OFFSET):
        return foreign.vdi(file)
    return None


def _by_contents(file: BoundedFile, prefix: bytes) -> ImageFacts:
    """Plain bytes, or a VHD of fixed size, which is plain bytes with a footer."""
    footer = file.read(file.size - foreign.VHD_FOOTER, foreign.VHD_FOOTER)
    if footer.startswith(foreign.VHD_MAGIC):
        return foreign.vhd(file, footer)
    return ImageFacts(format=_contents(file, prefix), virtual_size=file.size, file_size=file.size)


def _contents(file: BoundedFile, prefix: bytes) -> str:
    if prefix.startswith(LUKS_MAGIC):
        return "luks"
    if file.read(ISO_OFFSET, 5) in ISO_MAGICS:
        return "iso"
    if prefix[510:512] != b"\x55\xaa":
        return "raw"
    if prefix.startswith(b"EFI PART", 512) or prefix.startswith(b"EFI PART", 4096):
        return "gpt"
    entries = [prefix[start:start + 16] for start in range(446, 510, 16)]
    # A file system's boot sector ends in the same two bytes; a partition table also has sane entries.
    if all(entry[0] in (0, 0x80) for entry in entries) and any(entry[4] for entry in entries):
        return "mbr"
    return "raw"
