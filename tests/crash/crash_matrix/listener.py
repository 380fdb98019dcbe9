"""Somebody who listens to a cloud that is killed: what he has heard stands in a file."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import msgspec
import sqlalchemy as sa

from crash_matrix.clock import FastClock
from kilonova.db.database import Database
from kilonova.db.outbox import OPTION, Outbox, api_outbox, cell_outbox
from kilonova.domain.notification import Listeners, Notification
from kilonova.notifications.deliverer import Deliverer

NAME = "listener"
TOLD: dict[str, Any] = {OPTION: Listeners(sinks=(NAME,), host="here")}
"""What the connections of a cloud carry in which he listens."""
RETENTION = 10 * 86400.0

_decode = msgspec.json.Decoder(Notification).decode


class Listener:
    """Args: directory: of the cloud."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "heard"

    def deliverer(self, database: Database, outbox: Outbox, clock: FastClock, random: Random, owner: str) -> Deliverer:
        return Deliverer(
            database, outbox, {NAME: self}, clock, random, owner, retention=RETENTION, alone=True
        )

    async def send(self, message: Notification) -> None:
        with self._file.open("ab") as file:
            file.write(msgspec.json.encode(message) + b"\n")

    async def close(self) -> None:
        return None

    def heard(self) -> list[Notification]:
        """In the order in which it came, in all lives."""
        if not self._file.exists():
            return []
        return [_decode(line) for line in self._file.read_bytes().splitlines()]


async def waiting(api: Database, cell: Database) -> int:
    """How many notifications are still to be delivered."""
    found = 0
    for database, outbox in ((api, api_outbox), (cell, cell_outbox)):
        count = sa.select(sa.func.count()).select_from(outbox.rows)
        found += await database.read(lambda conn, count=count: conn.execute(count).scalar())
    return found
