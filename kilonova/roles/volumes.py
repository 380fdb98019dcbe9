"""The volume service of an installation: the embedded one where there are storage pools, or Cinder."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from kilonova.cells.registry import Cells
from kilonova.config import Config
from kilonova.db import block_devices
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InstanceNotFound, InstanceNotReady, InvalidInput, Retryable, VolumeNotAttached
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.volume.client import VolumeClient
from kilonova.embedded.volume.operations.environment import VolumeKeys
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.engine.operation import Tx
from kilonova.engine.submit import Busy
from kilonova.hypervisor.libvirt.account import guest_group
from kilonova.operations import swap_volume
from kilonova.roles import assembly, credentials
from kilonova.roles.assembly import Ground, Wakes
from kilonova.services.cinder import cinder
from kilonova.services.no_volumes import no_volumes
from kilonova.services.volumes import VolumeService
from kilonova.storage.directory import DirectoryPool
from kilonova.storage.options import VOLUMES

DIRECTORY = "volume-service"
"""Of the service's own files, in the data directory: backups, and data on their way."""

PASSABLE = 0o711
"""Permissions of the directory of the pools, which guests pass as another user on their way to sockets."""

Deliver = Callable[..., Awaitable[None]]


class Servers:
    """The compute service of this installation, as its volume service asks it.

    Args:
        wake: the cell of that name has work. deliver: takes events of servers.
    """

    def __init__(self, cells: Cells, clock: Clock, wake: Callable[[str], None], deliver: Deliver) -> None:
        self._cells = cells
        self._clock = clock
        self._wake = wake
        self._deliver = deliver

    async def tell(self, event: str, server: str, *, volume: str, status: str = "completed") -> None:
        await self._deliver(event, server, tag=volume, status=status)

    async def swap_volume(self, server: str, old: str, new: str) -> None:
        located = await self._cells.locate(server)
        if located.cell is None:
            raise InstanceNotReady(server)
        now, wanted = self._clock.now(), swap_volume.SwapVolume(old, new)
        try:
            await located.cell.database.write(
                lambda conn: swap_volume.ask(Tx(conn, now), located.instance, wanted)
            )
        except Busy as error:
            raise Retryable(error.message) from error
        self._wake(located.cell.name)

    async def holds(self, server: str, volume: str, attachment: str) -> bool:
        try:
            located = await self._cells.locate(server)
            if located.cell is None:
                return False
            device = await located.cell.database.read(lambda conn: block_devices.of_volume(conn, server, volume))
        except (InstanceNotFound, VolumeNotAttached):
            return False
        return device.attachment_id == attachment


async def start(
    ground: Ground, wakes: Wakes, images: EmbeddedImage, deliver: Deliver, stack: AsyncExitStack
) -> EmbeddedVolumes | None:
    """Start the service, if pools are configured; the stack stops it. deliver: takes events of servers."""
    config = ground.config
    if not config.pools:
        return None
    host = assembly.own_host(config)
    if not all(one.directory for one in config.pools):
        (config.directory / VOLUMES).mkdir(exist_ok=True)
        (config.directory / VOLUMES).chmod(PASSABLE)
    group = guest_group() if config.agent.driver == "libvirt" else None
    pools = {
        f"{host}@{one.name}#{one.name}": DirectoryPool(one.within(config.directory), ground.clock, group=group)
        for one in config.pools
    }
    service = EmbeddedVolumes(
        ground.api, pools, config.directory / DIRECTORY, ground.clock, images,
        Servers(ground.cells, ground.clock, wakes.cell, deliver),
        VolumeKeys(credentials.secrets_key(config.directory)), default_type=config.volume.default_volume_type,
    )
    stack.push_async_callback(service.close)
    await service.start()
    return service


def calls(config: Config, service: EmbeddedVolumes | None) -> VolumeService:
    """The volume service as the compute service calls it.

    Raises:
        InvalidInput: two are configured, or the options of Cinder are wrong.
    """
    if not config.volume_service.endpoint:
        return VolumeClient(service) if service is not None else no_volumes()
    if service is not None:
        raise InvalidInput(
            "Both volume_service.endpoint and [[volume.pool]] are configured; servers take volumes of one volume "
            "service.", hint="remove one of them",
        )
    return cinder(config.volume_service)
