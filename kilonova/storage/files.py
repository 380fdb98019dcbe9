"""The files of a pool: where they are, and what can be read from them.

    volumes/ID.qcow2, volumes/ID.raw        a volume; a pool may hold both when its format was changed
    snapshots/VOLUME.SNAPSHOT.raw           a snapshot of a raw volume; those of a qcow2 are inside it
    ....part                                what is being made; it is renamed when it is complete
    daemon/                                 control socket, number and log of the daemon
    nbd.sock                                where guests connect, unless the pool listens on an address
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from kilonova.domain.errors import VolumeNotFound
from kilonova.imaging import qcow2
from kilonova.imaging.facts import BoundedFile
from kilonova.storage.pool import GIB, Volume, VolumeSnapshot

Format = Literal["raw", "qcow2"]
FORMATS: tuple[Format, ...] = ("qcow2", "raw")
PART = ".part"
SECTOR = 512


class VolumeFile(msgspec.Struct, frozen=True):
    """The file of a volume. format: raw or qcow2."""

    volume_id: str
    path: Path
    format: Format


class PoolFiles:
    """The directory of a pool. It blocks, for as long as a look at a directory takes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._volumes = directory / "volumes"
        self._snapshots = directory / "snapshots"

    def prepare(self) -> None:
        """Make the directories. Guests pass through the first, to the socket."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711)
        for each in (self._volumes, self._snapshots):
            each.mkdir(exist_ok=True)
            each.chmod(0o700)

    def remove_parts(self) -> None:
        """Remove what was being made when the service ended."""
        for directory in (self._volumes, self._snapshots):
            for part in directory.glob(f"*{PART}"):
                part.unlink(missing_ok=True)

    def new_volume(self, volume_id: str, format_: Format) -> VolumeFile:
        """Where a volume is to be."""
        return VolumeFile(volume_id, self._volumes / f"{checked(volume_id)}.{format_}", format_)

    def find(self, volume_id: str) -> VolumeFile | None:
        candidates = (self.new_volume(volume_id, format_) for format_ in FORMATS)
        return next((each for each in candidates if each.path.exists()), None)

    def volume(self, volume_id: str) -> VolumeFile:
        """Raises VolumeNotFound."""
        found = self.find(volume_id)
        if found is None:
            raise VolumeNotFound(volume_id)
        return found

    def snapshot(self, volume_id: str, snapshot_id: str) -> Path:
        """Where a snapshot of a raw volume is, or is to be."""
        return self._snapshots / f"{checked(volume_id)}.{checked(snapshot_id)}.raw"

    def snapshots(self, volume: VolumeFile) -> list[VolumeSnapshot]:
        """The snapshots of a volume, without copies that are being read."""
        if volume.format == "raw":
            files = sorted(self._snapshots.glob(f"{volume.volume_id}.*.raw"), key=lambda each: each.stat().st_mtime)
            found = [(path.name.split(".")[1], path.stat().st_size) for path in files]
        else:
            found = [(name, size) for name, size in internal_snapshots(volume.path) if is_id(name)]
        return [VolumeSnapshot(id=name, size=size // GIB) for name, size in found]

    def volumes(self) -> Iterator[Volume]:
        """All that are there."""
        for path in sorted(self._volumes.iterdir()):
            volume_id, _, format_ = path.name.partition(".")
            for known in FORMATS:
                if format_ == known:
                    with contextlib.suppress(FileNotFoundError):  # it, or a snapshot of it, was deleted just now
                        yield self._described(VolumeFile(volume_id, path, known))

    def _described(self, volume: VolumeFile) -> Volume:
        snapshots = self.snapshots(volume)
        files = [volume.path]
        if volume.format == "raw":
            files += [self.snapshot(volume.volume_id, each.id) for each in snapshots]
        return Volume(
            id=volume.volume_id, size=virtual_size(volume) // GIB,
            allocated=sum(each.stat().st_blocks * SECTOR for each in files), snapshots=tuple(snapshots),
        )


def virtual_size(volume: VolumeFile) -> int:
    """Bytes that a guest sees."""
    if volume.format == "raw":
        return volume.path.stat().st_size
    with BoundedFile(volume.path) as file:
        return qcow2.parse(file).virtual_size


def internal_snapshots(path: Path) -> list[tuple[str, int]]:
    """Names and sizes (bytes) of what is inside a qcow2."""
    with BoundedFile(path) as file:
        return qcow2.snapshots(file)


def part_of(path: Path) -> Path:
    """What a file is called while it is being made."""
    return path.with_name(path.name + PART)


def settle(part: Path, path: Path) -> None:
    """Give a complete file its name, so that it is there, whole, after a power loss."""
    _sync(part)
    part.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_id(text: str) -> bool:
    """Whether it is a UUID in its usual form."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def checked(text: str) -> str:
    """An id. Ids become names of files, so they must not be anything else. Raises ValueError."""
    if not is_id(text):
        raise ValueError(f"{text!r} is not a UUID in its usual form")
    return text
