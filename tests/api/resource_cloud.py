"""A Compute API over service records and stored quotas, with hosts that report as agents do.

    async with resource_cloud() as cloud:
        await cloud.report("host-1")
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import sqlalchemy as sa
from compute_cloud import IDENTITY_URL, ComputeCloud

import kilonova.db.schema  # noqa: F401 - registers every table
from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.application import ComputeApi
from kilonova.api.compute.identity_quotas import IdentityQuotas
from kilonova.api.compute.quota_check import Limits
from kilonova.api.compute.service_hosts import ServiceHosts
from kilonova.api.compute.stored_quotas import StoredQuotas
from kilonova.cells.registry import Cell, Cells
from kilonova.db import services
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.database import Database
from kilonova.db.placement import claims, hosts, search
from kilonova.db.placement.providers import find_provider
from kilonova.db.services import ComputeNode, Service
from kilonova.domain.errors import ServiceUnavailable
from kilonova.embedded.shares import DirectoryShares, ShareOptions
from kilonova.hypervisor.guest import HostInventory
from kilonova.services.accelerators import NoAccelerators
from kilonova.services.no_volumes import no_volumes

SECOND_CELL = "55555555-5555-4555-8555-555555555555"
DOWN_TIME = 60.0


class ResourceCloud(ComputeCloud):
    """The API with nothing made up about hosts and quotas. `broken`: cells (by name) that do not answer.

    Args:
        limits: configured quotas. identity_quotas: let the identity service hold them. second_cell: add an empty one.
    """

    def __init__(self, *, limits: Limits | None = None, second_cell: bool = False,
                 identity_quotas: bool = False, options: ApiOptions | None = None,
                 service_down_time: float = DOWN_TIME) -> None:
        super().__init__()
        self.all_cells = [self.cell]
        if second_cell:
            database = Database.open("sqlite://")
            cell_metadata.create_all(database.engine)
            self.all_cells.append(Cell("cell2", SECOND_CELL, database))
        self.cells = Cells(self.cells.api, tuple(self.all_cells))
        self.compute.cells = self.cells
        self.service_hosts = ServiceHosts(self.cells, self.clock, service_down_time=service_down_time)
        quotas = StoredQuotas(self.cells, limits)
        if identity_quotas:
            quotas = IdentityQuotas(self.cells, self.identity)
        self.app = ComputeApi(
            cells=self.cells, compute=self.compute, identity=self.identity, images=self.images,
            networks=self.networks, actions=self.actions, clock=self.clock,  # type: ignore[arg-type]
            consoles=self.consoles, shares=DirectoryShares(ShareOptions()), accelerators=NoAccelerators(),
            volumes=no_volumes(),
            identity_url=IDENTITY_URL,
            hosts=self.service_hosts, options=options,
            quotas=quotas,
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=True, root_path="/compute"),
            base_url="http://cloud.test",
        )

    async def report(self, host: str, *, cell: int = 0, **facts: Any) -> str:
        """What a report of an agent leaves behind; returns the uuid of the node."""
        given: dict[str, Any] = {
            "hostname": host, "hypervisor_type": "QEMU", "hypervisor_version": 7002000, "vcpus": 8,
            "memory_mib": 16384, "local_gib": 100, "disk_available_gib": 90, "memory_free_mib": 15000,
            "host_ip": "192.0.2.7", "cpu_info": '{"model": "EPYC"}', "uptime": "10:00:00 up 3 days", **facts,
        }
        inventory, now, there = HostInventory(**given), self.clock.now(), self.all_cells[cell]
        provider = await self.cells.api.write(
            lambda conn: hosts.report(conn, host, inventory.hostname, inventory, now=now, cell=there.uuid)
        )

        def record(conn: sa.Connection) -> None:
            services.seen(conn, services.COMPUTE, host, version="1", now=now)
            services.report_node(conn, provider, host, inventory, now=now)

        await there.database.write(record)
        return provider

    async def service(self, binary: str, host: str, *, cell: int = 0) -> Service:
        """A sign of life of some other service."""
        now, database = self.clock.now(), self.all_cells[cell].database
        await database.write(lambda conn: services.seen(conn, binary, host, version="1", now=now))
        return await self.service_of(host, binary=binary, cell=cell)

    async def service_of(self, host: str, *, binary: str = services.COMPUTE, cell: int = 0) -> Service:
        (found,) = await self.all_cells[cell].database.read(
            lambda conn: services.all_services(conn, binary=binary, host=host)
        )
        return found

    async def node_of(self, host: str, *, cell: int = 0) -> ComputeNode:
        (found,) = await self.all_cells[cell].database.read(lambda conn: services.all_nodes(conn, hosts=[host]))
        return found

    async def claim(self, provider: str, **amounts: int) -> None:
        """Hold resources of a node for some server."""
        await self.cells.api.write(
            lambda conn: claims.claim(conn, str(uuid.uuid4()), provider, amounts, "p", "u", group=None)
        )

    async def traits(self, provider: str) -> list[str]:
        def read(conn: sa.Connection) -> list[str]:
            return search.traits_of_provider(conn, find_provider(conn, provider).id)

        return await self.cells.api.read(read)

    async def placement_aggregates(self, provider: str) -> list[str]:
        def read(conn: sa.Connection) -> list[str]:
            return search.aggregates_of_provider(conn, find_provider(conn, provider).id)

        return await self.cells.api.read(read)

    def silence(self, cell: int) -> None:
        """From now on a cell does not answer."""
        name = self.all_cells[cell].name

        async def refuse(_fn: Any) -> Any:
            raise ServiceUnavailable(f"Cell {name} does not answer.")

        self.all_cells[cell].database.read = refuse  # type: ignore[method-assign]

    async def close(self) -> None:
        for cell in self.all_cells[1:]:
            await cell.database.close()
        await super().close()


@asynccontextmanager
async def resource_cloud(**arguments: Any) -> AsyncIterator[ResourceCloud]:
    cloud = ResourceCloud(**arguments)
    try:
        yield cloud
    finally:
        await cloud.close()
