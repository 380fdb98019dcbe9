"""The files of each guest: one directory per instance, in which every file appears whole."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import subprocess
import uuid as uuids
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.image import Image
from kilonova.hypervisor.guest import BesideDisks, Guest
from kilonova.hypervisor.libvirt import beside_disks, console, kept_disks, qemu_img, replacement
from kilonova.hypervisor.libvirt.daemon import SEARCH_PATH, Daemon
from kilonova.hypervisor.libvirt.description import GuestFiles, domain_name
from kilonova.hypervisor.libvirt.direct_boot import boot_files
from kilonova.hypervisor.libvirt.files import finished, remove_partials, whole
from kilonova.hypervisor.libvirt.images import BaseImage, ImageCache, copy
from kilonova.imaging import qcow2
from kilonova.imaging.inspect import inspect
from kilonova.metadata.configdrive import build_iso
from kilonova.metadata.vendor_data import VendorData
from kilonova.shapes.blank_disks import USUAL_FILE_SYSTEM, BlankDisk
from kilonova.shapes.kernel import PLAIN

log = structlog.get_logger(__name__)

T = TypeVar("T")

MIB, GIB = 1 << 20, 1 << 30
FORMAT_LIMIT = 300.0
"""Seconds that making a file system may take."""
BLANK = "disk"
"""What the names of the files of blank disks begin with."""
CONSOLE_LOG = "console.log"
RESCUE, RESCUE_CONFIG, RESCUE_UEFI = "disk.rescue", "disk.rescue.config", "uefi-variables.rescue.fd"
RESCUE_FILES = (RESCUE, RESCUE_CONFIG, RESCUE_UEFI, "kernel.rescue", "ramdisk.rescue")
CONSOLE_SOCKET = "console.sock"


class GuestDisks:
    """The guests' files below `directory/instances`, and the images they are made from."""

    def __init__(
        self, directory: Path, daemon: Daemon, cache: ImageCache, workers: Executor, vendor: VendorData
    ) -> None:
        self._directory = directory / "instances"
        self._daemon = daemon
        self._cache = cache
        self._workers = workers
        self._vendor = vendor

    def make_directories(self) -> None:
        """Make the directories."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)
        self._cache.prepare()

    def of(self, uuid: str) -> Path:
        """The directory of an instance. Raises InvalidInput for what is not a UUID."""
        try:
            return self._directory / str(uuids.UUID(uuid))
        except ValueError as error:
            raise InvalidInput(f"{uuid!r} is not an instance UUID.") from error

    def names_for_qemu(self, uuid: str) -> GuestFiles:
        """Where QEMU finds the files of an instance."""
        seen = self._daemon.guest_path(self.of(uuid))
        return GuestFiles(
            root=seen / "disk", blank=seen / BLANK, config_drive=seen / "disk.config",
            console_log=seen / CONSOLE_LOG, console_socket=seen / CONSOLE_SOCKET,
            uefi_variables=seen / "uefi-variables.fd", rescue=seen / RESCUE, rescue_config_drive=seen / RESCUE_CONFIG,
            rescue_uefi_variables=seen / RESCUE_UEFI,
        )

    async def create(self, guest: Guest, *, key: str | None) -> None:
        """Make what is missing. The config drive is made anew, since its contents may have changed.

        Args:
            key: what the disks are encrypted with, None for not at all.
        """
        await self._make(guest, "", key)

    async def prepare(self, guest: Guest, *, keep_ephemeral: bool, key: str | None) -> None:
        """Make new disks beside those that are there. What an earlier attempt prepared is removed first."""
        await self._run(replacement.drop_prepared, self.of(guest.uuid))
        if keep_ephemeral:
            guest = msgspec.structs.replace(guest, ephemeral_gib=0, swap_mib=0, block_devices=())
        await self._make(guest, replacement.PREPARED, key)

    async def replace(self, guest: Guest, *, key: str | None) -> None:
        """Put the prepared disks in their place and the others aside, then make what is missing."""
        await self._run(replacement.put_in_place, self.of(guest.uuid))
        await self.create(guest, key=key)

    async def restore(self, uuid: str) -> None:
        """Put the disks that were put aside back."""
        await self._run(replacement.put_back, self.of(uuid))

    async def drop_old(self, uuid: str) -> None:
        """Remove the disks that were put aside."""
        await self._run(replacement.drop_old, self.of(uuid))

    async def has_old(self, uuid: str) -> bool:
        """Whether disks were put aside."""
        return await self._run((self.of(uuid) / replacement.OLD).is_dir)

    async def prepare_rescue(self, guest: Guest) -> None:
        """Make a rescue disk of the size of its image, and a config drive that goes with it."""
        assert guest.rescue is not None
        await self.drop_rescue(guest.uuid)
        directory = self.of(guest.uuid)
        await self._run(self._make_directory, directory)
        async with self._cache.using(guest.rescue, None, guest.trusted_certs) as base:
            await self._run(self._overlay, directory / RESCUE, base, base.virtual_size, None)
        if guest.config_drive:
            await self._config_drive(guest, directory / RESCUE_CONFIG)
        for making in self._boot_files(guest):
            await making

    async def has_rescue(self, uuid: str) -> bool:
        """Whether there are files of a rescue."""
        directory = self.of(uuid)
        return await self._run(lambda: any((directory / name).exists() for name in RESCUE_FILES))

    async def drop_rescue(self, uuid: str) -> None:
        """Remove the files of a rescue; none is fine."""
        for name in RESCUE_FILES:
            await self._run(functools.partial((self.of(uuid) / name).unlink, missing_ok=True))

    async def _make(self, guest: Guest, prefix: str, key: str | None) -> None:
        directory = self.of(guest.uuid)
        await self._run(self._make_directory, directory)
        making = self._boot_files(guest, prefix)
        if guest.config_drive:
            making.append(self._config_drive(guest, directory / f"{prefix}disk.config"))
        if guest.image is not None:
            making.append(self._root(guest, directory / f"{prefix}disk", key))
        for disk in guest.blank_disks:
            path = directory / f"{prefix}{BLANK}.{disk.name}"
            making.append(self._run(self._blank, path, functools.partial(_make_blank, guest, disk), key))
        # All are awaited before the first error is told, so that none goes on writing behind the caller's back.
        for result in await asyncio.gather(*making, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    def _boot_files(self, guest: Guest, prefix: str = "") -> list[Awaitable[None]]:
        """The work of fetching what the guest boots directly."""
        boots = boot_files(guest)
        directory = self.of(guest.uuid)
        names = boots.names if boots is not None else {}
        return [
            self._boot_file(image, directory / f"{prefix}{name}", guest.trusted_certs) for name, image in names.items()
        ]

    async def _boot_file(self, image_id: str, path: Path, trusted: tuple[str, ...]) -> None:
        """A file of its own for each guest: the image may leave the cache. Raises InvalidInput, ImageNotFound."""
        if await self._run(path.exists):
            return
        image = await self._cache.find(image_id)
        if image.disk_format not in PLAIN:
            raise InvalidInput(f"Image {image_id} cannot be a kernel or ramdisk, because it is {image.disk_format}.")
        async with self._cache.using(image, None, trusted) as base:
            await self._run(self._copy, base.path, path)

    def _copy(self, source: Path, path: Path) -> None:
        with whole(path, owner=self._daemon.guest_owner) as partial:
            copy(source, partial)

    async def resize(self, old: Guest, new: Guest, *, keep: str, key: str | None) -> None:
        """Disks of the new shape; the old ones are kept. Raises as `kept_disks.resize`."""
        make = functools.partial(kept_disks.resize, keep=keep, owner=self._daemon.guest_owner, key=key)
        await self._run(make, self.of(old.uuid), old, new)
        await self.create(new, key=key)

    async def revert(self, old: Guest, *, keep: str) -> None:
        """The disks that were kept instead of those made since."""
        directory = self.of(old.uuid)
        await self._run(functools.partial(kept_disks.restore, keep=keep), directory, old)
        if old.config_drive and directory.exists():
            await self._config_drive(old, directory / "disk.config")

    async def drop_kept(self, uuid: str, *, keep: str) -> None:
        """No longer keep what was kept under that name."""
        await self._run(functools.partial(kept_disks.drop, keep=keep), self.of(uuid))

    async def beside(self) -> list[BesideDisks]:
        """What lies beside the disks of instances."""
        return await self._run(beside_disks.find, self._directory)

    async def tidy(self, uuid: str, *, kept: bool) -> None:
        """Remove that, but for what belongs to a rescue."""
        await self._run(functools.partial(beside_disks.drop, kept=kept), self.of(uuid))

    async def delete(self, uuid: str) -> None:
        """Remove every file of an instance; none is fine."""
        await self._run(_remove_tree, self.of(uuid))
        await self._run(_remove_tree, self._daemon.tpm_state(str(uuids.UUID(uuid))))
        for guest_log in self._daemon.guest_logs(domain_name(uuid)):
            await self._run(functools.partial(guest_log.unlink, missing_ok=True))

    async def owners(self) -> list[str]:
        """UUIDs of the instances that have files."""
        return await self._run(self._list)

    async def cache_image(self, image: Image) -> bool:
        """Fetch an image; False if it is here."""
        return await self._cache.fetch(image)

    async def age_cache(self, *, now: float, minimum_age: float) -> list[str]:
        """Remove images that no disk is made of. Raises KilonovaError: a disk cannot be read."""
        return await self._cache.age(self._bases, now=now, minimum_age=minimum_age)

    def _bases(self) -> set[str]:
        """Names of the images that the disks here are made of, those that were put aside or are kept included."""
        bases = set()
        for directory, _, names in os.walk(self._directory, onerror=_only_gone):
            bases |= {_base_of(Path(directory, name)) for name in names}
        return bases - {""}

    async def console_tail(self, uuid: str, limit: int) -> bytes:
        """Raises FileNotFoundError without a record."""
        return await self._run(console.tail, self.of(uuid) / CONSOLE_LOG, limit)

    async def trim_consoles(self) -> None:
        """Keep the records of all consoles short."""
        await self._run(self._trim)

    def _make_directory(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        directory.chmod(0o711)
        remove_partials(directory)

    async def _root(self, guest: Guest, path: Path, key: str | None) -> None:
        """A disk that exists needs its image no more, whatever has become of that."""
        assert guest.image is not None
        if await self._run(path.exists):
            return
        size = guest.root_gib * GIB
        async with self._cache.using(guest.image, size or None, guest.trusted_certs) as base:
            await self._run(self._overlay, path, base, size or base.virtual_size, key)

    def _overlay(self, path: Path, base: BaseImage, size: int, key: str | None) -> None:
        with whole(path, owner=self._daemon.guest_owner) as partial:
            # Relative, so that the directory may be found under another name.
            backing = os.path.relpath(base.path, path.parent)
            qemu_img.create_overlay(partial, backing, base.format, size, key=key)

    def _blank(self, path: Path, make: Callable[[Path], None], key: str | None) -> None:
        """A disk that holds nothing but what formats it: raw, or encrypted in a qcow2."""
        if path.exists():
            return
        with whole(path, owner=self._daemon.guest_owner) as partial:
            if key is None:
                make(partial)
                return
            plain = partial.with_name(f".{path.name}.plain.partial")
            try:
                make(plain)
                qemu_img.encrypt(plain, partial, key)
            finally:
                plain.unlink(missing_ok=True)

    async def _config_drive(self, guest: Guest, path: Path) -> None:
        vendor = await self._vendor.of(guest.metadata)

        def write() -> None:
            with whole(path, owner=self._daemon.guest_owner) as partial:
                build_iso(guest.metadata, partial, vendor=vendor)

        await self._run(write)

    def _list(self) -> list[str]:
        with_files = {entry.name for entry in self._directory.iterdir() if entry.is_dir()}
        return sorted(name for name in {*with_files, *self._daemon.tpm_owners()} if _is_uuid(name))

    def _trim(self) -> None:
        for entry in self._directory.iterdir():
            try:
                console.trim(entry / CONSOLE_LOG)
            except (FileNotFoundError, NotADirectoryError):
                continue  # never started, or just deleted
            except OSError as error:
                log.warning("a console record cannot be trimmed", path=str(entry), error=str(error))

    async def _run(self, fn: Callable[..., T], *arguments: object) -> T:
        work = functools.partial(fn, *arguments)
        return await finished(asyncio.get_running_loop().run_in_executor(self._workers, work))


def _only_gone(error: OSError) -> None:
    """Raises KilonovaError: a directory cannot be read although it is there."""
    if not isinstance(error, FileNotFoundError):
        raise KilonovaError(f"The disks of guests cannot be listed: {error}.") from error


def _base_of(path: Path) -> str:
    """Name of the file that an overlay lies over, "" for what is none. Raises KilonovaError: it cannot be told."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            if file.read(len(qcow2.MAGIC)) != qcow2.MAGIC:
                return ""
        return Path(inspect(path).backing_file or "").name
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise KilonovaError(f"Disk {path} cannot be read: {error}.") from error


def _make_blank(guest: Guest, disk: BlankDisk, path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(disk.mib * MIB)
    windows = guest.properties.get("os_type", "").lower() == "windows"
    if disk.is_swap:
        _format("mkswap", "-q", str(path))
    elif disk.format is not None or not windows:
        _format(f"mkfs.{disk.format or USUAL_FILE_SYSTEM}", "-q", "-F", "-L", disk.label, str(path))


def _format(program: str, *arguments: str) -> None:
    found = shutil.which(program, path=SEARCH_PATH)
    if found is None:
        raise KilonovaError(f"{program} is not installed.", hint="install it (Debian: e2fsprogs util-linux)")
    ended = subprocess.run(
        [found, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FORMAT_LIMIT,
        check=False,
    )
    if ended.returncode != 0:
        raise KilonovaError(f"{program} failed: {ended.stderr.strip()}.")


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():  # a file vanished while the tree was walked: libvirt removes a socket, for example
            shutil.rmtree(path)


def _is_uuid(name: str) -> bool:
    try:
        return str(uuids.UUID(name)) == name
    except ValueError:
        return False
