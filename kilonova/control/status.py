"""What an installation is doing, in one answer."""

from __future__ import annotations

import sqlalchemy as sa

import kilonova
from kilonova.cells.registry import Cell, Cells
from kilonova.control.documents import HostStatus, Status
from kilonova.control.journals import Journals
from kilonova.db import build_requests, services
from kilonova.db.instances import instances
from kilonova.domain.clock import Clock


class StatusReader:
    """Reads the state of a cloud.

    Args:
        down_time: seconds of silence after which a host counts as down.
    """

    def __init__(self, cells: Cells, journals: Journals, clock: Clock, down_time: float) -> None:
        self._cells = cells
        self._journals = journals
        self._clock = clock
        self._down_time = down_time
        self._started_at = clock.now()

    async def read(self) -> Status:
        servers: dict[str, int] = {}
        operations: dict[str, int] = {}
        for cell in self._cells.all:
            _add(servers, await cell.database.read(_servers))
        waiting = await self._cells.api.read(
            lambda conn: conn.execute(sa.select(sa.func.count(build_requests.build_requests.c.uuid))).scalar_one()
        )
        _add(servers, {"waiting for a host": waiting} if waiting else {})
        for journal in self._journals.all:
            _add(operations, await journal.counts())
        return Status(
            version=kilonova.__version__, now=self._clock.now(), started_at=self._started_at, servers=servers,
            operations=operations, hosts=await self.hosts(),
        )

    async def hosts(self) -> tuple[HostStatus, ...]:
        """All compute hosts, by cell and name."""
        found: list[HostStatus] = []
        for cell in self._cells.all:
            found += await self._hosts_of(cell)
        return tuple(sorted(found, key=lambda host: (host.cell, host.host)))

    async def _hosts_of(self, cell: Cell) -> list[HostStatus]:
        now = self._clock.now()

        def read(conn: sa.Connection) -> list[HostStatus]:
            t = instances
            per_host = sa.select(t.c.host, sa.func.count()).where(t.c.deleted_at.is_(None)).group_by(t.c.host)
            servers: dict[str | None, int] = dict(conn.execute(per_host).all())
            nodes = {node.host: node.inventory for node in services.all_nodes(conn)}
            found = []
            for service in services.all_services(conn, binary=services.COMPUTE):
                node = nodes.get(service.host)
                found.append(HostStatus(
                    host=service.host, cell=cell.name, up=service.up(now, self._down_time), disabled=service.disabled,
                    disabled_reason=service.disabled_reason, version=service.version, seen_at=service.seen_at,
                    servers=servers.get(service.host, 0), vcpus=node.vcpus if node else 0,
                    memory_mib=node.memory_mib if node else 0, memory_free_mib=node.memory_free_mib if node else 0,
                    hypervisor=node.hypervisor_type if node else "",
                ))
            return found

        return await cell.database.read(read)


def _servers(conn: sa.Connection) -> dict[str, int]:
    t = instances
    query = sa.select(t.c.vm_state, sa.func.count()).where(t.c.deleted_at.is_(None)).group_by(t.c.vm_state)
    return dict(conn.execute(query).all())


def _add(total: dict[str, int], more: dict[str, int]) -> None:
    for name, number in more.items():
        total[name] = total.get(name, 0) + number
