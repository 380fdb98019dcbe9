"""Disks of another size for a guest, beside which the old ones are kept until somebody decides between them.

The old files are renamed and the new ones made as copies of them, each of which appears whole; so whatever was cut
off can be repeated, and taking it back is renaming again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import qemu_img
from kilonova.hypervisor.libvirt.files import NO_SPACE, flush, remove_partials, whole
from kilonova.hypervisor.libvirt.images import FICLONE
from kilonova.imaging import qcow2
from kilonova.imaging.facts import BoundedFile

MIB, GIB = 1 << 20, 1 << 30
ROOT, SWAP, UEFI = "disk", "disk.swap", "uefi-variables.fd"
BLANK = ("disk.ephemeral*", SWAP)
"""Patterns of the names of blank disks."""
CHUNK = 64 << 20
"""Bytes that are copied with one call."""


def resize(
    directory: Path, old: Guest, new: Guest, *, keep: str, owner: tuple[int, int] | None, key: str | None
) -> None:
    """Keep the files of the old shape and make those that the new one shares with it. What only the new one has is
    left to whoever makes disks.

    Args:
        key: of encrypted disks; whether they are does not change.

    Raises:
        InvalidInput: a disk would become smaller. TryElsewhere: no space. NotFound: the guest's disks are missing.
    """
    if not directory.exists():
        raise NotFound(f"Instance {old.uuid} has no disks on this host.")
    remove_partials(directory)
    for stale in directory.glob("*.kept-*"):
        if not stale.name.endswith(f".kept-{keep}"):  # of a confirm whose clean-up failed
            stale.unlink(missing_ok=True)
    _require_growth(directory, old, new, keep)
    for name in (*_of_shape(old), UEFI):
        file, kept = directory / name, _kept(directory, name, keep)
        if not kept.exists() and file.exists():
            file.rename(kept)
            flush(directory)
        copied = kept.exists() and not file.exists() and (name != SWAP or _sizes(new).get(SWAP) == _sizes(old)[SWAP])
        if copied:
            with whole(file, owner=owner) as partial:
                _copy(kept, partial)
                _grow(partial, name, new, key)


def restore(directory: Path, old: Guest, *, keep: str) -> None:
    """Put the kept files back; nothing kept, and no directory, is fine."""
    if not directory.exists():
        return
    remove_partials(directory)
    shape = _of_shape(old)
    for name in (*shape, UEFI):
        kept = _kept(directory, name, keep)
        if kept.exists():
            kept.replace(directory / name)
    for pattern in BLANK:
        for path in list(directory.glob(pattern)):
            if ".kept-" not in path.name and path.name not in shape:
                path.unlink(missing_ok=True)
    flush(directory)


def drop(directory: Path, *, keep: str) -> None:
    """Remove the kept files; none is fine."""
    for kept in directory.glob(f"*.kept-{keep}"):
        kept.unlink(missing_ok=True)


def _kept(directory: Path, name: str, keep: str) -> Path:
    return directory / f"{name}.kept-{keep}"


def _of_shape(guest: Guest) -> list[str]:
    return [*([ROOT] if guest.image is not None else []), *_sizes(guest)]


def _sizes(guest: Guest) -> dict[str, int]:
    """Bytes of its blank disks, by the names of their files."""
    return {f"disk.{disk.name}": disk.mib * MIB for disk in guest.blank_disks}


def _require_growth(directory: Path, old: Guest, new: Guest, keep: str) -> None:
    """Spec: MIG-66."""
    if old.image is not None:
        kept = _kept(directory, ROOT, keep)
        root = kept if kept.exists() else directory / ROOT
        if not root.exists():
            raise NotFound(f"The root disk of instance {old.uuid} is missing on this host.")
        current = _virtual_size(root)
        if new.root_gib and new.root_gib * GIB < current:
            raise InvalidInput(
                f"Resize error: the root disk cannot be made smaller ({current} bytes to {new.root_gib} GiB)."
            )
    before, after = _sizes(old), _sizes(new)
    smaller = [name for name, size in before.items() if name != SWAP and after.get(name, 0) < size]
    if smaller or sum(after.get(name, 0) for name in before if name != SWAP) > new.ephemeral_gib * GIB:
        raise InvalidInput(
            "Resize error: the ephemeral disk cannot be made smaller "
            f"({old.ephemeral_gib} GiB to {new.ephemeral_gib} GiB)."
        )


def _grow(path: Path, name: str, new: Guest, key: str | None) -> None:
    if name in (UEFI, SWAP):
        return
    size = new.root_gib * GIB if name == ROOT else _sizes(new)[name]
    if name == ROOT or key is not None:
        if size > _virtual_size(path):
            qemu_img.resize(path, size, key=key)
    else:
        os.truncate(path, size)


def _virtual_size(path: Path) -> int:
    with BoundedFile(path) as file:
        return qcow2.parse(file).virtual_size


def _copy(source: Path, target: Path) -> None:
    """Share the blocks where the file system can; else copy what is not a hole."""
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        except OSError as error:
            if error.errno in NO_SPACE:
                raise
            _copy_data(reading.fileno(), writing.fileno())


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.truncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.copy_file_range(source, target, min(end - at, CHUNK), at, at)
