"""The embedded volume service of an installation that has storage pools."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from kilonova.domain.errors import NotSupported
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.volume.operations.environment import VolumeKeys
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.roles import assembly, credentials
from kilonova.roles.assembly import Ground
from kilonova.storage.directory import DirectoryPool

DIRECTORY = "volume-service"
"""Of the service's own files, in the data directory: backups, and data on their way."""

Deliver = Callable[..., Awaitable[None]]


class Servers:
    """The compute service of this installation, whose servers do not take volumes yet."""

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver

    async def tell(self, event: str, server: str, *, volume: str, status: str = "completed") -> None:
        await self._deliver(event, server, tag=volume, status=status)

    async def swap_volume(self, server: str, old: str, new: str) -> None:
        raise NotSupported(f"Server {server} cannot swap volume {old} for {new}: servers do not take volumes yet.")

    async def holds(self, server: str, volume: str, attachment: str) -> bool:
        return False


async def start(
    ground: Ground, images: EmbeddedImage, deliver: Deliver, stack: AsyncExitStack
) -> EmbeddedVolumes | None:
    """Start the service, if pools are configured; the stack stops it. deliver: takes events of servers."""
    config = ground.config
    if not config.volume.pool:
        return None
    host = assembly.own_host(config)
    pools = {f"{host}@{one.name}#{one.name}": DirectoryPool(one.within(config.directory), ground.clock)
             for one in config.volume.pool}
    service = EmbeddedVolumes(
        ground.api, pools, config.directory / DIRECTORY, ground.clock, images, Servers(deliver),
        VolumeKeys(credentials.secrets_key(config.directory)),
    )
    stack.push_async_callback(service.close)
    await service.start()
    return service
