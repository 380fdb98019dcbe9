"""The outbox: notifications that are still to be delivered, in the database of the change that they tell of.

A notification is written in the transaction of that change, one row for each sink, and removed when the sink has taken
it. Rows about one subject are written by one transaction after the other, so the order of their numbers is the order
of the changes. Whoever has the lease of a sink delivers to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Json, Timestamp
from kilonova.db.prepared import Prepared
from kilonova.db.upsert import insert_new
from kilonova.domain.notification import Listeners, Notification

OPTION = "kilonova_listeners"
"""Name of the execution option under which connections carry their listeners."""


def listeners(conn: sa.Connection) -> Listeners | None:
    """Who is to be told of what this connection changes; None if nobody is."""
    found: Listeners | None = conn.get_execution_options().get(OPTION)
    return found


class Pending(NamedTuple):
    """A notification that waits for its sink. id: grows with the order."""

    id: int
    message: Notification


class SinkState(NamedTuple):
    """How the deliveries to a sink go.

    Args:
        pending: notifications that wait. oldest: since when the first of them does, in seconds since the epoch.
        dropped: how many were given up because they became too old. error: what went wrong last, "" if nothing does.
    """

    sink: str
    pending: int
    oldest: float | None
    dropped: int
    error: str


def _tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    prefix = "" if metadata is cell_metadata else "api_"
    rows = sa.Table(
        f"{prefix}notifications",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("sink", sa.String(32), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("message", Json(Notification), nullable=False),
        sa.Index(f"{prefix}notifications_sink", "sink", "id"),
        sa.Index(f"{prefix}notifications_created", "created_at"),
        sqlite_autoincrement=True,  # a number is never given again: it is the order
    )
    sinks = sa.Table(
        f"{prefix}notification_sinks",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(32), nullable=False, unique=True),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_until", Timestamp),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
    )
    return rows, sinks


class Outbox:
    """The statements over one outbox. Every method runs inside a unit of work."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self.rows, self.sinks = _tables(metadata)
        r, s = self.rows, self.sinks
        self._add = Prepared(
            sa.insert(r).values({n: sa.bindparam(n) for n in ("sink", "subject", "created_at", "message")})
        )
        self._any = Prepared(sa.select(r.c.id).where(r.c.sink == sa.bindparam("sink")).limit(sa.literal_column("1")))
        self._other = Prepared(sa.select(s.c.id).where(
            s.c.name == sa.bindparam("sink"), s.c.lease_owner != sa.bindparam("owner"),
            s.c.lease_until > sa.bindparam("now"),
        ))
        self._lease = Prepared(
            sa.update(s)
            .where(s.c.name == sa.bindparam("b_name"), sa.or_(
                s.c.lease_owner == sa.bindparam("owner"), s.c.lease_until.is_(None),
                s.c.lease_until <= sa.bindparam("now"),
            ))
            .values(lease_owner=sa.bindparam("owner"), lease_until=sa.bindparam("until"))
        )

    # --- writing ---------------------------------------------------------------------------------

    def add(self, conn: sa.Connection, message: Notification, sinks: Sequence[str], now: float) -> None:
        """Keep a notification for each of the sinks."""
        for sink in sinks:
            self._add.run(conn, sink=sink, subject=message.subject, created_at=now, message=message)

    # --- delivering ------------------------------------------------------------------------------

    def waits(self, conn: sa.Connection, sink: str, owner: str, now: float) -> bool:
        """Whether anything is to be delivered to the sink, and nobody else does that."""
        if self._any.first(conn, sink=sink) is None:
            return False
        return self._other.first(conn, sink=sink, owner=owner, now=now) is None

    def lease(self, conn: sa.Connection, sink: str, owner: str, *, now: float, until: float) -> bool:
        """Have a sink to oneself until then, or go on having it. Returns False if another has it."""
        if self._lease.run(conn, b_name=sink, owner=owner, now=now, until=until):
            return True
        new = {"name": sink, "lease_owner": owner, "lease_until": until, "dropped": 0, "error": ""}
        return insert_new(conn, self.sinks, new) is not None

    def expire_leases(self, conn: sa.Connection) -> None:
        """Free every lease: for a process that knows it is the only one (one-machine mode)."""
        conn.execute(sa.update(self.sinks).values(lease_until=None))

    def pending(
        self, conn: sa.Connection, sink: str, *, without: Collection[str], count: int
    ) -> list[Pending]:
        """What waits for a sink, oldest first. without: subjects that are not to be delivered now."""
        r = self.rows
        query = sa.select(r.c.id, r.c.message).where(r.c.sink == sink).order_by(r.c.id).limit(count)
        if without:
            query = query.where(r.c.subject.not_in(sorted(without)))
        return [Pending(*row) for row in conn.execute(query)]

    def settle(self, conn: sa.Connection, sink: str, owner: str, delivered: Collection[int], error: str) -> bool:
        """Forget what was delivered, and note how it went. Returns False, and changes nothing, if the lease is lost:
        then it is delivered again."""
        s, r = self.sinks, self.rows
        held = conn.execute(
            sa.update(s).where(s.c.name == sink, s.c.lease_owner == owner).values(error=error)
        ).rowcount
        if held and delivered:
            conn.execute(sa.delete(r).where(r.c.id.in_(sorted(delivered))))
        return bool(held)

    def give_up(self, conn: sa.Connection, before: float) -> dict[str, int]:
        """Drop what has waited since before then. Returns how many, by sink."""
        r, s = self.rows, self.sinks
        old = sa.select(r.c.sink, sa.func.count()).where(r.c.created_at < before).group_by(r.c.sink)
        dropped = {row[0]: int(row[1]) for row in conn.execute(old)}
        if dropped:
            conn.execute(sa.delete(r).where(r.c.created_at < before))
        for sink, count in dropped.items():
            conn.execute(sa.update(s).where(s.c.name == sink).values(dropped=s.c.dropped + count))
        return dropped

    def abandoned(self, conn: sa.Connection, before: float) -> list[str]:
        """Sinks for which something has waited since before then, and to which no process has delivered since. A
        process that has a sink takes its lease at least once a minute while something waits."""
        r, s = self.rows, self.sinks
        served = sa.select(s.c.name).where(s.c.lease_until >= before)
        query = sa.select(r.c.sink).where(r.c.created_at < before, r.c.sink.not_in(served))
        return list(conn.execute(query.distinct().order_by(r.c.sink)).scalars())

    def abandon(self, conn: sa.Connection, sink: str, before: float) -> None:
        """Drop what has waited since before then for a sink that is still abandoned."""
        if sink in self.abandoned(conn, before):
            conn.execute(sa.delete(self.rows).where(self.rows.c.sink == sink, self.rows.c.created_at < before))

    def states(self, conn: sa.Connection) -> list[SinkState]:
        """How the deliveries go, of every sink that has ever had one."""
        r, s = self.rows, self.sinks
        query = (
            sa.select(s.c.name, sa.func.count(r.c.id), sa.func.min(r.c.created_at), s.c.dropped, s.c.error)
            .outerjoin(r, r.c.sink == s.c.name).group_by(s.c.name, s.c.dropped, s.c.error).order_by(s.c.name)
        )
        return [SinkState(*row) for row in conn.execute(query)]


api_outbox = Outbox(api_metadata)
cell_outbox = Outbox(cell_metadata)
