"""qemu-img with limits: what it reads comes from users and may be made to exhaust the host."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from pathlib import Path

from kilonova.domain.errors import InvalidInput, KilonovaError, TryElsewhere

ADDRESS_SPACE = 2 << 30
"""Bytes of address space that one qemu-img may use: the stacks of its up to 64 threads take 512 MiB."""
ONE_ARENA = "MALLOC_ARENA_MAX=1"
"""Otherwise the C library sets aside another 64 MiB for each thread, as many as run at the same time (mallopt(3))."""
FLATTEN_SECONDS = 4 * 3600
"""Processor time that copying the disk of a guest may take."""
CREATE_SECONDS, CONVERT_SECONDS = 10, 600
"""Processor time; the time on the wall may be this many times more:"""
PATIENCE = 6
KEY = ("--object", "secret,id=key,file=/dev/stdin")
ENCRYPTED = ("-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10")
"""A key is random, so that nothing is won by making it slow to derive another from it (milliseconds)."""
NAMES = {"vhd": "vpc"}
"""Formats that qemu-img knows by another name than the image service."""


def create_overlay(path: Path, backing: str, backing_format: str, size: int, *, key: str | None = None) -> None:
    """Make an empty qcow2 that reads through to `backing`. The backing file is not opened.

    Args:
        backing: path relative to the overlay. size: bytes the guest sees. key: what is written there is encrypted.
    """
    options = [] if key is None else [*KEY, *ENCRYPTED]
    _run(
        ["create", "-q", *options, "-f", "qcow2", "-u", "-b", backing, "-F", backing_format, str(path), str(size)],
        CREATE_SECONDS, key=key,
    )


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 that depends on no other file. size: bytes the guest sees."""
    _run(["create", "-q", "-f", "qcow2", str(path), str(size)], CREATE_SECONDS)


def resize(path: Path, size: int, *, key: str | None = None) -> None:
    """Make a qcow2 larger. size: bytes the guest sees. key: of one that is encrypted."""
    if key is None:
        _run(["resize", "-q", "-f", "qcow2", str(path), str(size)], CREATE_SECONDS)
        return
    name = str(path).replace(",", ",,")
    options = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,file.driver=file,file.filename={name}"
    _run(["resize", "-q", *KEY, "--image-opts", options, str(size)], CREATE_SECONDS, key=key)


def encrypt(source: Path, target: Path, key: str) -> None:
    """Copy a raw disk into an encrypted qcow2."""
    _run(
        ["convert", "-q", *KEY, "-f", "raw", "-O", "qcow2", *ENCRYPTED, str(source), str(target)], CONVERT_SECONDS,
        key=key,
    )


def convert_to_qcow2(source: Path, source_format: str, target: Path) -> None:
    """Copy an image that has been inspected into a qcow2.

    Raises:
        InvalidInput: qemu-img cannot read it within its limits.
    """
    name = NAMES.get(source_format, source_format)
    try:
        _run(["convert", "-q", "-f", name, "-O", "qcow2", str(source), str(target)], CONVERT_SECONDS)
    except TryElsewhere:
        raise
    except KilonovaError as error:
        raise InvalidInput(f"The {source_format} image cannot be converted: {error.message}") from error


async def flatten(source: Path, target: Path) -> None:
    """Copy a guest's qcow2 and all that it reads through to into one qcow2 that depends on no other file.

    The guest must be off. Cancelling it ends the copy.

    Raises:
        TryElsewhere: no space. KilonovaError: qemu-img failed.
    """
    arguments = ["convert", "-q", "-f", "qcow2", "-O", "qcow2", str(source), str(target)]
    try:
        running = await asyncio.create_subprocess_exec(
            *_limits(FLATTEN_SECONDS), "qemu-img", *arguments, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise _not_installed(error) from error
    try:
        _, said = await running.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.wait()
        raise
    if running.returncode:
        raise _failure(arguments[0], said.decode("utf-8", "replace"), running.returncode)


def _run(arguments: list[str], cpu_seconds: int, *, key: str | None = None) -> None:
    try:
        ended = subprocess.run(
            [*_limits(cpu_seconds), "qemu-img", *arguments], input=key or "", capture_output=True, text=True,
            timeout=cpu_seconds * PATIENCE, check=False,
        )
    except FileNotFoundError as error:
        raise _not_installed(error) from error
    except subprocess.TimeoutExpired as error:
        raise KilonovaError(f"qemu-img {arguments[0]} took longer than {error.timeout:.0f} s.") from error
    if ended.returncode != 0:
        raise _failure(arguments[0], ended.stderr, ended.returncode)


def _limits(cpu_seconds: int) -> list[str]:
    return ["env", ONE_ARENA, "prlimit", f"--as={ADDRESS_SPACE}", f"--cpu={cpu_seconds}", "--core=0", "--"]


def _not_installed(error: FileNotFoundError) -> KilonovaError:
    return KilonovaError(f"{error.filename} is not installed.", hint="install it (Debian: util-linux qemu-utils)")


def _failure(what: str, said: str, status: int) -> KilonovaError:
    said = said.strip().removeprefix("qemu-img: ")
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return TryElsewhere("This host has no disk space left.", hint="free some, or disable the host")
    return KilonovaError(f"qemu-img {what} failed: {said or f'it ended with {status}'}.")
