"""The conductor role: drives the operations of a cell. As many of them as one likes may run beside each other."""

from __future__ import annotations

from contextlib import AsyncExitStack

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.roles import assembly, separate, watching
from kilonova.roles.assembly import Progress
from kilonova.services.image_calls import RemoteImages
from kilonova.services.network_calls import RemoteNetwork
from kilonova.services.volume_calls import RemoteVolumes


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Returns when it drives. The stack stops it."""
    progress("database", "open")
    ground = await separate.ground(config, SystemClock(), stack)
    watching.trace(config, stack, "conductor")
    await watching.serve(config, stack, ground.metrics, ground)
    networks, images = RemoteNetwork(ground.bus, ground.clock), RemoteImages(ground.bus, ground.clock)
    progress("conductor", "take up operations")
    volumes = RemoteVolumes(ground.bus, ground.clock)
    conductor = assembly.conductor(ground, assembly.placing(ground), networks, images, volumes, alone=False)
    await conductor.start()
    stack.push_async_callback(conductor.close)
