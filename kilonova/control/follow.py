"""Following operations as they happen: every change of any of them, from whichever process it came."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from kilonova.control.documents import OperationView
from kilonova.control.journals import Journals
from kilonova.control.views import view
from kilonova.domain.clock import Clock

POLL = 0.2
"""Seconds between looks at the journals while somebody follows them."""

OVERLAP = 5.0
"""Seconds by which looks overlap: a transaction may become visible later than the time it carries."""

MOST = 2000
"""Active operations of one journal that are followed at once."""


class Follower:
    """One listener. Changes of one operation that happen between two looks arrive as one."""

    def __init__(self, journals: Journals, clock: Clock, closing: asyncio.Event) -> None:
        self._journals = journals
        self._clock = clock
        self._closing = closing
        self._known: dict[str, dict[str, float]] = {journal.name: {} for journal in journals.all}
        self._looked = clock.now()

    async def begin(self) -> list[OperationView]:
        """The operations that are active now; what `changes` tells comes after."""
        return await self._look(first=True)

    async def changes(self) -> AsyncIterator[list[OperationView]]:
        """What has changed, again and again; an empty list tells that nothing has. Ends when the API closes."""
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._closing.wait()
                    return
            yield await self._look()

    async def _look(self, *, first: bool = False) -> list[OperationView]:
        since, self._looked = self._looked - OVERLAP, self._clock.now()
        changed: list[OperationView] = []
        for journal in self._journals.all:
            known = self._known[journal.name]
            stamps = await journal.stamps(self._looked if first else since, MOST)
            ids = {id_ for id_, at in stamps.items() if known.get(id_) != at} | (known.keys() - stamps.keys())
            rows = await journal.with_ids(ids)
            # One that has ended is remembered as long as later looks still see it as newly begun.
            self._known[journal.name] = stamps
            for row in rows:
                if known.get(row.record.id) != row.record.updated_at:
                    changed.append(view(journal, row))
        changed.sort(key=lambda one: one.updated_at)
        return changed
