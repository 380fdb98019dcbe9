"""The sign of life of a control process, by which operators see that it runs."""

from __future__ import annotations

import asyncio

import sqlalchemy as sa
import structlog

import kilonova
from kilonova.db import services
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import Asker
from kilonova.notifications.changes import tell_service

log = structlog.get_logger(__name__)

INTERVAL = 10.0


class Heartbeat:
    """Records every few seconds that a process lives.

    Args:
        database: that of the cell whose service records tell it. binary: as OpenStack calls such a process.
        name: of the process, `ID@HOST`.
    """

    def __init__(self, database: Database, clock: Clock, binary: str, name: str) -> None:
        self._database = database
        self._clock = clock
        self._binary = binary
        self._host = name.rsplit("@", 1)[-1]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while True:
            try:
                await self._database.write(self._record)
            except KilonovaError as error:
                log.warning("no sign of life recorded", binary=self._binary, error=str(error))
            await self._clock.sleep(INTERVAL)

    def _record(self, conn: sa.Connection) -> None:
        now = self._clock.now()
        new = services.seen(conn, self._binary, self._host, version=kilonova.__version__, now=now)
        if new is not None:
            tell_service(conn, "create", new, now=now, asker=Asker())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
