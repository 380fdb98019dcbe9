"""Forgetting console tokens that have expired: they let nobody in any more, and would pile up."""

from __future__ import annotations

import asyncio

import structlog

from kilonova.db import console_tokens
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError

log = structlog.get_logger(__name__)

INTERVAL = 300.0
"""Seconds."""


class TokenExpiry:
    """Removes expired tokens of a cell, batch by batch, as long as the process lives.

    Spec: PER-110, PER-111, CON-23.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(INTERVAL)
            try:
                await self._remove()
            except KilonovaError as error:
                log.warning("expired console tokens not removed", error=str(error))

    async def _remove(self) -> None:
        now = self._clock.now()
        removed = console_tokens.BATCH
        while removed == console_tokens.BATCH:
            removed = await self._database.write(lambda conn: console_tokens.remove_expired(conn, now=now))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
