"""Image data on the disk: received into a file of its own, hashed on the way, and shown only when complete.

Three directories on one file system:

- `partial`: data that is arriving; nothing here survives a restart;
- `staged`: data that waits for its import, by image id;
- `data`: data of images, by image id, complete and flushed to the disk.

Files get from one to the next by renaming or linking, never by copying. The record in the database decides
which of them mean anything: `sweep` removes the others.

Spec: EMG-02, EMG-03, EMG-28, EMG-33.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec
import structlog

from kilonova.domain.trail import Threads
from kilonova.embedded.image.errors import TooLarge

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

CHUNK = 1 << 20
"""Bytes written, hashed and read at a time."""

OUT_OF_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Received(msgspec.Struct, frozen=True):
    """Data that is complete on the disk. md5, sha512: hex digests of it."""

    path: Path
    size: int
    md5: str
    sha512: str


class Incoming:
    """A file being written. Its methods block, and are safe against each other from several threads.

    Args:
        limit: bytes it may have. keep_free: bytes that must stay free on the disk.
    """

    def __init__(self, path: Path, limit: int, keep_free: int) -> None:
        self._path = path
        self._limit = limit
        self._keep_free = keep_free
        self._lock = threading.Lock()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0

    def write(self, data: bytes | bytearray) -> None:
        """Append.

        Raises:
            TooLarge: a limit is exceeded or the disk is full. ValueError: it was finished or discarded.
        """
        with self._lock:
            if self._fd is None:
                raise ValueError("the file is closed")
            self.size += len(data)
            if self.size > self._limit:
                raise TooLarge(f"The data exceeds the limit of {self._limit} bytes.")
            self._check_space(self._fd)
            with _space_errors():
                _write_all(self._fd, data)
            self._md5.update(data)
            self._sha512.update(data)

    def _check_space(self, fd: int) -> None:
        disk = os.fstatvfs(fd)
        if disk.f_bavail * disk.f_frsize - CHUNK < self._keep_free:
            raise TooLarge("There is not enough space left for image data.", hint="free space or add a disk")

    def finish(self) -> Received:
        """Flush it to the disk. Raises TooLarge when the disk turns out to be full."""
        with self._lock:
            if self._fd is None:
                raise ValueError("the file is closed")
            with _space_errors():
                os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
        return Received(self._path, self.size, self._md5.hexdigest(), self._sha512.hexdigest())

    def discard(self) -> None:
        """Close and remove it, unless it has been moved elsewhere."""
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        self._path.unlink(missing_ok=True)


class ImageFiles:
    """The directories and the threads that work in them.

    Args:
        directory: private to one process. keep_free: see `Incoming`.
    """

    def __init__(self, directory: Path, keep_free: int) -> None:
        self._root = directory
        self._keep_free = keep_free
        self._threads = Threads(4, "image-data")
        self._partial, self._staged, self._data = (directory / name for name in ("partial", "staged", "data"))

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: fn(*args, **kwargs))

    def close(self) -> None:
        self._threads.shutdown()

    def prepare(self) -> None:
        """Make the directories and remove what was arriving when the last process ended."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for directory in (self._partial, self._staged, self._data):
            directory.mkdir(exist_ok=True, mode=0o700)
        _remove(list(self._partial.iterdir()))

    def sweep(self, *, with_data: Set[str], staged: Set[str]) -> None:
        """Remove the data of all images but these."""
        _remove([path for path in self._data.iterdir() if path.name not in with_data])
        _remove([path for path in self._staged.iterdir() if path.name not in staged])
        for image_id in with_data:
            if not self.data(image_id).exists():
                log.error("image data is missing", image=image_id, path=str(self.data(image_id)))

    def all_staged(self) -> set[str]:
        """Ids of the images with staged data."""
        return {path.name for path in self._staged.iterdir()}

    def data(self, image_id: str) -> Path:
        return self._data / image_id

    def staged(self, image_id: str) -> Path:
        return self._staged / image_id

    def incoming(self, limit: int) -> Incoming:
        return Incoming(self._partial / str(uuid.uuid4()), limit, self._keep_free)

    def stage(self, received: Received, image_id: str) -> None:
        """Keep received data until it is imported."""
        received.path.rename(self.staged(image_id))
        _flush(self._staged)

    def publish(self, received: Received, image_id: str) -> None:
        """Make it the data of the image. What was staged stays staged: until the record says that the image is
        active, an interrupted import must be able to begin again."""
        link = self._partial / str(uuid.uuid4())
        link.hardlink_to(received.path)
        link.rename(self.data(image_id))
        _flush(self._data)

    def forget(self, image_id: str) -> None:
        """Remove all data of an image."""
        for path in (self.data(image_id), self.staged(image_id)):
            path.unlink(missing_ok=True)

    def digest(self, path: Path, stopped: threading.Event) -> Received:
        """Hash a complete file. Raises InterruptedError once `stopped` is set."""
        md5, sha512, size = hashlib.md5(usedforsecurity=False), hashlib.sha512(), 0
        with path.open("rb", buffering=0) as file:
            while data := file.read(CHUNK):
                if stopped.is_set():
                    raise InterruptedError
                md5.update(data)
                sha512.update(data)
                size += len(data)
        return Received(path, size, md5.hexdigest(), sha512.hexdigest())


def _write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


@contextlib.contextmanager
def _space_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise TooLarge("There is no space left for image data.", hint="free space or add a disk") from error
        raise


def _remove(paths: list[Path]) -> None:
    for path in paths:
        log.info("removing image data that belongs to no image", path=str(path))
        path.unlink(missing_ok=True)


def _flush(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
