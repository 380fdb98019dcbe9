"""What qemu-img does with the disks of guests. Errors are those of `kilonova.imaging.qemu_img`."""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.imaging.qemu_img import KEY, KEY_ITERATIONS, NAMES, escaped, run, run_blocking

FLATTEN_SECONDS = 4 * 3600
"""Processor time that copying the disk of a guest may take."""
CREATE_SECONDS, CONVERT_SECONDS = 10, 600
"""Processor time."""
ENCRYPTED = ("-o", f"encrypt.format=luks,encrypt.key-secret=key,encrypt.{KEY_ITERATIONS}")


def create_overlay(path: Path, backing: str, backing_format: str, size: int, *, key: str | None = None) -> None:
    """Make an empty qcow2 that reads through to `backing`. The backing file is not opened.

    Args:
        backing: path relative to the overlay. size: bytes the guest sees. key: what is written there is encrypted.
    """
    options = [] if key is None else [*KEY, *ENCRYPTED]
    run_blocking(
        "create", "-q", *options, "-f", "qcow2", "-u", "-b", backing, "-F", backing_format, str(path), str(size),
        cpu_seconds=CREATE_SECONDS, key=key,
    )


def create_empty(path: Path, size: int) -> None:
    """Make an empty qcow2 that depends on no other file. size: bytes the guest sees."""
    run_blocking("create", "-q", "-f", "qcow2", str(path), str(size), cpu_seconds=CREATE_SECONDS)


def resize(path: Path, size: int, *, key: str | None = None) -> None:
    """Make a qcow2 larger. size: bytes the guest sees. key: of one that is encrypted."""
    if key is None:
        run_blocking("resize", "-q", "-f", "qcow2", str(path), str(size), cpu_seconds=CREATE_SECONDS)
        return
    file = f"file.driver=file,file.filename={escaped(path)}"
    options = f"driver=qcow2,encrypt.format=luks,encrypt.key-secret=key,{file}"
    run_blocking("resize", "-q", *KEY, "--image-opts", options, str(size), cpu_seconds=CREATE_SECONDS, key=key)


def encrypt(source: Path, target: Path, key: str) -> None:
    """Copy a raw disk into an encrypted qcow2."""
    run_blocking(
        "convert", "-q", *KEY, "-f", "raw", "-O", "qcow2", *ENCRYPTED, str(source), str(target),
        cpu_seconds=CONVERT_SECONDS, key=key,
    )


def convert_to_qcow2(source: Path, source_format: str, target: Path) -> None:
    """Copy an image that has been inspected into a qcow2.

    Raises:
        InvalidInput: qemu-img cannot read it within its limits.
    """
    name = NAMES.get(source_format, source_format)
    try:
        run_blocking("convert", "-q", "-f", name, "-O", "qcow2", str(source), str(target), cpu_seconds=CONVERT_SECONDS)
    except KilonovaError as error:
        raise InvalidInput(f"The {source_format} image cannot be converted: {error.message}") from error


async def flatten(source: Path, target: Path) -> None:
    """Copy a guest's qcow2 and all that it reads through to into one qcow2 that depends on no other file.

    The guest must be off. Cancelling it ends the copy.
    """
    await run("convert", "-q", "-f", "qcow2", "-O", "qcow2", str(source), str(target), cpu_seconds=FLATTEN_SECONDS)
