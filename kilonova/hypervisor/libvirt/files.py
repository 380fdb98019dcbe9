"""Writing files whole or not at all, and durably."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from kilonova.domain.errors import TryElsewhere

T = TypeVar("T")

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


async def finished(work: asyncio.Future[T]) -> T:
    """The result of work in a thread. Who is cancelled waits until it has ended: nothing is written behind his back."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise


@contextmanager
def whole(path: Path, *, mode: int = 0o600, owner: tuple[int, int] | None = None) -> Iterator[Path]:
    """Give a temporary path next to `path`; when the block ends well, its file is on disk as `path`.

    Whatever happens, the temporary file is gone afterwards.

    Args:
        mode: permissions. owner: user and group numbers the file is given to.

    Raises:
        TryElsewhere: the disk is full.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with room():
            yield partial
            partial.chmod(mode)
            if owner is not None:
                os.chown(partial, *owner)
            flush(partial)
            partial.replace(path)
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def room() -> Iterator[None]:
    """Turn a full disk into what the scheduler understands."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise TryElsewhere(
                "This host has no disk space left.", hint="free some, or disable the host"
            ) from error
        raise


def flush(path: Path) -> None:
    """Wait until a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(directory: Path) -> None:
    """Remove what a process that was killed left half written in a directory."""
    for partial in directory.glob(".*.partial"):
        partial.unlink(missing_ok=True)
