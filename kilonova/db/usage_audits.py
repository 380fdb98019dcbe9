"""Audits of usage, by host and period: how many servers are to be told of, and which of them still are.

The servers of all hosts are listed in one transaction when a period has ended, so that one that moves afterwards is
told of by the host that it was on then. Spec: PER-59, PER-60, PER-64, PER-65.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Timestamp, Uuid
from kilonova.db.instances import instances
from kilonova.db.upsert import insert_new

audits = sa.Table(
    "usage_audits",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("period_begin", Timestamp, nullable=False),
    sa.Column("period_end", Timestamp, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("instances", sa.Integer, nullable=False),
    sa.Column("errors", sa.Integer, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("started_at", Timestamp, nullable=False),
    sa.UniqueConstraint("period_begin", "period_end", "host"),
    sa.Index("usage_audits_state", "state"),
)

listed = sa.Table(
    "usage_audit_instances",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("audit_id", sa.Integer, nullable=False),
    sa.Column("instance_uuid", Uuid, nullable=False),
    sa.Index("usage_audit_instances_audit", "audit_id", "id"),
)

RUNNING, DONE = "RUNNING", "DONE"


class UsageAudit(msgspec.Struct, frozen=True, kw_only=True):
    """The audit of a host. Times in seconds since the epoch. instances: servers that it lists. errors: of how many
    of them nobody could be told."""

    id: int
    host: str
    period_begin: float
    period_end: float
    state: str
    instances: int
    errors: int
    message: str
    started_at: float


def of_period(conn: sa.Connection, begin: float, end: float) -> list[UsageAudit]:
    """The audits of a period, by host."""
    query = sa.select(audits).where(audits.c.period_begin == begin, audits.c.period_end == end)
    return [UsageAudit(**row) for row in conn.execute(query.order_by(audits.c.host)).mappings()]


def unfinished(conn: sa.Connection) -> list[int]:
    """Numbers of audits that run, whoever began them, of any period."""
    query = sa.select(audits.c.id).where(audits.c.state == RUNNING).order_by(audits.c.period_begin, audits.c.id)
    return list(conn.execute(query).scalars())


def begin(conn: sa.Connection, hosts: Sequence[str], period: tuple[float, float], *, now: float) -> None:
    """Begin the audits of hosts that have none of this period: list the servers that were active in it."""
    since, until = period
    i = instances.c
    for host in hosts:
        row = {
            "host": host, "period_begin": since, "period_end": until, "state": RUNNING, "instances": 0, "errors": 0,
            "message": "", "started_at": now,
        }
        number = insert_new(conn, audits, row)
        if number is None:
            continue
        active = sa.select(sa.literal(number), i.uuid).where(
            i.host == host, i.launched_at < until, sa.or_(i.deleted_at.is_(None), i.deleted_at > since),
        )
        conn.execute(sa.insert(listed).from_select(["audit_id", "instance_uuid"], active))
        of_audit = sa.select(sa.func.count()).select_from(listed).where(listed.c.audit_id == number)
        count = conn.execute(of_audit).scalar()
        message = f"Usage of {count} servers on {host} is to be told."
        conn.execute(sa.update(audits).where(audits.c.id == number).values(instances=count, message=message))


def hold(conn: sa.Connection, number: int) -> UsageAudit | None:
    """An audit that runs, kept from others until the end of the transaction; None if it has ended."""
    query = sa.select(audits).where(audits.c.id == number, audits.c.state == RUNNING).with_for_update()
    row = conn.execute(query).mappings().first()
    return None if row is None else UsageAudit(**row)


def untold(conn: sa.Connection, number: int, count: int) -> dict[int, str]:
    """The next servers of an audit: UUIDs by the number in its list."""
    query = sa.select(listed.c.id, listed.c.instance_uuid).where(listed.c.audit_id == number)
    return {row[0]: row[1] for row in conn.execute(query.order_by(listed.c.id).limit(count))}


def told(conn: sa.Connection, number: int, done: Collection[int], *, errors: int) -> None:
    """These entries of its list are done, as many of them with an error."""
    conn.execute(sa.delete(listed).where(listed.c.id.in_(sorted(done))))
    if errors:
        conn.execute(sa.update(audits).where(audits.c.id == number).values(errors=audits.c.errors + errors))


def forget(conn: sa.Connection, before: float) -> int:
    """Remove the audits that are done of periods that had ended by then. Returns how many."""
    a = audits.c
    old = sa.delete(audits).where(a.state == DONE, a.period_begin < before, a.period_end <= before)
    return conn.execute(old).rowcount


def end(conn: sa.Connection, number: int, message: str) -> None:
    conn.execute(sa.update(audits).where(audits.c.id == number).values(state=DONE, message=message))
