"""The scheduler: keeps its view of the hosts up to date and decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

import sqlalchemy as sa
import structlog

from kilonova.db.database import Database
from kilonova.db.placement.changes import Changes, locate, read_changes
from kilonova.domain import tracing
from kilonova.domain.clock import Clock
from kilonova.domain.errors import NoValidHost
from kilonova.domain.grouping import Aggregate, ServerGroup
from kilonova.domain.instance import RequestSpec
from kilonova.scheduler.decision import NoHostLeft, Preferences, Selection, decide, refusals
from kilonova.scheduler.demand import Demand, demand_of, servers_of_interest
from kilonova.scheduler.observed import Nobody, Observer
from kilonova.scheduler.view import HostView

log = structlog.get_logger(__name__)

FIRST_REPORTS = 45.0
"""Seconds after its start within which a scheduler believes that a silent host may still report: after an outage of the
whole cloud all of them are silent."""
HOLD_LIMIT = 5.0
"""Seconds after which a promised but never claimed host counts as free again."""


class Groupings(Protocol):
    """Where the scheduler learns of aggregates and server groups. Units of work on the API database."""

    def aggregates(self, connection: sa.Connection) -> Sequence[Aggregate]:
        """All host aggregates."""
        ...

    def server_group(self, connection: sa.Connection, uuid: str) -> ServerGroup | None:
        """The group with its members, or None if there is none any more."""
        ...


class NoGroupings:
    """A cloud without aggregates and server groups."""

    def aggregates(self, connection: sa.Connection) -> Sequence[Aggregate]:
        return ()

    def server_group(self, connection: sa.Connection, uuid: str) -> ServerGroup | None:
        return None


async def _none() -> frozenset[str]:
    return frozenset()


class Scheduler:
    """Chooses hosts. Several may run beside each other: what they choose is confirmed by `placement.claim`.

    Args:
        db: the API database. random: makes the choice among equally good hosts.
        kept_off: reads which hosts get no new servers, whatever placement says of them.
        service_down_time: seconds of silence after which a host counts as dead.
        default_zone: zone of hosts that are in none. observer: counts decisions.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        random: Random,
        *,
        groupings: Groupings | None = None,
        kept_off: Callable[[], Awaitable[frozenset[str]]] = _none,
        preferences: Preferences | None = None,
        service_down_time: float = 60.0,
        default_zone: str = "nova",
        observer: Observer | None = None,
    ) -> None:
        self._db = db
        self._clock = clock
        self._random = random
        self._groupings = groupings or NoGroupings()
        self._kept_off = kept_off
        self._preferences = preferences or Preferences()
        self._service_down_time = service_down_time
        self._default_zone = default_zone
        self._observer = observer or Nobody()
        self._began = clock.now()
        self._lock = asyncio.Lock()
        self.view = HostView()

    async def select(self, spec: RequestSpec, *, count: int = 1, alternates: int = 0) -> list[Selection]:
        """Choose a host for each of `count` equal servers, in the order of their launch index.

        The caller claims the resources of each selection in the transaction that records the choice; when a
        claim is refused it tries the alternates, then asks again.

        Args:
            alternates: how many further hosts to name for each.

        Raises:
            NoHostLeft: no host can take one of them. InvalidInput: the flavor contradicts itself.
        """
        while True:
            began = self._clock.monotonic()
            try:
                with tracing.span("scheduler: choose hosts", kilonova__servers=count) as span:
                    chosen = await self._select(spec, count, alternates)
                    first = chosen[0]
                    span.note(
                        kilonova__host=first.host, kilonova__hosts=first.considered,
                        kilonova__candidates=first.candidates,
                    )
            except NoHostLeft as error:
                if not self._may_report():
                    self._observer.decided(self._clock.monotonic() - began, error.left[0][1], 0, error.refused_by)
                    raise
            else:
                self._observer.decided(self._clock.monotonic() - began, first.considered, first.candidates, "")
                return chosen
            await self._clock.sleep(1.0)

    def _may_report(self) -> bool:
        """Whether a host is silent that may just not have reported yet."""
        now = self._clock.now()
        silent = self.view.alive & (self.view.seen_at < now - self._service_down_time)
        return now < self._began + FIRST_REPORTS and bool(silent.any())

    async def _select(self, spec: RequestSpec, count: int, alternates: int) -> list[Selection]:
        demand = await self._refresh(spec)
        try:
            return self._decide(demand, count, alternates)
        except NoHostLeft as error:
            if not self.view.forget_holds(before=float("inf")):
                log.info("no valid host", instance=spec.instance_uuid, count=count, left=error.left)
                raise
        demand = await self._refresh(spec)  # what was promised may never be claimed: it must not refuse anyone
        return self._decide(demand, count, alternates)

    async def check_image(self, spec: RequestSpec, host: str) -> None:
        """Whether a host can run a server that is there from the image that its request names now.

        Raises:
            NoValidHost: which filters forbid it. InvalidInput: flavor and image contradict each other.
        """
        demand = await self._refresh(spec)
        found = refusals(self.view, demand, host)
        if found:
            raise NoValidHost(f"Host {host} cannot run image {spec.image.id}: {', '.join(found)} forbids it.")

    def _decide(self, demand: Demand, count: int, alternates: int) -> list[Selection]:
        return decide(
            self.view, demand, count=count, alternates=alternates, random=self._random, preferences=self._preferences
        )

    async def _refresh(self, spec: RequestSpec) -> Demand:
        """Bring the view up to date and read what else this request depends on, in one snapshot of its database."""
        kept_off = await self._kept_off()
        async with self._lock:
            since = self.view.since

            def read(
                connection: sa.Connection,
            ) -> tuple[Changes, Sequence[Aggregate], ServerGroup | None, list[tuple[str, str]]]:
                group = self._groupings.server_group(connection, spec.server_group) if spec.server_group else None
                servers = servers_of_interest(spec, group)
                return (
                    read_changes(connection, since),
                    self._groupings.aggregates(connection),
                    group,
                    locate(connection, servers) if servers else [],
                )

            changes, aggregates, group, located = await self._db.read(read)
            self.view.apply(changes)
        now = self._clock.now()
        self.view.forget_holds(before=now - HOLD_LIMIT)
        return demand_of(
            spec,
            group=group,
            located=located,
            kept_off=kept_off,
            aggregates=aggregates,
            now=now,
            service_down_time=self._service_down_time,
            default_zone=self._default_zone,
        )
