"""One-machine mode: every role and the embedded services in one process, on one port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from kilonova.agent.agent import Agent
from kilonova.bus.local import LocalBus
from kilonova.config import Config
from kilonova.db import upgrade
from kilonova.db.database import Database
from kilonova.domain.clock import Clock, SystemClock
from kilonova.embedded.schema import HOST
from kilonova.embedded.secrets import EmbeddedSecrets
from kilonova.hypervisor.driver import Driver
from kilonova.metadata.vendor_data import vendor_data
from kilonova.roles import assembly, credentials, embedded, watching
from kilonova.roles.assembly import Ground, Progress, Wakes
from kilonova.roles.embedded import Embedded
from kilonova.roles.running import Running, announce, public_url, take_directory
from kilonova.roles.web import Prefixes, WebServer
from kilonova.services.secrets import VolumeServiceKeys

if TYPE_CHECKING:
    from kilonova.hypervisor.libvirt.daemon import Daemon


class OneMachine:
    """A cloud in one process.

    Raises:
        KilonovaError: from `start`, telling what could not be started and what to do.
    """

    def __init__(self, config: Config, progress: Progress) -> None:
        self.config = config
        self._progress = progress
        self._directory = config.directory
        self._stack = AsyncExitStack()
        self._guests = self._directory / "guests"
        self._daemon: Daemon | None = None
        self._daemon_started: asyncio.Task[None] | None = None
        self.agents: list[Agent] = []

    async def start(self) -> Running:
        """Bring everything up; on an error what was started is stopped again."""
        try:
            return await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> Running:
        config, clock, stack = self.config, SystemClock(), self._stack
        take_directory(self._directory, stack)
        made = credentials.installation(self._directory)
        watching.trace(config, stack, "up")
        prefixes = Prefixes()
        web = WebServer(prefixes, config.api.listen, config.api.port)
        web.open()
        stack.push_async_callback(web.close)
        self._start_daemon(clock)

        self._progress("database", "open")
        api, cell = await assembly.databases(config, clock, stack)
        bus = LocalBus()
        stack.push_async_callback(bus.close)
        ground = Ground(config, clock, bus, api, cell)
        await watching.serve(config, stack, ground.metrics, ground)
        wakes = Wakes(ground.bus)
        services = await embedded.start(ground, wakes, made, public_url(config), stack, self._progress)
        placing = assembly.placing(ground)
        self._progress("conductor", "take up operations")
        conductor = assembly.conductor(
            ground, placing, services.networks, services.images, services.volume_calls, alone=True
        )
        await conductor.start()
        stack.push_async_callback(conductor.close)
        scheduler = assembly.scheduler(ground, placing, wakes, alone=True)
        await scheduler.start()
        stack.push_async_callback(scheduler.close)
        self._progress("hypervisor", f"start {config.agent.driver}")
        await self._agents(ground, services, made)
        self._progress("api", "listen")
        await embedded.serve(ground, services, wakes, prefixes, web, stack)
        return announce(config, made, stack)

    async def _agents(
        self, ground: Ground, services: Embedded, made: credentials.Installation
    ) -> None:
        journal = Database.open(f"sqlite:///{self._directory}/agent.db")
        self._stack.push_async_callback(journal.close)
        await upgrade.ensure(journal, HOST)
        drivers: Mapping[str, Driver]
        if self.config.agent.driver == "fake":
            drivers = assembly.fake_hosts(self.config, self._directory, ground.clock)
        else:
            drivers = {assembly.own_host(self.config): await self._libvirt(ground, services, made)}
        for host, one in drivers.items():
            agent = assembly.agent(
                self.config, host, one, ground.bus, journal, ground.clock, ground.metrics, services.images
            )
            self.agents.append(agent)
            await agent.start()
            self._stack.push_async_callback(agent.close)

    def _start_daemon(self, clock: Clock) -> None:
        """Begin to start libvirt's daemon, which takes longest, while the rest comes up."""
        if self.config.agent.driver == "fake":
            return
        from kilonova.hypervisor.libvirt.daemon import PrivateDaemon, SystemDaemon

        if self.config.agent.libvirt_uri:
            self._daemon = SystemDaemon(self.config.agent.libvirt_uri)
        else:
            certificates = self.config.agent.nbd_tls
            self._daemon = PrivateDaemon(
                self._directory / "libvirt", self._guests, clock, nbd_tls=Path(certificates) if certificates else None
            )
        workers = ThreadPoolExecutor(1, "libvirt-start")
        self._stack.callback(workers.shutdown, wait=False)
        self._daemon_started = asyncio.create_task(self._daemon.start(workers))
        self._stack.push_async_callback(self._give_up_daemon)

    async def _give_up_daemon(self) -> None:
        """Wait for its start no longer. What it ended with was told where it was awaited."""
        if self._daemon_started is not None:
            self._daemon_started.cancel()
            await asyncio.gather(self._daemon_started, return_exceptions=True)

    async def _libvirt(self, ground: Ground, services: Embedded, made: credentials.Installation) -> Driver:
        from kilonova.hypervisor.libvirt.cells import CpuSets
        from kilonova.hypervisor.libvirt.driver import LibvirtDriver

        assert self._daemon is not None
        assert self._daemon_started is not None
        await self._daemon_started
        return LibvirtDriver(
            self._guests, self._daemon, services.images, ground.clock, installation=made.id,
            secrets=EmbeddedSecrets(ground.cell, credentials.secrets_key(self._directory), ground.clock),
            signatures=assembly.signatures(self.config, ground.clock),
            spice=self.config.consoles.spice_enabled,
            vendor=vendor_data(self.config.vendor_data), volume_keys=VolumeServiceKeys(services.volume_calls),
            cpu_sets=CpuSets(dedicated=self.config.agent.cpu_dedicated_set, shared=self.config.agent.cpu_shared_set),
        )

    async def close(self) -> None:
        """Stop the control plane; guests keep running."""
        await self._stack.aclose()
