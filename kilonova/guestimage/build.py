"""Making the guest image, or taking it from the cache."""

from __future__ import annotations

import enum
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kilonova.guestimage import packages
from kilonova.guestimage.disk import make_disk
from kilonova.guestimage.initramfs import archive, guest_tree
from kilonova.guestimage.kernel import FULL_MODULES, MINIMAL_MODULES, read_kernel


class Variant(enum.StrEnum):
    """What the guest is able to do."""

    FULL = "full"
    """All buses, SSH server, guest agent. Needs 96 MiB of memory."""
    TINY = "tiny"
    """virtio block and network only, no SSH server or agent. Needs 80 MiB of memory."""


def default_cache() -> Path:
    """Where finished images are kept: below XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kilonova" / "guest-image"


def build(path: Path, *, variant: Variant = Variant.FULL, cache: Path | None = None) -> Path:
    """Put a bootable qcow2 at `path` and return it.

    The image is the same as long as the packages it is made of and this package's recipe are; it is then
    copied from the cache. Safe to call from several processes at once.

    Raises:
        KilonovaError: the packages cannot be downloaded, or a program is missing.
    """
    cache = cache or default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _locked(cache / "lock"):
        names, content = _ingredients(cache)
        image = cache / f"{variant}-{_digest(content, variant)}.qcow2"
        if not image.exists():
            _discard(cache, f"{variant}-*.qcow2", "making-*")
            _make(image, names, variant)
        try:
            shutil.copyfile(image, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def _discard(cache: Path, *patterns: str) -> None:
    """Remove what an older recipe or a killed process has left. The lock is held: nobody is using it."""
    for stale in (path for pattern in patterns for path in cache.glob(pattern)):
        if stale.is_dir():
            shutil.rmtree(stale)
        else:
            stale.unlink()


class _Ingredients(msgspec.Struct, frozen=True):
    names: list[str]
    content: list[packages.Package]


def _ingredients(cache: Path) -> tuple[list[str], list[packages.Package]]:
    """Package names and exact files, remembered for as long as the machine's package lists stay the same."""
    recipe = _digest([], "")
    remembered = cache / f"packages-{packages.lists_fingerprint()[:16]}-{recipe}.json"
    if remembered.exists():
        known = msgspec.json.decode(remembered.read_bytes(), type=_Ingredients)
    else:
        _discard(cache, "packages-*")
        names = packages.required()
        known = _Ingredients(names, packages.resolve(names))
        partial = remembered.with_suffix(".partial")
        partial.write_bytes(msgspec.json.encode(known))
        partial.replace(remembered)
    return known.names, known.content


def _digest(content: list[packages.Package], variant: str) -> str:
    """Of all that decides the image: the packages' checksums and every file of this recipe."""
    digest = hashlib.sha256(variant.encode())
    for package in content:
        digest.update(f"{package.file} {package.digest}\n".encode())
    here = Path(__file__).parent
    for source in sorted(here.rglob("*")):
        if source.is_file() and "__pycache__" not in source.parts:
            digest.update(source.relative_to(here).as_posix().encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _make(image: Path, names: list[str], variant: Variant) -> None:
    with tempfile.TemporaryDirectory(prefix="making-", dir=image.parent) as directory:
        work = Path(directory)
        unpacked = work / "unpacked"
        packages.unpack(names, work / "downloads", unpacked)
        full = variant is Variant.FULL
        kernel = read_kernel(unpacked, FULL_MODULES if full else MINIMAL_MODULES)
        initrd = archive(guest_tree(unpacked, kernel, services=full))
        finished = work / image.name
        make_disk(unpacked, kernel.image, initrd, work, finished)
        finished.replace(image)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held while images are made; the kernel drops it when the process ends, however it ends."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
