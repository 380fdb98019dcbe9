"""The embedded services of an installation, and every API that it serves: one machine's, or the `api` role's."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.application import ComputeApi
from kilonova.api.compute.identity_quotas import IdentityQuotas
from kilonova.api.compute.service_hosts import ServiceHosts
from kilonova.api.compute.stored_quotas import StoredQuotas
from kilonova.audit.auditor import Auditor
from kilonova.audit.embedded import EmbeddedDevices, EmbeddedImageData
from kilonova.audit.volumes import EmbeddedVolumeLedger
from kilonova.control.application import ControlApi
from kilonova.control.journals import Journals
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InstanceNotFound, NotFound
from kilonova.domain.operation import ExternalEvent
from kilonova.embedded.identity.service import EmbeddedIdentity
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.network.service import EmbeddedNetwork
from kilonova.embedded.network.wiring import FakeWiring, Wiring
from kilonova.embedded.placement import EmbeddedPlacement
from kilonova.embedded.shares import DirectoryShares
from kilonova.embedded.volume.api.application import application as volume_api
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.engine.operation import Tx
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.service import Keep, Lookup, MetadataService
from kilonova.metadata.vendor_data import vendor_data
from kilonova.operations.consoles import Consoles
from kilonova.operations.guests import metadata_of
from kilonova.operations.history import History
from kilonova.operations.interface_refresh import CHANGED, refresh_interfaces
from kilonova.operations.told import take
from kilonova.roles import assembly, volumes
from kilonova.roles.assembly import Ground, Progress, Wakes
from kilonova.roles.credentials import Installation
from kilonova.roles.watching import Timed
from kilonova.roles.web import Prefixes, WebServer
from kilonova.services import cyborg
from kilonova.services.network import NetworkService
from kilonova.services.volumes import VolumeService


@dataclass(frozen=True)
class Embedded:
    """The services, running.

    Args:
        volumes: None without storage pools. volume_calls: the volume service as compute calls it.
        url: of the process that serves them; auth_url: of the identity service.
    """

    identity: EmbeddedIdentity
    images: EmbeddedImage
    networks: EmbeddedNetwork
    volumes: EmbeddedVolumes | None
    volume_calls: VolumeService
    wiring: Wiring
    url: str
    auth_url: str



async def start(
    ground: Ground, wakes: Wakes, made: Installation, url: str, stack: AsyncExitStack, progress: Progress
) -> Embedded:
    """Start the services; the stack stops them."""
    directory = ground.config.directory
    identity = EmbeddedIdentity(
        ground.api, directory / "token-keys", ground.clock, url, volumes=bool(ground.config.pools)
    )
    stack.callback(identity.close)
    progress("identity", "prepare")
    realm = await identity.bootstrap(made.admin_password)
    auth_url = f"{url}/identity/v3"
    progress("image", "recover")
    images = EmbeddedImage(
        ground.api, directory / "images", ground.clock, identity, auth_url,
        unified_limits=ground.config.api.quota_limits == "identity",
    )
    await images.recover()
    stack.push_async_callback(images.close)
    progress("network", "prepare")
    wiring = _wiring(ground, made)
    events = _Events(ground, wakes)
    networks = EmbeddedNetwork(ground.api, ground.clock, identity, auth_url, wiring, events.deliver)
    events.networks = networks
    await networks.bootstrap(realm.admin_project_id)
    listener = None
    if ground.config.agent.driver == "libvirt":
        vendor = vendor_data(ground.config.vendor_data)
        listener = MetadataService(networks.instance_at, _lookup(ground), _keep(ground), vendor)
        stack.push_async_callback(listener.close)
    await networks.start(listener)
    stack.push_async_callback(networks.close)
    if ground.config.pools:
        progress("volume", "start storage pools")
    found = await volumes.start(ground, wakes, images, events.deliver, stack)
    calls = volumes.calls(ground.config, found)
    return Embedded(identity, images, networks, found, calls, wiring, url, auth_url)


def _wiring(ground: Ground, made: Installation) -> Wiring:
    if ground.config.agent.driver != "libvirt":
        return FakeWiring(assembly.own_host(ground.config), ground.config.agent.physical_networks)
    from kilonova.embedded.network.linux.wiring import LinuxWiring

    directory = ground.config.directory / "network"
    directory.mkdir(exist_ok=True)
    interfaces = {name: one.interface for name, one in ground.config.agent.physical_networks.items()}
    return LinuxWiring(made.token, directory, ground.clock, assembly.own_host(ground.config), interfaces)


def _lookup(ground: Ground) -> Lookup:
    async def lookup(instance_uuid: str) -> GuestMetadata | None:
        try:
            found = await ground.cells.locate(instance_uuid)
        except InstanceNotFound:
            return None
        volumes: list[BlockDevice] = []
        if found.cell is not None:
            volumes = await found.cell.database.read(lambda conn: block_devices.of_server(conn, instance_uuid))
        return metadata_of(found.instance, found.instance.network_info, volumes)

    return lookup


def _keep(ground: Ground) -> Keep:
    async def keep(instance_uuid: str, password: str) -> bool:
        cell = (await ground.cells.locate(instance_uuid)).cell
        now = ground.clock.now()
        return cell is not None and await cell.database.write(
            lambda conn: instances.keep_password(conn, instance_uuid, password, now=now)
        )

    return keep


class _Events:
    """Takes events of the embedded network service: for the operation that may wait for them, and for the record."""

    networks: NetworkService

    def __init__(self, ground: Ground, wakes: Wakes) -> None:
        self._ground = ground
        self._wakes = wakes

    async def deliver(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None:
        """Keep an event in the cell, whichever conductor goes on with it. NotFound says that nobody waits."""
        ground, now = self._ground, self._ground.clock.now()
        if name == CHANGED:
            await refresh_interfaces(ground.cell, self.networks, ground.clock, instance_uuid, tag)
        event = ExternalEvent(subject=instance_uuid, name=name, tag=tag, status=status)
        kept, work = await ground.cell.write(lambda conn: take(Tx(conn, now), event))
        if not (kept or work):
            raise NotFound(f"Instance {instance_uuid} awaits no event.")
        self._wakes.cell(ground.config.cell.name)


async def serve(
    ground: Ground, services: Embedded, wakes: Wakes, prefixes: Prefixes, web: WebServer, stack: AsyncExitStack
) -> None:
    """Serve all APIs; the stack stops that before anything they use."""
    config, identity, auth_url = ground.config, services.identity, services.auth_url
    journals = Journals(ground.cells, services.volumes, wake_api=wakes.api, wake_cell=wakes.cell)
    control = ControlApi(
        cells=ground.cells, journals=journals, identity=identity, identity_url=auth_url, clock=ground.clock,
        auditor=_auditor(ground, services, wakes), down_time=config.scheduler.service_down_time,
    )
    consoles = assembly.consoles(ground, services.url)
    site = assembly.console_site(ground, consoles, services.url)
    prefixes.mount_sockets(site)
    applications: dict[str, ASGIApp] = {
        "/console": site,
        "/control": control,
        "/identity": identity.application(),
        "/image": services.images.application(),
        "/network": services.networks.application(),
        "/placement": EmbeddedPlacement(ground.api, ground.clock, identity=identity, identity_url=auth_url),
        "/compute": _compute(ground, services, wakes, consoles),
    }
    if services.volumes is not None:
        applications["/volume"] = volume_api(services.volumes, identity, auth_url)
    if config.metrics.port or config.tracing.endpoint:
        applications = {p: Timed(of, p.removeprefix("/"), ground.metrics) for p, of in applications.items()}
    prefixes.mount(applications)
    await web.start()
    stack.push_async_callback(web.close)
    stack.push_async_callback(control.close)


def _compute(ground: Ground, services: Embedded, wakes: Wakes, consoles: Consoles) -> ComputeApi:
    config = ground.config
    return ComputeApi(
        cells=ground.cells, compute=assembly.compute(ground, wakes), identity=services.identity,
        images=services.images, networks=services.networks, actions=History(ground.cells),
        shares=DirectoryShares(config.shares), accelerators=cyborg.accelerators(config.accelerator),
        volumes=services.volume_calls, consoles=consoles, clock=ground.clock,
        identity_url=services.auth_url, policy_file=Path(config.api.policy_file or config.directory / "policy.yaml"),
        quotas=_quotas(ground, services), hosts=ServiceHosts(
            ground.cells, ground.clock, service_down_time=config.scheduler.service_down_time,
            default_availability_zone=config.scheduler.default_availability_zone,
        ),
        options=ApiOptions(
            instance_usage_audit_period=config.notifications.instance_usage_audit_period, pci_aliases=config.pci.alias
        ),
    )


def _quotas(ground: Ground, services: Embedded) -> StoredQuotas:
    if ground.config.api.quota_limits == "identity":
        return IdentityQuotas(ground.cells, services.identity)
    return StoredQuotas(ground.cells)


def _auditor(ground: Ground, services: Embedded, wakes: Wakes) -> Auditor:
    return Auditor(
        ground.cells, ground.bus, ground.clock, wake_api=wakes.api, wake_cell=wakes.cell, ports=services.networks,
        devices=EmbeddedDevices(assembly.own_host(ground.config), ground.api, services.wiring),
        images=EmbeddedImageData(ground.api, ground.config.directory / "images"),
        volumes=None if services.volumes is None else EmbeddedVolumeLedger(services.volumes),
        retention=ground.config.notifications.retention,
        accelerators=cyborg.accelerators(ground.config.accelerator),
    )
