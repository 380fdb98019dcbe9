"""Placing: the scheduler's choice, confirmed by a claim in the database."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db import build_requests
from kilonova.db.database import Database
from kilonova.db.placement import claims
from kilonova.db.placement import hosts as placement_hosts
from kilonova.db.placement.layouts import layout_of, layouts_on
from kilonova.db.placement.port_claims import add_group, drop_group
from kilonova.db.placement.port_devices import add_device, drop_device
from kilonova.db.placement.tables import provider_aggregates, providers
from kilonova.db.placement.trees import groups_held
from kilonova.domain.errors import KilonovaError, NoValidHost, PortResourcesNotFree, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.grouping import ServerGroup
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.domain.network import BoundDevice, PortNeed
from kilonova.hypervisor.guest import HostInventory
from kilonova.scheduler.decision import HostChoice
from kilonova.scheduler.observed import Nobody, Observer
from kilonova.scheduler.scheduler import Groupings, NoGroupings, Scheduler
from kilonova.services.placement import Pin, Target
from kilonova.shapes.host import Layout
from kilonova.shapes.port_devices import PORT, bound_device, by_port
from kilonova.shapes.resources import (
    groups_of,
    groups_of_ports,
    is_volume_backed,
    isolates,
    own_resources_of,
    port_of_group,
    served_ports,
)
from kilonova.shapes.shape import shape_of
from kilonova.shapes.trees import ResourceGroup

log = structlog.get_logger(__name__)

ROUNDS = 5
"""How often the scheduler is asked again when others took what it had chosen."""


class _Refused(NoValidHost):
    """The one host that would do cannot be had."""

    def __init__(self, outcome: claims.Claim, host: str) -> None:
        super().__init__(f"Host {host} cannot be had: {outcome.value}.")
        self.outcome = outcome


class Placing:
    """Claims and choices over the API database.

    Args:
        groupings: aggregates give hosts their availability zone. default_zone: of hosts in none.
        settings: what is kept back on hosts and how far they are overcommitted. observer: counts claims.
    """

    def __init__(
        self,
        database: Database,
        scheduler: Scheduler,
        *,
        groupings: Groupings | None = None,
        default_zone: str = "nova",
        settings: placement_hosts.HostSettings | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._database = database
        self._scheduler = scheduler
        self._groupings = groupings or NoGroupings()
        self._default_zone = default_zone
        self._settings = settings
        self._observer = observer or Nobody()

    async def place(self, spec: RequestSpec, alternates: int) -> tuple[Target, ...]:
        """Choose a host and claim it. A server that holds a claim keeps it. Raises NoValidHost."""
        held = await self._database.read(lambda conn: claims.holdings(conn, spec.instance_uuid))
        for holding in held:
            if holding.host is not None and holding.node is not None:
                # Whether builds fail there is not known; that only costs a look when this one has succeeded.
                found = Target(host=holding.host, node=holding.node, provider=holding.provider, failing=True)
                return await self._with_zones([found])
        for _ in range(ROUNDS):
            (selection,) = await self._scheduler.select(spec, count=1, alternates=alternates)
            choices = (selection, *selection.alternates)
            for position, choice in enumerate(choices):
                if await self._claim(spec, choice.provider, choice.resources):
                    others = (*choices[position + 1 :], *choices[:position])
                    return await self._with_zones([_target(c) for c in (choice, *others)])
        raise NoValidHost("The hosts that were chosen filled up meanwhile.")

    async def _with_zones(self, targets: list[Target]) -> tuple[Target, ...]:
        def read(conn: sa.Connection) -> list[str]:
            zones = {a.uuid: a.availability_zone for a in self._groupings.aggregates(conn) if a.availability_zone}
            return [self._zone(conn, zones, target.provider) for target in targets]

        zones = await self._database.read(read)
        return tuple(
            msgspec.structs.replace(target, availability_zone=zone) for target, zone in zip(targets, zones, strict=True)
        )

    def _zone(self, conn: sa.Connection, zones: Mapping[str, str], provider: str) -> str:
        if zones:
            query = (
                sa.select(provider_aggregates.c.aggregate)
                .join(providers, providers.c.id == provider_aggregates.c.provider_id)
                .where(providers.c.uuid == provider, provider_aggregates.c.aggregate.in_(zones))
            )
            found = conn.execute(query).scalar()
            if found is not None:
                return zones[found]
        return self._default_zone

    async def choose(
        self, server: str, *, host: str | None, pin: Pin | None, alternates: int, needs: tuple[PortNeed, ...] = ()
    ) -> tuple[RequestSpec, tuple[Target, ...]]:
        """What an administrator forced when the server was made is forgotten."""
        spec = await self._spec_of(server)
        if pin is not None:
            spec = msgspec.structs.replace(spec, availability_zone=pin.zone)
        wanted = msgspec.structs.replace(
            spec, requested_host=host, force_host=None, force_node=None, ignore_hosts=(), attached=needs
        )
        (selection,) = await self._scheduler.select(wanted, count=1, alternates=alternates)
        if pin is not None:
            await self._database.write(lambda conn: build_requests.replace_spec(conn, spec))
        return wanted, await self._with_zones([_target(choice) for choice in (selection, *selection.alternates)])

    async def _spec_of(self, server: str) -> RequestSpec:
        spec = await self._database.read(lambda conn: build_requests.spec_of(conn, server))
        if spec is None:
            raise KilonovaError(f"What was asked for server {server} is not known.")
        return spec

    async def claim(self, spec: RequestSpec, target: Target) -> None:
        """Hold the resources on that host. Raises TryElsewhere with the reason. Spec: BLD-86, BLD-97."""
        resources = own_resources_of(spec.flavor, spec.image, volume_backed=is_volume_backed(spec.block_devices))
        outcome = await self._claim(spec, target.provider, resources)
        if not outcome:
            raise TryElsewhere(f"Host {target.host} cannot be had: {outcome.value}.")

    async def _claim(self, spec: RequestSpec, provider: str, resources: dict[str, int]) -> claims.Claim:
        outcome = await self._database.write(lambda conn: self._claim_now(conn, spec, provider, resources))
        self._observer.claimed(outcome.name.lower())
        return outcome

    def _claim_now(
        self, conn: sa.Connection, spec: RequestSpec, provider: str, resources: dict[str, int]
    ) -> claims.Claim:
        group: ServerGroup | None = None
        if spec.server_group is not None:
            group = self._groupings.server_group(conn, spec.server_group)
        return claims.claim(
            conn, spec.instance_uuid, provider, resources, spec.project_id, spec.user_id, group=group,
            shape=shape_of(spec.flavor, spec.image, spec.port_needs), isolate=isolates(spec.flavor),
            groups=groups_of(spec.flavor) + groups_of_ports(spec.port_needs),
        )

    async def layouts(self, host: str) -> dict[str, Layout]:
        """By consumer."""
        return await self._database.read(lambda conn: layouts_on(conn, host))

    async def layout(self, consumer: str, host: str) -> Layout | None:
        return await self._database.read(lambda conn: layout_of(conn, consumer, host))

    async def providers_of(self, server: str, groups: Mapping[int, ResourceGroup]) -> dict[int, str]:
        held = await self._database.read(lambda conn: groups_held(conn, server))
        if any(group.suffix not in held for group in groups.values()):
            raise KilonovaError(f"Server {server} does not hold the devices that it asks for.")
        return {number: held[group.suffix].provider for number, group in groups.items()}

    async def count_build(self, target: Target, *, failed: bool) -> None:
        await self._database.write(
            lambda conn: placement_hosts.count_build(conn, target.host, target.node, failed=failed)
        )

    async def change_image(self, instance: str, host: str, image: Image, trusted_certs: tuple[str, ...]) -> None:
        spec = await self._database.read(lambda conn: build_requests.spec_of(conn, instance))
        if spec is None:
            return
        changed = msgspec.structs.replace(spec, image=image, trusted_certs=trusted_certs)
        await self._scheduler.check_image(changed, host)
        await self.note_image(instance, image, trusted_certs)

    async def note_image(self, instance: str, image: Image, trusted_certs: tuple[str, ...]) -> None:
        def unit(conn: sa.Connection) -> None:
            spec = build_requests.spec_of(conn, instance)
            if spec is not None:
                build_requests.replace_spec(conn, spec, image=image, trusted_certs=trusted_certs)

        await self._database.write(unit)

    async def release(self, consumer: str, provider: str | None = None) -> None:
        await self._database.write(lambda conn: claims.release(conn, consumer, provider))

    async def begin_resize(
        self, server: str, migration: str, flavor: Flavor, host: str, needs: tuple[PortNeed, ...] = ()
    ) -> Target:
        """The scheduler looks at the host as for a new server, and the claim is taken in one transaction with handing
        over what is held. Spec: MIG-15, MIG-27.
        """
        spec = await self._spec_of(server)
        held = await self._database.read(lambda conn: claims.holdings(conn, migration))
        wanted = msgspec.structs.replace(
            spec, flavor=flavor, requested_host=host, force_host=None, force_node=None, ignore_hosts=(), attached=needs
        )
        if held:  # done before
            held = await self._database.read(lambda conn: claims.holdings(conn, server))
            (here,) = [holding for holding in held if holding.host == host]
            return Target(host=host, node=here.node or host, provider=here.provider)
        (selection,) = await self._scheduler.select(wanted, count=1)

        def unit(conn: sa.Connection) -> claims.Claim:
            if not claims.move(conn, server, migration, target_type=claims.MIGRATION):
                raise KilonovaError(f"Server {server} holds nothing of host {host}.", hint="kilonova audit --heal")
            outcome = self._claim_now(conn, wanted, selection.provider, selection.resources)
            if not outcome:
                raise _Refused(outcome, host)
            build_requests.replace_spec(conn, spec, flavor=flavor)
            return outcome

        try:
            outcome = await self._database.write(unit)
        except _Refused as error:
            self._observer.claimed(error.outcome.name.lower())
            raise
        self._observer.claimed(outcome.name.lower())
        return _target(selection)

    async def take_back(self, server: str, migration: str, flavor: Flavor) -> None:
        def unit(conn: sa.Connection) -> bool:
            """Whether nothing was there, and had not been taken back before."""
            spec = build_requests.spec_of(conn, server)
            if claims.move(conn, migration, server):
                if spec is not None:
                    build_requests.replace_spec(conn, spec, flavor=flavor)
                return False
            return spec is not None and spec.flavor != flavor

        if await self._database.write(unit):
            log.error("a migration holds nothing that its server could take back", instance=server, migration=migration)

    async def served(self, consumer: str) -> dict[str, dict[str, str]]:
        held = await self._database.read(lambda conn: groups_held(conn, consumer))
        return served_ports({suffix: one.provider for suffix, one in held.items()})

    async def devices(self, consumer: str) -> dict[str, BoundDevice]:
        layout = await self._database.read(lambda conn: layout_of(conn, consumer))
        held = by_port(layout.devices) if layout is not None else {}
        return {port_id: bound_device(device) for port_id, device in held.items()}

    async def add_port(self, server: str, host: str, need: PortNeed) -> None:
        """In one transaction: a device that cannot be had leaves no resources claimed."""
        spec = await self._spec_of(server) if need.device is not None else None
        shape = shape_of(spec.flavor, spec.image, (need,)) if spec is not None else None

        def unit(conn: sa.Connection) -> None:
            for group in groups_of_ports([need]):
                if add_group(conn, server, host, group) is None:
                    raise PortResourcesNotFree(need.port_id, host)
            if shape is not None:
                add_device(conn, server, host, shape.pci_requests[-1])

        await self._database.write(unit)

    async def drop_port(self, server: str, port_id: str) -> None:
        def unit(conn: sa.Connection) -> None:
            for suffix in groups_held(conn, server):
                if port_of_group(suffix) == port_id:
                    drop_group(conn, server, suffix)
            drop_device(conn, server, PORT + port_id)

        await self._database.write(unit)

    async def forget(self, consumer: str) -> None:
        """What its migrations hold is its own, too. Spec: RSZ-22."""
        def unit(conn: sa.Connection) -> None:
            claims.release_all_of(conn, consumer)
            build_requests.forget(conn, consumer)

        await self._database.write(unit)

    async def report(
        self, host: str, inventory: HostInventory, *, now: float, cell: str, kept_off: bool | None = None
    ) -> str:
        """Record what a host offers; returns the uuid of its resource provider."""
        return await self._database.write(
            lambda conn: placement_hosts.report(
                conn, host, inventory.hostname, inventory, now=now, cell=cell, settings=self._settings,
                kept_off=kept_off,
            )
        )

    async def heartbeat(self, host: str, now: float) -> bool:
        """Record a host's sign of life. Returns False for one that has never reported."""
        return await self._database.write(lambda conn: placement_hosts.heartbeat(conn, host, now))


def _target(choice: HostChoice) -> Target:
    return Target(host=choice.host, node=choice.node, provider=choice.provider, failing=choice.failed_builds > 0)
