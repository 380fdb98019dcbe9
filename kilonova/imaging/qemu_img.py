"""qemu-img within limits: what it reads may come from users and be made to exhaust the host.

It ends when this process does. Errors of both calls:

    NoSpaceLeft     where it writes; it is an OSError, as it is for who writes himself
    QemuImgFailed   it ended otherwise than it should
    KilonovaError   it is not installed, with a hint
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kilonova.domain.errors import KilonovaError

ADDRESS_SPACE = 2 << 30
"""Bytes of address space that one may use: the stacks of its up to 64 threads take 512 MiB."""
ONE_ARENA = "MALLOC_ARENA_MAX=1"
"""Otherwise the C library sets aside another 64 MiB for each thread, as many as run at the same time (mallopt(3))."""
PATIENCE = 6
"""How many times its processor time `run_blocking` may take on the wall."""
KEY = ("--object", "secret,id=key,file=/dev/stdin")
"""Arguments by which other ones can name the passphrase that it is given as `key`."""
KEY_ITERATIONS = "iter-time=10"
"""Of a LUKS header. Keys are random, so that nothing is won by making it slow to derive another (milliseconds)."""
NAMES = {"vhd": "vpc", "ploop": "parallels", "gpt": "raw", "mbr": "raw", "iso": "raw", "luks": "raw"}
"""Formats that qemu-img knows by another name than the image service and an inspection do."""
FULL = ("No space left on device", "Disk quota exceeded")


class NoSpaceLeft(OSError):
    def __init__(self) -> None:
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC))


class QemuImgFailed(KilonovaError):
    """It ended with an error. said: its own words."""

    def __init__(self, command: str, said: str) -> None:
        super().__init__(f"qemu-img {command} failed: {said}.")
        self.said = said


async def run(command: str, *arguments: str, key: str | None = None, cpu_seconds: int | None = None) -> None:
    """Run one. Cancelling this ends it.

    Args:
        key: a passphrase. cpu_seconds: processor time that it may take, None for any.
    """
    with _readable(key or "") as stdin:
        try:
            running = await asyncio.create_subprocess_exec(
                *_limits(cpu_seconds), "qemu-img", command, *arguments, stdin=stdin,
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
    _check(command, running.returncode or 0, said)


def run_blocking(command: str, *arguments: str, key: str | None = None, cpu_seconds: int) -> None:
    """Run one that does not take long. Arguments as of `run`. Raises KilonovaError: it takes too long."""
    try:
        ended = subprocess.run(
            [*_limits(cpu_seconds), "qemu-img", command, *arguments], input=(key or "").encode(), capture_output=True,
            timeout=cpu_seconds * PATIENCE, check=False,
        )
    except FileNotFoundError as error:
        raise _not_installed(error) from error
    except subprocess.TimeoutExpired as error:
        raise KilonovaError(f"qemu-img {command} took longer than {error.timeout:.0f} s.") from error
    _check(command, ended.returncode, ended.stderr)


@contextlib.contextmanager
def _readable(text: str) -> Iterator[int]:
    """The end of a pipe that this short text can be read from; nobody has to write meanwhile. What event loops
    make for the input of a program may be a socket, which it cannot open as /dev/stdin."""
    reader, writer = os.pipe()
    try:
        os.write(writer, text.encode())
        os.close(writer)
        yield reader
    finally:
        os.close(reader)


def escaped(path: Path) -> str:
    """A path within an argument that is a list of options."""
    return str(path).replace(",", ",,")


def _limits(cpu_seconds: int | None) -> list[str]:
    cpu = [] if cpu_seconds is None else [f"--cpu={cpu_seconds}"]
    return ["env", ONE_ARENA, "setpriv", "--pdeathsig", "KILL", "prlimit", f"--as={ADDRESS_SPACE}", *cpu, "--core=0",
            "--"]


def _not_installed(error: FileNotFoundError) -> KilonovaError:
    return KilonovaError(f"{error.filename} is not installed.", hint="install it (Debian: util-linux qemu-utils)")


def _check(command: str, status: int, output: bytes) -> None:
    if status == 0:
        return
    said = output.decode("utf-8", "replace").strip().removeprefix("qemu-img: ")
    if any(part in said for part in FULL):
        raise NoSpaceLeft
    raise QemuImgFailed(command, said or f"it ended with {status}")
