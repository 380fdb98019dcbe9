"""Hosts and services as their records in all cells tell, with the zones that aggregates give them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.cells.registry import Cell, Cells
from kilonova.db import aggregates, services
from kilonova.db.services import COMPUTE, ComputeNode, Service
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, ServiceUnavailable

T = TypeVar("T")

NOT_LISTED = frozenset({"nova-osapi_compute", "nova-metadata"})
"""Services that answer requests themselves are in no list. Spec: API-240."""


class KnownService(msgspec.Struct, frozen=True):
    """A service record, where it is, and what follows from it. zone: availability zone of its host."""

    record: Service
    cell: Cell
    zone: str
    up: bool


class KnownNode(msgspec.Struct, frozen=True):
    """A hypervisor node and the agent that serves it."""

    record: ComputeNode
    service: KnownService


class ServiceHosts:
    """What is known of hosts. Fulfils `kilonova.api.compute.hosts.Hosts`.

    Args:
        service_down_time: seconds of silence after which a service counts as down.
        default_availability_zone: zone of hosts that are in none.
        internal_service_availability_zone: zone of services that run no servers.
    """

    def __init__(
        self, cells: Cells, clock: Clock, *, service_down_time: float = 60.0, default_availability_zone: str = "nova",
        internal_service_availability_zone: str = "internal",
    ) -> None:
        self._cells = cells
        self._clock = clock
        self._down_time = service_down_time
        self.default_zone = default_availability_zone
        self.internal_zone = internal_service_availability_zone

    async def services(
        self, *, binary: str | None = None, host: str | None = None
    ) -> tuple[list[KnownService], list[Cell]]:
        """Services of all cells, by id in each; and the cells that did not answer."""
        zones = await self._cells.api.read(aggregates.zones_of_hosts)
        answers = await self.ask(lambda conn: services.all_services(conn, binary=binary, host=host))
        found: list[KnownService] = []
        silent: list[Cell] = []
        for cell, answer in answers:
            if isinstance(answer, ServiceUnavailable):
                silent.append(cell)
            else:
                found += [self._known(cell, one, zones) for one in answer if one.binary not in NOT_LISTED]
        return found, silent

    async def nodes(self) -> tuple[list[KnownNode], list[Cell]]:
        """Nodes of all cells, by id in each, that have an agent; and the cells that did not answer."""
        agents, silent = await self.services(binary=COMPUTE)
        by_host = {(agent.cell.name, agent.record.host): agent for agent in agents}
        found: list[KnownNode] = []
        for cell, answer in await self.ask(services.all_nodes):
            if isinstance(answer, ServiceUnavailable):
                silent += [cell] if cell not in silent else []
                continue
            for node in answer:
                agent = by_host.get((cell.name, node.host))
                if agent is not None:
                    found.append(KnownNode(node, agent))
        return found, silent

    async def ask(self, read: Callable[[sa.Connection], T]) -> list[tuple[Cell, T | ServiceUnavailable]]:
        """Read in every cell at once."""

        async def one(cell: Cell) -> T | ServiceUnavailable:
            try:
                return await cell.database.read(read)
            except ServiceUnavailable as error:
                return error

        answers = await asyncio.gather(*(one(cell) for cell in self._cells.all))
        return list(zip(self._cells.all, answers, strict=True))

    def _known(self, cell: Cell, record: Service, zones: dict[str, str]) -> KnownService:
        zone = zones.get(record.host, self.default_zone) if record.binary == COMPUTE else self.internal_zone
        return KnownService(record, cell, zone, record.up(self._clock.now(), self._down_time))

    # --- what requests about servers ask ----------------------------------------------------------------

    async def statuses(self, hosts: Collection[str]) -> dict[str, str]:
        """UP, DOWN, MAINTENANCE or UNKNOWN for each host that has an agent. Spec: API-439."""
        agents, _ = await self.services(binary=COMPUTE)
        wanted = set(hosts)
        return {agent.record.host: _status(agent) for agent in agents if agent.record.host in wanted}

    async def zone_available(self, zone: str) -> bool:
        """Whether an enabled host belongs to this availability zone."""
        agents, _ = await self.services(binary=COMPUTE)
        return any(agent.zone == zone and not agent.record.disabled for agent in agents)

    async def zone_of(self, host: str) -> str | None:
        """The availability zone of a host; None if there is no such host."""
        agents, _ = await self.services(binary=COMPUTE, host=host)
        return agents[0].zone if agents else None

    async def exists(self, *, host: str | None, node: str | None) -> bool:
        """Whether there is such a host, with such a node if both are given."""
        if node is None:
            agents, _ = await self.services(binary=COMPUTE, host=host)
            return bool(agents)
        nodes, _ = await self.nodes()
        return any(known.record.node == node and host in (None, known.record.host) for known in nodes)


def _status(agent: KnownService) -> str:
    if agent.record.forced_down:
        return "DOWN"
    if agent.record.disabled:
        return "MAINTENANCE"
    return "UP" if agent.up else "UNKNOWN"


def known_hosts(call: Call) -> ServiceHosts:
    """The records behind this request: those the API was given, or with the usual options."""
    given = call.cloud.hosts
    return given if isinstance(given, ServiceHosts) else ServiceHosts(call.cloud.cells, call.cloud.clock)


def check_complete(call: Call, silent: Collection[Cell]) -> None:
    """Raises KilonovaError when cells are silent and lists may not skip them. Spec: API-054."""
    if silent and not call.cloud.options.list_records_by_skipping_down_cells:
        raise KilonovaError("A part of the cloud does not answer; the list would not be complete.")
