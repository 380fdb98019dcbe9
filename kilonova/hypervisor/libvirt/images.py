"""The cache of base images: each is fetched once, inspected, and then only read.

Guests' disks are overlays of these files. An image is immutable, so its id is the whole key; unless it has to be
signed: a file whose signature was verified carries the signature's fingerprint in its name, so that one that was
fetched without that, or for another signature, is never taken for it.

Spec: IMC-07, IMC-12, EMG-22.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from kilonova.domain.errors import InvalidInput, Retryable, TryElsewhere
from kilonova.domain.image import Image
from kilonova.hypervisor.libvirt import qemu_img
from kilonova.hypervisor.libvirt.files import finished, remove_partials, room, whole
from kilonova.imaging.inspect import check
from kilonova.imaging.signatures import ImageSignatures, Signature
from kilonova.services.image import ImageSource

T = TypeVar("T")

ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
FICLONE = 0x40049409
CHUNK = 1 << 20
"""Bytes that are gathered before a thread is asked to write them."""
PARALLEL_FETCHES = 4
RAW = frozenset({"raw", "ami", "ari", "aki", "iso"})
"""Formats that are the disk's bytes as they are."""


@dataclass(frozen=True)
class BaseImage:
    """An image in the cache. virtual_size: bytes the guest sees."""

    path: Path
    format: Literal["qcow2", "raw"]
    virtual_size: int


class ImageCache:
    """Base images in one directory.

    Args:
        signatures: which images must be signed. workers: threads for the file work.
    """

    def __init__(self, directory: Path, images: ImageSource, signatures: ImageSignatures, workers: Executor) -> None:
        self._directory = directory
        self._images = images
        self._signatures = signatures
        self._workers = workers
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._fetches = asyncio.Semaphore(PARALLEL_FETCHES)
        self._ageing = asyncio.Lock()
        self._users: Counter[str] = Counter()
        self._used_meanwhile: set[str] = set()

    def prepare(self) -> None:
        """Make the directory; forget what a killed process had half fetched."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)
        remove_partials(self._directory)

    async def find(self, image_id: str) -> Image:
        """Describe an image. Raises ImageNotFound."""
        return await self._images.show(None, image_id)

    async def get(self, image: Image, max_virtual_bytes: int | None, trusted: Sequence[str] = ()) -> BaseImage:
        """The image, fetched if it is not here yet.

        Args:
            max_virtual_bytes: what the guest's disk can hold; None for any size.
            trusted: ids of the certificates that may vouch for it; none for what the host demands of all images.

        Its time of change tells when it was last asked for.

        Raises:
            InvalidInput: it is not what it claims, depends on another file, is too large for the disk, or is not
                signed as it has to be.
            TryElsewhere: no space here. Retryable: it did not arrive whole.
        """
        if not ID.fullmatch(image.id):
            raise InvalidInput(f"{image.id!r} is not an image id.")
        signature = await self._run(self._signatures.demanded, image, trusted)
        form: Literal["qcow2", "raw"] = "raw" if image.disk_format in RAW else "qcow2"
        verified = f".{signature.fingerprint}" if signature is not None else ""
        path = self._directory / f"{image.id}{verified}.{form}"
        async with self._locked(image.id):
            await self._have(image, path, signature)
            await self._run(os.utime, path)
        declared = image.disk_format if image.disk_format in RAW else "qcow2"
        facts = await self._run(check, path, declared, max_virtual_bytes)
        return BaseImage(path, form, facts.virtual_size)

    @asynccontextmanager
    async def using(
        self, image: Image, max_virtual_bytes: int | None, trusted: Sequence[str] = ()
    ) -> AsyncIterator[BaseImage]:
        """The same, for as long as it takes to make a disk of it: it is not removed meanwhile."""
        self._users[image.id] += 1
        self._used_meanwhile.add(image.id)
        try:
            yield await self.get(image, max_virtual_bytes, trusted)
        finally:
            self._users[image.id] -= 1

    async def fetch(self, image: Image) -> bool:
        """Have an image here. Returns whether it had to be fetched. Raises as `get`."""
        before = await self._run(self._files)
        async with self.using(image, None) as base:
            return base.path not in before

    async def age(self, in_use: Callable[[], set[str]], *, now: float, minimum_age: float) -> list[str]:
        """Remove what nobody uses and nobody has used or fetched for a while; returns ids.

        Args:
            in_use: names of the files that disks are made of, called in a thread. Those of disks that are being made
                now need not be among them. now, minimum_age: seconds.

        Spec: IMC-04, IMC-07.
        """
        removed = []
        async with self._ageing:
            self._used_meanwhile = {id_ for id_, users in self._users.items() if users}
            self._users += Counter()  # forgets those without users
            used = await self._run(in_use)
            for path in await self._run(self._files):
                image_id = _image_of(path)
                async with self._locked(image_id):
                    young = await self._run(_used_at, path) > now - minimum_age
                    if not (young or path.name in used or image_id in self._used_meanwhile):
                        await self._run(path.unlink)
                        removed.append(image_id)
        return removed

    def _files(self) -> list[Path]:
        return sorted(path for path in self._directory.iterdir() if path.suffix in (".raw", ".qcow2") and ID.fullmatch(
            _image_of(path)))

    async def _have(self, image: Image, path: Path, signature: Signature | None) -> None:
        if not await self._run(path.exists):
            async with self._fetches:
                await self._fetch(image, path, signature)

    @asynccontextmanager
    async def _locked(self, image_id: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(image_id, (asyncio.Lock(), 0))
        self._locks[image_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(image_id)
            if users > 1:
                self._locks[image_id] = (lock, users - 1)

    async def _fetch(self, image: Image, path: Path, signature: Signature | None) -> None:
        """What arrives is not looked into before its signature is verified."""
        await self._run(self._require_space, image.size)
        converted = image.disk_format not in RAW and image.disk_format != "qcow2"
        async with AsyncExitStack() as stack:
            partial = stack.enter_context(whole(path, mode=0o644))
            source = partial
            if converted:
                source = partial.with_suffix(".source.partial")
                stack.callback(source.unlink, missing_ok=True)
            local = self._images.local_path(image.id)
            if local is not None:
                await self._run(copy, local, source)
            else:
                await self._download(image, source)
            if signature is not None:
                await self._run(signature.verify, source)
            await self._run(check, source, image.disk_format, None)
            if converted:
                await self._run(qemu_img.convert_to_qcow2, source, image.disk_format, partial)

    async def _download(self, image: Image, target: Path) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        written = 0
        pending = bytearray()

        def store(data: bytes) -> None:
            digest.update(data)
            file.write(data)

        with room(), target.open("wb") as file:
            async for chunk in self._images.data(image.id):
                pending += chunk
                if len(pending) >= CHUNK:
                    written += len(pending)
                    await self._run(store, bytes(pending))
                    pending.clear()
            written += len(pending)
            await self._run(store, bytes(pending))
        damaged = image.checksum is not None and digest.hexdigest() != image.checksum
        if damaged or (image.size and written != image.size):
            raise Retryable(f"Image {image.id} did not arrive whole ({written} of {image.size} bytes).")

    def _require_space(self, size: int) -> None:
        status = os.statvfs(self._directory)
        if status.f_bavail * status.f_frsize < size:
            raise TryElsewhere("This host has no disk space for the image.", hint="free some, or disable the host")

    async def _run(self, fn: Callable[..., T], *arguments: object) -> T:
        return await finished(asyncio.get_running_loop().run_in_executor(self._workers, fn, *arguments))


def _image_of(path: Path) -> str:
    return path.name.partition(".")[0]


def _used_at(path: Path) -> float:
    return path.stat().st_mtime


def copy(source: Path, target: Path) -> None:
    """Share the blocks where the file system can, else copy."""
    with room(), source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        except OSError:
            shutil.copyfileobj(reading, writing, CHUNK)
