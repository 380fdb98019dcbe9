"""Removing an installation from its machine: guests, network devices, data."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import ImageNotFound, KilonovaError
from kilonova.domain.image import Image
from kilonova.roles import assembly, credentials
from kilonova.roles.assembly import Progress
from kilonova.roles.volumes import DIRECTORY as VOLUME_SERVICE
from kilonova.services.secrets import NoSecrets
from kilonova.storage.directory import DirectoryPool
from kilonova.storage.options import VOLUMES, PoolOptions

OWN = (
    "kilonova.db*", "agent.db*", "images", "guests", "libvirt", "network", "fake", VOLUMES, VOLUME_SERVICE,
    "token-keys", "secrets.key", "clouds.yaml", "openrc", "state.json", "kilonova.log", "installation.json",
    "kilonova.pid",
)
"""What an installation keeps in its directory; what users put there (`kilonova.toml`) is left."""


class _NoImages:
    """Nothing is built while an installation is removed."""

    async def show(self, context: RequestContext | None, image_id: str) -> Image:
        raise ImageNotFound(image_id)

    async def data(self, image_id: str) -> AsyncIterator[bytes]:
        nothing: tuple[bytes, ...] = ()
        for chunk in nothing:
            yield chunk

    def local_path(self, image_id: str) -> Path | None:
        return None


async def purge(config: Config, progress: Progress) -> list[str]:
    """Remove an installation that does not run. May be repeated after a failure.

    Returns:
        Names of files in its directory that are not its own and were left.

    Raises:
        KilonovaError: it runs, is none, or something cannot be removed.
    """
    directory = config.directory
    if not (directory / "installation.json").exists():
        raise KilonovaError(f"{directory} holds no installation.", hint="name another --data-dir")
    made = credentials.installation(directory)
    with (directory / "kilonova.pid").open("a") as lock:
        _hold(lock, directory)
        if (directory / "guests").exists():
            progress("guests", "remove")
            await _remove_guests(config, made)
        for pool in _pools(config):
            progress("volumes", f"end the daemon of pool {pool.name}")
            await DirectoryPool(pool, SystemClock()).stop()
        if (directory / "network").exists():
            progress("network", "remove")
            await _remove_network(config, made)
        progress("data", "remove")
        return await asyncio.to_thread(_remove_data, directory)


def _pools(config: Config) -> list[PoolOptions]:
    """Those that have begun, of those that are configured, and of those in the data directory that were once: their
    daemons end only when told to."""
    found = {one.directory: one for one in (pool.within(config.directory) for pool in config.pools)}
    for path in (config.directory / VOLUMES).glob("*/"):
        found.setdefault(str(path), PoolOptions(name=path.name, directory=str(path)))
    return [one for directory, one in sorted(found.items()) if Path(directory).exists()]


def _hold(lock: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise KilonovaError(f"The installation in {directory} is running.", hint="`kilonova down` stops it") from error


async def _remove_guests(config: Config, made: credentials.Installation) -> None:
    from kilonova.hypervisor.libvirt.daemon import PrivateDaemon, SystemDaemon
    from kilonova.hypervisor.libvirt.driver import LibvirtDriver

    data = config.directory / "guests"
    private = PrivateDaemon(config.directory / "libvirt", data, SystemClock())
    daemon = SystemDaemon(config.agent.libvirt_uri) if config.agent.libvirt_uri else private
    driver = LibvirtDriver(
        data, daemon, _NoImages(), SystemClock(), installation=made.id, secrets=NoSecrets(),
        signatures=assembly.signatures(config, SystemClock()),
    )
    await driver.start(lambda _event: None)
    try:
        for guest in await driver.guests():
            await driver.destroy(guest.uuid)
        for uuid in await driver.disks():
            await driver.delete_disks(uuid)
    finally:
        await driver.close()
    if daemon is private:
        await private.stop()


async def _remove_network(config: Config, made: credentials.Installation) -> None:
    from kilonova.embedded.network.linux.wiring import LinuxWiring

    directory = config.directory / "network"
    wiring = LinuxWiring(made.token, directory, SystemClock(), assembly.own_host(config), {})
    await wiring.start(lambda _port, _up: None, None)
    try:
        await wiring.remove_all()
    finally:
        await wiring.close()


def _remove_data(directory: Path) -> list[str]:
    for pattern in OWN:
        for path in directory.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    left = sorted(path.name for path in directory.iterdir())
    if not left:
        directory.rmdir()
    return left
