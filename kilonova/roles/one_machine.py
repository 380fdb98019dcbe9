"""One-machine mode: every role and the embedded services in one process, on one port."""

from __future__ import annotations

import fcntl
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import IO

import msgspec
import structlog

from kilonova.agent.agent import Agent
from kilonova.api.compute.application import ComputeApi
from kilonova.api.compute.service_hosts import ServiceHosts
from kilonova.api.compute.stored_quotas import StoredQuotas
from kilonova.audit.auditor import Auditor
from kilonova.audit.embedded import EmbeddedDevices, EmbeddedImageData
from kilonova.bus.local import LocalBus
from kilonova.conductor.conductor import Conductor
from kilonova.config import Config
from kilonova.control.application import ControlApi
from kilonova.db import flavors, upgrade
from kilonova.db.database import Database
from kilonova.db.schema import API, CELL
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import InstanceNotFound, KilonovaError, NotFound
from kilonova.domain.operation import ExternalEvent
from kilonova.embedded.identity.service import EmbeddedIdentity
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring, Wiring
from kilonova.embedded.placement import EmbeddedPlacement
from kilonova.embedded.schema import HOST, IDENTITY, IMAGE, NETWORK
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.service import MetadataService
from kilonova.operations.guests import metadata_of
from kilonova.operations.history import History
from kilonova.roles import assembly, credentials
from kilonova.roles.assembly import Ground, Progress, Wakes
from kilonova.roles.web import Prefixes, WebServer

log = structlog.get_logger(__name__)


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A running installation, as `kilonova up --json` prints it and `state.json` keeps it."""

    auth_url: str
    compute_url: str
    image_url: str
    network_url: str
    placement_url: str
    control_url: str
    clouds_yaml: str
    openrc: str
    cloud: str
    data_dir: str
    driver: str
    pids: dict[str, int]


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
        self._lock: IO[str] | None = None
        self.agents: list[Agent] = []
        self.conductor: Conductor
        self._wiring: Wiring

    async def start(self) -> Running:
        """Bring everything up; on an error what was started is stopped again."""
        try:
            return await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> Running:
        config, clock = self.config, SystemClock()
        self._take_directory()
        made = credentials.installation(self._directory)
        url = config.api.public_url or f"http://{config.api.listen}:{config.api.port}"
        prefixes = Prefixes()
        web = WebServer(prefixes, config.api.listen, config.api.port)
        web.open()
        self._stack.push_async_callback(web.close)

        self._progress("database", "open")
        ground = await self._ground(clock)
        identity = EmbeddedIdentity(ground.api, self._directory / "token-keys", clock, url)
        self._stack.callback(identity.close)
        self._progress("identity", "prepare")
        realm = await identity.bootstrap(made.admin_password)
        auth_url = f"{url}/identity/v3"
        self._progress("image", "recover")
        images = EmbeddedImage(ground.api, self._directory / "images", clock, identity, auth_url)
        await images.recover()
        self._stack.push_async_callback(images.close)
        networks = await self._networks(ground, identity, auth_url, made, realm.admin_project_id)

        wakes = Wakes(ground.bus)
        placing = assembly.placing(ground)
        self._progress("conductor", "take up operations")
        self.conductor = assembly.conductor(ground, placing, networks, alone=True)
        await self.conductor.start()
        self._stack.push_async_callback(self.conductor.close)
        scheduler = assembly.scheduler(ground, placing, wakes, alone=True)
        await scheduler.start()
        self._stack.push_async_callback(scheduler.close)
        self._progress("hypervisor", f"start {config.agent.driver}")
        pids = await self._agents(ground, images, made)

        compute_api = ComputeApi(
            cells=ground.cells, compute=assembly.compute(ground, wakes), identity=identity, images=images,
            networks=networks, actions=History(ground.cells), clock=clock, identity_url=auth_url,
            policy_file=Path(config.api.policy_file or self._directory / "policy.yaml"),
            quotas=StoredQuotas(ground.cells), hosts=ServiceHosts(
                ground.cells, clock, service_down_time=config.scheduler.service_down_time,
                default_availability_zone=config.scheduler.default_availability_zone,
            ),
        )
        control = ControlApi(
            cells=ground.cells, identity=identity, identity_url=auth_url, clock=clock,
            auditor=self._auditor(ground, networks, wakes), down_time=config.scheduler.service_down_time,
            wake_api=wakes.api, wake_cell=wakes.cell,
        )
        prefixes.mount({
            "/control": control,
            "/identity": identity.application(),
            "/image": images.application(),
            "/network": networks.application(),
            "/placement": EmbeddedPlacement(ground.api, clock, identity=identity, identity_url=auth_url),
            "/compute": compute_api,
        })
        self._progress("api", "listen")
        await web.start()
        self._stack.push_async_callback(web.close)  # requests end before what they use is closed
        self._stack.push_async_callback(control.close)
        clouds, openrc = credentials.client_files(self._directory, made, url)
        running = Running(
            auth_url=auth_url, compute_url=f"{url}/compute/v2.1", image_url=f"{url}/image",
            network_url=f"{url}/network", placement_url=f"{url}/placement", control_url=f"{url}/control",
            clouds_yaml=str(clouds), openrc=str(openrc), cloud=credentials.CLOUD, data_dir=str(self._directory),
            driver=config.agent.driver, pids={"kilonova": os.getpid(), **pids},
        )
        credentials.write_private(self._directory / "state.json", msgspec.json.encode(running).decode())
        return running

    def _take_directory(self) -> None:
        """Only one process may use a data directory."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o711)  # guests run as another user and must reach their disks
        lock = (self._directory / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise KilonovaError(
                f"Another kilonova already runs on {self._directory}.",
                hint="`kilonova status` shows it; use another --data-dir for a second one",
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    async def _ground(self, clock: SystemClock) -> Ground:
        api = Database.open(self.config.database_url("api"), pool_size=self.config.database.pool_size)
        self._stack.push_async_callback(api.close)
        cell = api
        if self.config.database_url("cell") != self.config.database_url("api"):
            cell = Database.open(self.config.database_url("cell"), pool_size=self.config.database.pool_size)
            self._stack.push_async_callback(cell.close)
        for schema in (API, IDENTITY, IMAGE, NETWORK):
            await upgrade.ensure(api, schema)
        await upgrade.ensure(cell, CELL)
        await api.write(lambda conn: flavors.seed(conn, now=clock.now()))
        bus = LocalBus()
        self._stack.push_async_callback(bus.close)
        return Ground(self.config, clock, bus, api, cell)

    async def _networks(
        self, ground: Ground, identity: EmbeddedIdentity, auth_url: str, made: credentials.Installation, project: str
    ) -> EmbeddedNetwork:
        self._progress("network", "prepare")
        wiring: Wiring = FakeWiring()
        if self.config.agent.driver == "libvirt":
            from kilonova.embedded.network.linux.wiring import LinuxWiring

            directory = self._directory / "network"
            directory.mkdir(exist_ok=True)
            wiring = LinuxWiring(made.token, directory, ground.clock, assembly.own_host(self.config))
        self._wiring = wiring
        networks = EmbeddedNetwork(ground.api, ground.clock, identity, auth_url, wiring, self._on_network_event)

        async def lookup(instance_uuid: str) -> GuestMetadata | None:
            try:
                instance = (await ground.cells.locate(instance_uuid)).instance
            except InstanceNotFound:
                return None
            return metadata_of(instance, instance.network_info)

        await networks.bootstrap(project)
        listener = None
        if self.config.agent.driver == "libvirt":
            listener = MetadataService(networks.instance_at, lookup)
            self._stack.push_async_callback(listener.close)
        await networks.start(listener)
        self._stack.push_async_callback(networks.close)
        return networks

    def _auditor(self, ground: Ground, networks: EmbeddedNetwork, wakes: Wakes) -> Auditor:
        return Auditor(
            ground.cells, ground.bus, ground.clock, wake_api=wakes.api, wake_cell=wakes.cell, ports=networks,
            devices=EmbeddedDevices(assembly.own_host(self.config), ground.api, self._wiring),
            images=EmbeddedImageData(ground.api, self._directory / "images"),
        )

    async def _on_network_event(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        """From the embedded network service. NotFound tells it that nobody waits."""
        event = ExternalEvent(subject=instance_uuid, name=name, tag=tag, status=status)
        if not await self.conductor.deliver(event):
            raise NotFound(f"Instance {instance_uuid} awaits no event.")

    async def _agents(
        self, ground: Ground, images: EmbeddedImage, made: credentials.Installation
    ) -> dict[str, int]:
        journal = Database.open(f"sqlite:///{self._directory}/agent.db")
        self._stack.push_async_callback(journal.close)
        await upgrade.ensure(journal, HOST)
        pids: dict[str, int] = {}
        if self.config.agent.driver == "fake":
            drivers = assembly.fake_hosts(self.config, self._directory, ground.clock)
        else:
            driver, pids = await self._libvirt(ground, images, made)
            drivers = {assembly.own_host(self.config): driver}
        for host, one in drivers.items():
            agent = assembly.agent(self.config, host, one, ground.bus, journal, ground.clock)
            self.agents.append(agent)
            await agent.start()
            self._stack.push_async_callback(agent.close)
        return pids

    async def _libvirt(
        self, ground: Ground, images: EmbeddedImage, made: credentials.Installation
    ) -> tuple[Driver, dict[str, int]]:
        from kilonova.hypervisor.libvirt.daemon import Daemon, PrivateDaemon, SystemDaemon
        from kilonova.hypervisor.libvirt.driver import LibvirtDriver

        data = self._directory / "guests"
        daemon: Daemon
        if self.config.agent.libvirt_uri:
            daemon = SystemDaemon(self.config.agent.libvirt_uri)
        else:
            daemon = PrivateDaemon(self._directory / "libvirt", data, ground.clock)
        return LibvirtDriver(data, daemon, images, ground.clock, installation=made.id), {}

    async def close(self) -> None:
        """Stop the control plane; guests keep running."""
        if self._lock is None:  # another process has the directory, and its state is there
            return
        (self._directory / "state.json").unlink(missing_ok=True)
        await self._stack.aclose()
        self._lock.close()


