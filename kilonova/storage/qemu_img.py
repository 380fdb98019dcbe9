"""qemu-img beside the daemon: it makes and copies files, within limits, and ends when this process does."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import msgspec

from kilonova.domain.errors import InvalidInput, KilonovaError, StoragePoolFull

LIMITS = ("env", "MALLOC_ARENA_MAX=1", "setpriv", "--pdeathsig", "KILL", "prlimit", f"--as={2 << 30}", "--core=0", "--")
"""Address space in bytes: what is read may come from users."""
KEY = ("--object", "secret,id=key,file=/dev/stdin")
NAMES = {"vhd": "vpc", "ploop": "parallels", "gpt": "raw", "mbr": "raw", "iso": "raw", "luks": "raw"}
"""Formats that an inspection finds, and qemu-img knows by another name."""


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
    """pool: named in errors."""

    def __init__(self, pool: str) -> None:
        self._pool = pool

    async def create(self, path: Path, format_: str, size: int) -> None:
        """An empty one. size: bytes."""
        await self._run("create", "-q", "-f", format_, str(path), str(size))

    async def create_luks(self, path: Path, key: str) -> None:
        """A LUKS container in a raw file, without room for data yet.

        Keys are random, so that nothing is won by making it slow to derive another from one (milliseconds).
        """
        options = "key-secret=key,iter-time=10"
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
        options = f"driver={target.format},file.driver=file,file.filename={_escaped(target.path)}"
        extra: tuple[str, ...] = ()
        if target.key is not None:
            inner = f"file.driver={target.format},file.file.driver=file,file.file.filename={_escaped(target.path)}"
            options, extra = f"driver=luks,key-secret=key,{inner}", KEY
        elif target.zero:
            extra = ("--target-is-zero",)
        await self._run(
            "convert", "-q", "-n", *extra, *_from(source), "--target-image-opts", str(source.path), options,
            key=target.key,
        )

    async def _run(self, what: str, *arguments: str, key: str | None = None) -> None:
        try:
            running = await asyncio.create_subprocess_exec(
                *LIMITS, "qemu-img", what, *arguments, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            raise KilonovaError(
                f"{error.filename} is not installed.", hint="install it (Debian: util-linux qemu-utils)"
            ) from error
        try:
            _, said = await running.communicate((key or "").encode())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                running.kill()
            await running.wait()
            raise
        if running.returncode:
            raise self._failure(what, said.decode("utf-8", "replace").strip(), running.returncode)

    def _failure(self, what: str, said: str, status: int) -> KilonovaError:
        said = said.removeprefix("qemu-img: ")
        if "No space left on device" in said or "Disk quota exceeded" in said:
            return StoragePoolFull(self._pool)
        if "output file is smaller than input file" in said:
            return InvalidInput("The virtual size of the image exceeds what the volume has beside its header.")
        if "Invalid password, cannot unlock any keyslot" in said:
            return InvalidInput("The passphrase does not open the volume.")
        return KilonovaError(f"qemu-img {what} failed: {said or f'it ended with {status}'}.")


def _from(source: Readable) -> list[str]:
    arguments = ["-f", NAMES.get(source.format, source.format)]
    if source.shared:
        arguments.append("-U")
    if source.snapshot:
        arguments += ["-l", f"snapshot.name={source.snapshot}"]
    return arguments


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")
