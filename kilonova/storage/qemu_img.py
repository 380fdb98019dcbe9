"""What qemu-img does beside the daemon of a pool: it makes and copies files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kilonova.domain.errors import InvalidInput, StoragePoolFull
from kilonova.imaging.qemu_img import KEY, KEY_ITERATIONS, NAMES, NoSpaceLeft, QemuImgFailed, escaped, run

MEANINGS = {
    "output file is smaller than input file":
        "The virtual size of the image exceeds what the volume has beside its header.",
    "Invalid password, cannot unlock any keyslot": "The passphrase does not open the volume.",
}
"""What it says when the fault is the caller's."""


class Readable(msgspec.Struct, frozen=True):
    """A file to copy from. snapshot: the one inside it to read, "" for none. shared: others may be writing to it."""

    path: Path
    format: str
    snapshot: str = ""
    shared: bool = False


class Writable(msgspec.Struct, frozen=True):
    """A file that is there, to copy into. key: it is a LUKS container that opens with this. zero: it holds nothing."""

    path: Path
    format: str
    key: str | None = None
    zero: bool = False


class QemuImg:
    """pool: named in errors. They are those of `kilonova.imaging.qemu_img`, but StoragePoolFull without space, and
    InvalidInput for an image that is too large or a passphrase that is wrong."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    async def create(self, path: Path, format_: str, size: int) -> None:
        """An empty one. size: bytes."""
        await self._run("create", "-q", "-f", format_, str(path), str(size))

    async def create_luks(self, path: Path, key: str) -> None:
        """A LUKS container in a raw file, without room for data yet."""
        options = f"key-secret=key,{KEY_ITERATIONS}"
        await self._run("create", "-q", *KEY, "-f", "luks", "-o", options, str(path), "0", key=key)

    async def resize(self, path: Path, format_: str, size: int) -> None:
        """Make it larger. size: bytes."""
        await self._run("resize", "-q", "-f", format_, str(path), str(size))

    async def revert(self, path: Path, snapshot: str) -> None:
        """Give a qcow2 the data and the size of a snapshot inside it."""
        await self._run("snapshot", "-q", "-a", snapshot, str(path))

    async def copy(self, source: Readable, target: Path, format_: str) -> None:
        """Make a file of the data of another."""
        await self._run("convert", "-q", *_from(source), "-O", format_, str(source.path), str(target))

    async def copy_into(self, source: Readable, target: Writable) -> None:
        """Write the data of a file to the beginning of another."""
        options = f"driver={target.format},file.driver=file,file.filename={escaped(target.path)}"
        extra: tuple[str, ...] = ()
        if target.key is not None:
            inner = f"file.driver={target.format},file.file.driver=file,file.file.filename={escaped(target.path)}"
            options, extra = f"driver=luks,key-secret=key,{inner}", KEY
        elif target.zero:
            extra = ("--target-is-zero",)
        await self._run(
            "convert", "-q", "-n", *extra, *_from(source), "--target-image-opts", str(source.path), options,
            key=target.key,
        )

    async def _run(self, command: str, *arguments: str, key: str | None = None) -> None:
        try:
            await run(command, *arguments, key=key)
        except NoSpaceLeft as error:
            raise StoragePoolFull(self._pool) from error
        except QemuImgFailed as error:
            for said, meaning in MEANINGS.items():
                if said in error.said:
                    raise InvalidInput(meaning) from error
            raise


def _from(source: Readable) -> list[str]:
    arguments = ["-f", NAMES.get(source.format, source.format)]
    if source.shared:
        arguments.append("-U")
    if source.snapshot:
        arguments += ["-l", f"snapshot.name={source.snapshot}"]
    return arguments
