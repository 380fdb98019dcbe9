"""The api role: every API, and the embedded services."""

from __future__ import annotations

from contextlib import AsyncExitStack

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.roles import credentials, embedded, separate, watching
from kilonova.roles.assembly import Progress, Wakes
from kilonova.roles.running import announce, public_url, take_directory
from kilonova.roles.web import Prefixes, WebServer
from kilonova.services.image_calls import ImageCalls
from kilonova.services.network_calls import NetworkCalls
from kilonova.services.volume_calls import VolumeCalls


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Returns when it serves. The stack stops it."""
    directory = config.directory
    take_directory(directory, stack)
    made = credentials.installation(directory)
    prefixes = Prefixes()
    web = WebServer(prefixes, config.api.listen, config.api.port)
    web.open()
    stack.push_async_callback(web.close)
    progress("database", "open")
    ground = await separate.ground(config, SystemClock(), stack)
    watching.trace(config, stack, "api")
    await watching.serve(config, stack, ground.metrics, ground)
    wakes = Wakes(ground.bus)
    services = await embedded.start(ground, wakes, made, public_url(config), stack, progress)
    for calls in (
        NetworkCalls(services.networks, ground.bus), ImageCalls(services.images, ground.bus),
        VolumeCalls(services.volume_calls, ground.bus),
    ):
        await calls.start()
        stack.push_async_callback(calls.close)
    progress("api", "listen")
    await embedded.serve(ground, services, wakes, prefixes, web, stack)
    announce(config, made, stack)
