"""The agent role: one hypervisor host. It reaches no database but its own, and on the bus only its own subjects."""

from __future__ import annotations

from contextlib import AsyncExitStack

from kilonova.config import Config
from kilonova.db import upgrade
from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import NotSupported
from kilonova.embedded.schema import HOST
from kilonova.metrics.measures import Metrics
from kilonova.roles import assembly, separate, watching
from kilonova.roles.assembly import Progress
from kilonova.roles.running import take_directory


async def start(config: Config, stack: AsyncExitStack, progress: Progress) -> None:
    """Returns when the host serves, or soon after if no conductor answers yet. The stack stops it.

    Raises:
        NotSupported: a driver that needs the services of the installation in its own process.
    """
    if config.agent.driver != "fake":
        raise NotSupported(
            f"An agent with the driver {config.agent.driver} cannot run apart yet.",
            hint="run `kilonova up` on this machine, or set agent.driver to fake",
        )
    clock, directory = SystemClock(), config.directory
    take_directory(directory, stack)
    journal = Database.open(f"sqlite:///{directory}/agent.db")
    stack.push_async_callback(journal.close)
    await upgrade.ensure(journal, HOST)
    bus = await separate.bus(config, stack)
    metrics = Metrics()
    watching.trace(config, stack, "agent")
    await watching.serve(config, stack, metrics, None)
    for host, driver in assembly.fake_hosts(config, directory, clock).items():
        progress("agent", f"serve {host}")
        agent = assembly.agent(config, host, driver, bus, journal, clock, metrics)
        await agent.start()
        stack.push_async_callback(agent.close)
