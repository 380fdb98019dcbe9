"""The scheduler role: chooses hosts for new servers. Several may run beside each other."""

from __future__ import annotations

from contextlib import AsyncExitStack

from kilonova.config import Config
from kilonova.domain.clock import SystemClock
from kilonova.roles import assembly, separate, watching
from kilonova.roles.assembly import Progress, Wakes


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Returns when it places. The stack stops it."""
    progress("database", "open")
    ground = await separate.ground(config, SystemClock(), stack)
    watching.trace(config, stack, "scheduler")
    await watching.serve(config, stack, ground.metrics, ground)
    scheduler = assembly.scheduler(ground, assembly.placing(ground), Wakes(ground.bus), alone=False)
    await scheduler.start()
    stack.push_async_callback(scheduler.close)
