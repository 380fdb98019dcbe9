"""Metrics that are read from the databases when they are asked for."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db import services
from kilonova.db.database import Database
from kilonova.db.instances import instances
from kilonova.db.journal import Journal, api_journal, cell_journal
from kilonova.db.outbox import Outbox, api_outbox, cell_outbox
from kilonova.db.placement.tables import hosts, inventories
from kilonova.domain.clock import Clock
from kilonova.domain.operation import DRIVEN, TERMINAL
from kilonova.metrics.measures import Metrics


class Readings:
    """Args: cell: name of the cell. down_time: seconds of silence after which a host counts as down."""

    def __init__(
        self, metrics: Metrics, api: Database, cell_database: Database, cell: str, clock: Clock, *, down_time: float
    ) -> None:
        self._metrics = metrics
        self._api = api
        self._cell_database = cell_database
        self._cell = cell
        self._clock = clock
        self._down_time = down_time

    async def refresh(self) -> None:
        """Read them anew. Raises ServiceUnavailable."""
        metrics = self._metrics
        for gauge in (
            metrics.unfinished, metrics.due, metrics.leases, metrics.host_up, metrics.host_servers,
            metrics.host_capacity, metrics.host_used,
            metrics.told_pending, metrics.told_oldest, metrics.told_dropped,
        ):
            gauge.clear()
        now = self._clock.now()
        await self._api.read(lambda conn: self._journal(conn, "api", api_journal, api_outbox, now))
        await self._api.read(self._resources)
        await self._cell_database.read(lambda conn: self._journal(conn, self._cell, cell_journal, cell_outbox, now))
        await self._cell_database.read(lambda conn: self._hosts(conn, now))

    def _journal(self, conn: sa.Connection, name: str, journal: Journal, outbox: Outbox, now: float) -> None:
        t = journal.operations
        unfinished = t.c.state.not_in([state.value for state in TERMINAL])
        counts = sa.select(t.c.state, sa.func.count()).where(unfinished).group_by(t.c.state)
        for state, count in conn.execute(counts):
            self._metrics.unfinished.labels(name, state).set(count)
        driven = t.c.state.in_([state.value for state in DRIVEN])
        held = sa.and_(driven, t.c.lease_until > now)
        due = sa.select(sa.func.count()).where(
            driven, t.c.wake_at <= now, sa.or_(t.c.lease_until.is_(None), t.c.lease_until <= now)
        )
        self._metrics.due.labels(name).set(conn.execute(due).scalar_one())
        for owner, count in conn.execute(sa.select(t.c.lease_owner, sa.func.count()).where(held)
                                         .group_by(t.c.lease_owner)):
            self._metrics.leases.labels(name, owner.rpartition("@")[2]).set(count)
        for sink in outbox.states(conn):
            self._metrics.told_pending.labels(name, sink.sink).set(sink.pending)
            self._metrics.told_oldest.labels(name, sink.sink).set(now - sink.oldest if sink.oldest else 0.0)
            self._metrics.told_dropped.labels(name, sink.sink).set(sink.dropped)

    def _resources(self, conn: sa.Connection) -> None:
        """Of all nodes of a host together."""
        query = (
            sa.select(hosts.c.host, inventories.c.resource_class, sa.func.sum(inventories.c.capacity),
                      sa.func.sum(inventories.c.used))
            .join(inventories, inventories.c.provider_id == hosts.c.provider_id)
            .group_by(hosts.c.host, inventories.c.resource_class)
        )
        for host, resource, capacity, used in conn.execute(query):
            self._metrics.host_capacity.labels(host, resource).set(capacity)
            self._metrics.host_used.labels(host, resource).set(used)

    def _hosts(self, conn: sa.Connection, now: float) -> None:
        for service in services.all_services(conn, binary=services.COMPUTE):
            self._metrics.host_up.labels(service.host).set(service.up(now, self._down_time))
        counts = (
            sa.select(instances.c.host, instances.c.vm_state, sa.func.count())
            .where(instances.c.host.is_not(None), instances.c.deleted_at.is_(None))
            .group_by(instances.c.host, instances.c.vm_state)
        )
        for host, state, count in conn.execute(counts):
            self._metrics.host_servers.labels(host, state).set(count)
