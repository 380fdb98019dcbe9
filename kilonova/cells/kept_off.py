"""Hosts that get no new servers, by the records of their services: what the scheduler goes by."""

from __future__ import annotations

import asyncio

import structlog

from kilonova.cells.registry import Cell, Cells
from kilonova.db import services
from kilonova.domain.errors import ServiceUnavailable

log = structlog.get_logger(__name__)


class KeptOffHosts:
    """Reads the records of all cells. Of a cell that cannot be read, what was read last holds."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._known: dict[str, frozenset[str]] = {}

    async def __call__(self) -> frozenset[str]:
        """Names of hosts whose service is disabled or forced down. Spec: HST-12."""
        await asyncio.gather(*(self._read(cell) for cell in self._cells.all))
        return frozenset[str]().union(*self._known.values())

    async def _read(self, cell: Cell) -> None:
        try:
            self._known[cell.name] = frozenset(await cell.database.read(services.hosts_kept_off))
        except ServiceUnavailable as error:
            log.warning("records of services not read", cell=cell.name, error=str(error))
