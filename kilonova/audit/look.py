"""One look at everything: records, journals, claims, hosts, ports, images.

The parts are read one after the other while the cloud works. What an operation touches meanwhile would look
wrong; so whatever had an active operation at the beginning or the end of the look, or got one in between, is
noted as busy and is not compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import Answer, Found, FoundQuery
from kilonova.audit.accelerators import MAKERS
from kilonova.audit.server_volumes import all_block_devices
from kilonova.audit.sources import AcceleratorLedger, DeviceLedger, ImageData, ImageLedger, OnMachine, PortLedger
from kilonova.audit.volumes import VolumeLedger, VolumesFound
from kilonova.bus.protocol import Bus
from kilonova.bus.subjects import to_host
from kilonova.cells.registry import Cell, Cells
from kilonova.db import build_requests, secrets, services
from kilonova.db.console_tokens import console_tokens
from kilonova.db.database import Database, Unit
from kilonova.db.instances import instances
from kilonova.db.journal import Journal, api_journal, cell_journal
from kilonova.db.outbox import Outbox, api_outbox, cell_outbox
from kilonova.db.placement.claims import INSTANCE, MIGRATION
from kilonova.db.placement.layouts import devices_by_consumer
from kilonova.db.placement.tables import allocation_groups, allocations, consumers, hosts, inventories, providers
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, Unreachable
from kilonova.domain.instance import Instance
from kilonova.domain.operation import TERMINAL, OperationState
from kilonova.hypervisor.volumes import HeldVolume
from kilonova.services.accelerators import AcceleratorRequest
from kilonova.services.network import PortSummary
from kilonova.shapes.pci import HeldDevice
from kilonova.shapes.resources import PORT_GROUP

log = structlog.get_logger(__name__)

PAGE = 500
"""Records read in one unit of work: between two of them the cloud goes on."""

QUERY_LIMIT = 10.0
"""Seconds in which a host must answer."""

HOSTS_AT_ONCE = 32

_encode = msgspec.msgpack.Encoder().encode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode


class ActiveOperation(msgspec.Struct, frozen=True, kw_only=True):
    """holder: the operation has its subject to itself."""

    id: str
    kind: str
    subject: str
    state: OperationState
    journal: str
    holder: bool


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """What one consumer holds of one provider. instance: the server it is about. host: None if it is no host's."""

    consumer: str
    instance: str
    provider: str
    host: str | None
    resources: dict[str, int]


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a provider is said to be used, and the sum of its allocations."""

    provider: str
    name: str
    resource_class: str
    used: int
    allocated: int


class InCell(NamedTuple):
    """Rows of a database: whose they are. cell: `api` for the database that all cells share."""

    cell: str
    owner: str


class HostFound(msgspec.Struct, frozen=True, kw_only=True):
    """What a host answered; found is None if it did not."""

    cell: str
    host: str
    found: Found | None


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """Everything as it was seen.

    Args:
        servers: live records by uuid, with the name of their cell. requests: uuids of build requests.
        mapped: of the live records, those that a mapping leads to. dangling: mappings that lead nowhere.
        specs: request specs of servers without a record and without a build request.
        busy: servers that operations work on.
        secrets, tokens: servers of which there are secrets, or tokens of consoles.
        accelerators: requests at the accelerator service, None if it was not asked or was silent. making: an
            operation was under way that makes such requests.
        undelivered: sinks that no process has and for which notifications are kept.
        own_devices: by consumer, PCI devices that are its own.
        block_devices: volumes of servers, deleted ones too, by cell and server.
    """

    servers: dict[str, tuple[str, Instance]]
    requests: frozenset[str]
    mapped: frozenset[str]
    dangling: frozenset[str]
    specs: frozenset[str]
    busy: frozenset[str]
    operations: tuple[ActiveOperation, ...]
    holdings: tuple[Holding, ...]
    counters: tuple[Counter, ...]
    hosts: tuple[HostFound, ...]
    ports: tuple[PortSummary, ...] | None = None
    devices: OnMachine | None = None
    images: ImageData | None = None
    volumes: VolumesFound | None = None
    accelerators: tuple[AcceleratorRequest, ...] | None = None
    silent: bool = False
    making: bool = False
    secrets: frozenset[InCell] = frozenset()
    tokens: frozenset[InCell] = frozenset()
    undelivered: frozenset[InCell] = frozenset()
    own_devices: dict[str, tuple[HeldDevice, ...]] = {}
    block_devices: dict[tuple[str, str], list[BlockDevice]] = {}

    @property
    def held(self) -> dict[str, dict[str, tuple[HeldVolume, ...]]]:
        """Volumes of guests, by host and server, of hosts that tell."""
        return {
            on.host: on.found.volumes for on in self.hosts if on.found is not None and on.found.volumes is not None
        }


class Looker:
    """Takes looks.

    Args:
        ports, devices, images, accelerators, volumes: None where somebody else keeps them.
        retention: seconds after which a notification is given up.
    """

    def __init__(
        self, cells: Cells, bus: Bus, clock: Clock, *, ports: PortLedger | None = None,
        devices: DeviceLedger | None = None, images: ImageLedger | None = None,
        accelerators: AcceleratorLedger | None = None, volumes: VolumeLedger | None = None, retention: float,
    ) -> None:
        self._retention = retention
        self._cells = cells
        self._bus = bus
        self._clock = clock
        self._ports = ports
        self._devices = devices
        self._images = images
        self._volumes = volumes
        self._accelerators = accelerators

    async def look(self) -> Look:
        """See everything once."""
        began = self._clock.now()
        before = await self.active()
        found = await self._ask_hosts()
        ports = await self._ports.allocated() if self._ports is not None else None
        devices = await self._devices.devices() if self._devices is not None else None
        images = await self._images.image_data() if self._images is not None else None
        volumes = await self._volumes.volumes_found() if self._volumes is not None else None
        requested, silent = await self._requests()
        holdings, counters = await self._cells.api.read(_claims)
        own_devices = await self._cells.api.read(devices_by_consumer)
        secret, token = await self._rows_of_servers(secrets.secrets), await self._rows_of_servers(console_tokens)
        devices_of = {
            (cell.name, server): found for cell in self._cells.all
            for server, found in (await cell.database.read(all_block_devices)).items()
        }
        servers: dict[str, tuple[str, Instance]] = {}
        for cell in self._cells.all:
            servers |= await _servers(cell)
        requests, mapped, dangling, specs = await self._api_records(servers)
        after = await self.active()
        busy = {operation.subject for operation in (*before, *after)} | await self._touched_since(began)
        return Look(
            servers=servers, requests=requests, mapped=mapped, dangling=dangling, specs=specs, busy=frozenset(busy),
            operations=after, holdings=holdings, counters=counters, hosts=found,
            ports=tuple(ports) if ports is not None else None, devices=devices, images=images, volumes=volumes,
            own_devices=own_devices, block_devices=devices_of,
            accelerators=requested, silent=silent,
            making=any(operation.kind in MAKERS for operation in (*before, *after)), secrets=secret, tokens=token,
            undelivered=await self._undelivered(),
        )

    async def _requests(self) -> tuple[tuple[AcceleratorRequest, ...] | None, bool]:
        """Requests at the accelerator service, and whether it was asked and did not answer."""
        if self._accelerators is None:
            return None, False
        try:
            return await self._accelerators.requests(), False
        except KilonovaError as error:
            log.warning("accelerator service not audited", error=str(error))
            return None, True

    async def _rows_of_servers(self, table: sa.Table) -> frozenset[InCell]:
        """Asked before the servers themselves: with a server its rows go, never the other way round."""
        found: set[InCell] = set()
        for cell in self._cells.all:
            owners = await cell.database.read(_scalars(sa.select(table.c.instance_uuid).distinct()))
            found |= {InCell(cell.name, owner) for owner in owners}
        return frozenset(found)

    async def _undelivered(self) -> frozenset[InCell]:
        found: set[InCell] = set()
        before = self._clock.now() - self._retention
        for name, database, outbox in self._outboxes():
            found |= {InCell(name, sink) for sink in await database.read(partial(outbox.abandoned, before=before))}
        return frozenset(found)

    def _outboxes(self) -> Iterable[tuple[str, Database, Outbox]]:
        yield "api", self._cells.api, api_outbox
        for cell in self._cells.all:
            yield cell.name, cell.database, cell_outbox

    def _journals(self) -> Iterable[tuple[str, Database, Journal]]:
        yield "api", self._cells.api, api_journal
        for cell in self._cells.all:
            yield cell.name, cell.database, cell_journal

    async def active(self, subject: str | None = None) -> tuple[ActiveOperation, ...]:
        """All operations that have not ended, of every journal; or those of one server."""
        found: list[ActiveOperation] = []
        for name, database, journal in self._journals():
            found += await database.read(_active(name, journal, subject))
        return tuple(found)

    async def _touched_since(self, began: float) -> set[str]:
        found: set[str] = set()
        for _, database, journal in self._journals():
            t = journal.operations
            found |= set(await database.read(_scalars(sa.select(t.c.subject).where(t.c.created_at >= began))))
        return found

    async def _ask_hosts(self) -> tuple[HostFound, ...]:
        turn = asyncio.Semaphore(HOSTS_AT_ONCE)

        async def ask(cell: str, host: str) -> HostFound:
            async with turn:
                try:
                    reply = await self._bus.request(to_host(host, "query"), _encode(FoundQuery()), timeout=QUERY_LIMIT)
                except Unreachable:
                    return HostFound(cell=cell, host=host, found=None)
            return HostFound(cell=cell, host=host, found=_decode_answer(reply).found)

        asked = []
        for cell in self._cells.all:
            agents = await cell.database.read(lambda conn: services.all_services(conn, binary=services.COMPUTE))
            asked += [ask(cell.name, agent.host) for agent in agents]
        return tuple(await asyncio.gather(*asked))

    async def _api_records(
        self, servers: dict[str, tuple[str, Instance]]
    ) -> tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]:
        mappings, requests, specs = (
            build_requests.instance_mappings, build_requests.build_requests, build_requests.request_specs
        )
        dangling = sa.select(mappings.c.uuid).where(
            mappings.c.cell.is_(None), ~sa.exists().where(requests.c.uuid == mappings.c.uuid)
        )
        waiting = sa.select(requests.c.uuid)
        mapped: set[str] = set()
        uuids = list(servers)
        for start in range(0, len(uuids), PAGE):
            page = sa.select(mappings.c.uuid).where(mappings.c.uuid.in_(uuids[start : start + PAGE]))
            mapped |= set(await self._cells.api.read(_scalars(page)))
        sets = await self._cells.api.read(lambda conn: [
            frozenset(conn.execute(query).scalars()) for query in (waiting, dangling, sa.select(specs.c.uuid))
        ])
        return sets[0], frozenset(mapped), sets[1], sets[2] - sets[0] - servers.keys()


def _active(name: str, journal: Journal, subject: str | None) -> Unit[list[ActiveOperation]]:
    t = journal.operations
    query = sa.select(t.c.id, t.c.kind, t.c.subject, t.c.state, t.c.slot).where(
        t.c.state.in_([state.value for state in OperationState if state not in TERMINAL])
    )
    if subject is not None:
        query = query.where(t.c.subject == subject)

    def read(conn: sa.Connection) -> list[ActiveOperation]:
        return [
            ActiveOperation(
                id=row.id, kind=row.kind, subject=row.subject, state=OperationState(row.state), journal=name,
                holder=row.slot is not None,
            ) for row in conn.execute(query)
        ]

    return read


def _scalars(query: sa.Select[Any]) -> Unit[list[Any]]:
    return lambda conn: list(conn.execute(query).scalars())


async def _servers(cell: Cell) -> dict[str, tuple[str, Instance]]:
    """The live records of a cell, page by page."""
    found: dict[str, tuple[str, Instance]] = {}
    last = ""
    while True:
        query = (
            sa.select(instances.c.body).where(instances.c.deleted_at.is_(None), instances.c.uuid > last)
            .order_by(instances.c.uuid).limit(PAGE)
        )
        page: list[Instance] = await cell.database.read(_scalars(query))
        found |= {instance.uuid: (cell.name, instance) for instance in page}
        if len(page) < PAGE:
            return found
        last = page[-1].uuid


_PORT_GROUPS = (
    sa.select(allocation_groups.c.consumer, allocation_groups.c.resources, providers.c.uuid)
    .join(providers, providers.c.id == allocation_groups.c.provider_id)
    .join(consumers, consumers.c.uuid == allocation_groups.c.consumer)
    .where(consumers.c.type.in_((INSTANCE, MIGRATION)), allocation_groups.c.suffix.startswith(PORT_GROUP))
)
"""What ports have asked for: flavors do not tell of it."""


def _claims(conn: sa.Connection) -> tuple[tuple[Holding, ...], tuple[Counter, ...]]:
    """What servers and migrations hold, and what the counters say of it."""
    held = conn.execute(
        sa.select(
            allocations.c.consumer, consumers.c.instance, providers.c.uuid, hosts.c.host, allocations.c.resource_class,
            allocations.c.used,
        )
        .join_from(allocations, consumers, consumers.c.uuid == allocations.c.consumer)
        .join(providers, providers.c.id == allocations.c.provider_id)
        .outerjoin(hosts, hosts.c.provider_id == providers.c.root_id)
        .where(consumers.c.type.in_((INSTANCE, MIGRATION)))
    )
    found: dict[tuple[str, str], Holding] = {}
    for row in held:
        holding = found.setdefault((row.consumer, row.uuid), Holding(
            consumer=row.consumer, instance=row.instance, provider=row.uuid, host=row.host, resources={},
        ))
        holding.resources[row.resource_class] = row.used
    for group in conn.execute(_PORT_GROUPS):
        of = found.get((group.consumer, group.uuid))
        if of is None:
            continue
        for name, amount in group.resources.items():
            of.resources[name] = of.resources.get(name, 0) - amount
            if not of.resources[name]:
                del of.resources[name]
    summed = sa.func.coalesce(sa.func.sum(allocations.c.used), 0)
    counted = conn.execute(
        sa.select(providers.c.uuid, providers.c.name, inventories.c.resource_class, inventories.c.used,
                  summed.label("allocated"))
        .join_from(inventories, providers, providers.c.id == inventories.c.provider_id)
        .outerjoin(allocations, sa.and_(
            allocations.c.provider_id == inventories.c.provider_id,
            allocations.c.resource_class == inventories.c.resource_class,
        ))
        .group_by(providers.c.uuid, providers.c.name, inventories.c.resource_class, inventories.c.used)
        .having(summed != inventories.c.used)
    )
    counters = tuple(
        Counter(provider=row.uuid, name=row.name, resource_class=row.resource_class, used=row.used,
                allocated=int(row.allocated))
        for row in counted
    )
    return tuple(found.values()), counters
