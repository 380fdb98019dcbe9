"""Forgetting console tokens that have expired: they let nobody in any more, and would pile up."""

from __future__ import annotations

from kilonova.db import console_tokens
from kilonova.db.database import Database
from kilonova.domain.clock import Clock


async def forget_expired_tokens(database: Database, clock: Clock) -> None:
    """Remove the expired tokens of a cell, batch by batch. Spec: PER-110, PER-111, CON-23."""
    now = clock.now()
    removed = console_tokens.BATCH
    while removed == console_tokens.BATCH:
        removed = await database.write(lambda conn: console_tokens.remove_expired(conn, now=now))
