"""Delivering the notifications of an outbox: at least once, and those about one object in their order.

Each sink goes its own way: one that is slow or away holds up no other, and nothing else. Of all processes one has the
lease of a sink and delivers to it; it sends nothing that could outlast the lease. What was delivered is removed
afterwards, so that a process that dies in between leaves it to be delivered again, with the same message ID.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

import sqlalchemy as sa
import structlog

from kilonova.db.database import Database
from kilonova.db.outbox import Outbox, Pending
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.notifications.sinks import Refused, Sink

log = structlog.get_logger(__name__)

POLL = 0.25
"""Seconds between looks into the outbox while nothing is there."""
BATCH = 256
"""Notifications that are read at once."""
AT_ONCE = 16
"""Objects whose notifications are sent at the same time."""
SEND_LIMIT = 5.0
"""Seconds that a sink may take for one notification."""
TTL = 20.0
"""Seconds that the lease of a sink lasts."""
MARGIN = 4.0
"""Seconds by which the clocks of processes may differ."""
MOST_BLOCKED = 500
"""Objects that a sink may refuse to hear of before it counts as away."""
LONGEST_PAUSE = 60.0
FIRST_PAUSE = 0.5
PURGE_INTERVAL = 300.0
"""Seconds between looks for what is too old."""


class Backoff:
    """Growing pauses. until: when the next attempt may be made, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._failures = 0
        self.until = 0.0

    def fail(self, now: float, random: Random) -> None:
        pause = min(FIRST_PAUSE * 2 ** min(self._failures, 10), LONGEST_PAUSE) * (0.75 + random.random() / 2)
        self._failures += 1
        self.until = now + pause


class Deliverer:
    """Empties one outbox into sinks, as long as the process lives.

    Args:
        sinks: by name. owner: of leases; unique among processes, new at every start.
        retention: seconds after which a notification that is not taken is given up.
        alone: no other process can have leases (one-machine mode).
        poll: seconds between two looks into the outbox.
    """

    def __init__(
        self, database: Database, outbox: Outbox, sinks: Mapping[str, Sink], clock: Clock, random: Random, owner: str,
        *, retention: float, alone: bool = False, poll: float = POLL,
    ) -> None:
        self._database = database
        self._outbox = outbox
        self._clock = clock
        self._random = random
        self._owner = owner
        self._retention = retention
        self._alone = alone
        self._poll = poll
        self._ways = [_Way(name, sink) for name, sink in sinks.items()]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        if not self._ways:
            return
        if self._alone:
            await self._database.write(self._outbox.expire_leases)
        self._tasks = [asyncio.create_task(self._serve(way)) for way in self._ways]
        self._tasks.append(asyncio.create_task(self._purge()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self._ways:
            await way.sink.close()

    # --- one sink --------------------------------------------------------------------------------

    async def _serve(self, way: _Way) -> None:
        while True:
            more = False
            try:
                more = await self._round(way)
            except KilonovaError as error:
                log.warning("notifications not delivered", sink=way.name, error=str(error))
            if not more:
                now = self._clock.monotonic()
                await self._clock.sleep(max(self._poll, way.backoff.until - now if way.away else 0.0))

    async def _round(self, way: _Way) -> bool:
        """Deliver what waits. Returns whether there may be more."""
        now, monotonic = self._clock.now(), self._clock.monotonic()
        if not await self._database.read(lambda conn: self._outbox.waits(conn, way.name, self._owner, now)):
            return False
        way.end = monotonic + TTL - SEND_LIMIT - MARGIN
        blocked = way.still_blocked(monotonic)
        found = await self._database.write(partial(self._take, way.name, blocked, now))
        if not found:
            return False
        delivered, error = await self._deliver(way, found)
        settled = await self._database.write(
            lambda conn: self._outbox.settle(conn, way.name, self._owner, delivered, error)
        )
        return settled and bool(delivered) and not way.away

    def _take(self, name: str, blocked: Sequence[str], now: float, conn: sa.Connection) -> list[Pending]:
        """Nothing if another process delivers to the sink."""
        if not self._outbox.lease(conn, name, self._owner, now=now, until=now + TTL):
            return []
        return self._outbox.pending(conn, name, without=blocked, count=BATCH)

    async def _deliver(self, way: _Way, found: Sequence[Pending]) -> tuple[list[int], str]:
        """Returns the numbers of what was delivered, and what went wrong."""
        by_subject: dict[str, list[Pending]] = defaultdict(list)
        for pending in found:
            by_subject[pending.message.subject].append(pending)
        waiting = list(reversed(by_subject.values()))
        delivered: list[int] = []
        way.trouble = ""
        was_away, way.away = way.away, False

        async def work() -> None:
            while waiting and not way.away:
                for pending in waiting.pop():
                    if way.away or self._clock.monotonic() > way.end or not await self._send(way, pending):
                        break
                    delivered.append(pending.id)

        async with asyncio.TaskGroup() as group:
            for _ in range(1 if was_away else min(AT_ONCE, len(waiting))):
                group.create_task(work())
        if way.away:
            way.backoff.fail(self._clock.monotonic(), self._random)
            if not was_away:
                log.warning("sink of notifications is away", sink=way.name, error=way.trouble)
        elif was_away:
            way.backoff = Backoff()
            log.info("sink of notifications is back", sink=way.name)
        return delivered, way.trouble

    async def _send(self, way: _Way, pending: Pending) -> bool:
        message = pending.message
        try:
            async with asyncio.timeout(SEND_LIMIT):
                await way.sink.send(message)
        except Refused as error:
            way.trouble = str(error)
            backoff = way.blocked.setdefault(message.subject, Backoff())
            backoff.fail(self._clock.monotonic(), self._random)
            way.away = len(way.blocked) > MOST_BLOCKED
            log.warning("notification refused", sink=way.name, event_type=message.event_type,
                        message_id=message.message_id, error=str(error))
            return False
        except Exception as error:  # noqa: BLE001 - whatever a sink raises, it is tried again
            way.trouble = str(error) or type(error).__name__
            way.away = True
            return False
        way.blocked.pop(message.subject, None)
        return True

    # --- what is too old -------------------------------------------------------------------------

    async def _purge(self) -> None:
        while True:
            before = self._clock.now() - self._retention
            try:
                dropped = await self._database.write(partial(self._outbox.give_up, before=before))
            except KilonovaError as error:
                log.warning("old notifications not removed", error=str(error))
            else:
                for sink, count in dropped.items():
                    log.error("notifications given up", sink=sink, count=count, retention=self._retention)
            await self._clock.sleep(PURGE_INTERVAL)


class _Way:
    """How deliveries to one sink go. end: when sending stops, so that it does not outlast the lease."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self.sink = sink
        self.away = False
        self.trouble = ""
        self.end = 0.0
        self.backoff = Backoff()
        self.blocked: dict[str, Backoff] = {}

    def still_blocked(self, now: float) -> list[str]:
        """Objects of which the sink is not to be told yet. One that was not tried again has nothing left to tell."""
        self.blocked = {s: backoff for s, backoff in self.blocked.items() if backoff.until > now - LONGEST_PAUSE}
        return [subject for subject, backoff in self.blocked.items() if backoff.until > now]
