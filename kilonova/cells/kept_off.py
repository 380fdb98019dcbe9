"""Hosts that get no new servers, by the records of their services: what the scheduler goes by."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from kilonova.cells.registry import Cell, Cells
from kilonova.db import services
from kilonova.domain.errors import ServiceUnavailable

PATIENCE = 1.0
"""Seconds that a decision waits for a cell."""

log = structlog.get_logger(__name__)


class KeptOffHosts:
    """Reads the records of all cells. Of a cell that cannot be read, or is slow, what was read last holds: it holds up
    no decision about hosts of others."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._known: dict[str, frozenset[str]] = {}
        self._late: set[str] = set()

    async def __call__(self) -> frozenset[str]:
        """Names of hosts whose service is disabled or forced down. Spec: HST-12."""
        await asyncio.gather(*(self._read(cell) for cell in self._cells.all if cell.name not in self._late))
        return frozenset[str]().union(*self._known.values())

    async def _read(self, cell: Cell) -> None:
        reading = asyncio.ensure_future(cell.database.read(services.hosts_kept_off))
        reading.add_done_callback(partial(self._note, cell.name))
        _, late = await asyncio.wait({reading}, timeout=PATIENCE)
        if late:
            self._late.add(cell.name)  # until it answers, so that no more wait for it
            log.warning("records of services not read in time", cell=cell.name)
        elif not isinstance(reading.exception(), ServiceUnavailable):
            reading.result()  # what is a defect is raised

    def _note(self, cell: str, reading: asyncio.Future[list[str]]) -> None:
        self._late.discard(cell)
        if reading.cancelled():
            return
        error = reading.exception()
        if error is None:
            self._known[cell] = frozenset(reading.result())
        elif isinstance(error, ServiceUnavailable):
            log.warning("records of services not read", cell=cell, error=str(error))
        else:
            log.error("records of services not read", cell=cell, exc_info=error)
