"""The journal of operations: one row each, in the API database, in every cell database, and in that of the volumes.

A row is a document (`body`) that only the holder of the lease rewrites, always guarded by its epoch. The columns
beside it are for looking things up, except four that others may write: `cancel`, `wake_at` and the lease.
`slot` equals the subject while the operation has the subject to itself; its unique index is what makes two
exclusive operations on one subject impossible.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import Fenced
from kilonova.domain.operation import DRIVEN, TERMINAL, ExternalEvent, OperationRecord, OperationState


def _tables(metadata: sa.MetaData, name: str) -> tuple[sa.Table, sa.Table]:
    operations = sa.Table(
        name,
        metadata,
        sa.Column("id", Uuid, primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("subject", Uuid, nullable=False),
        sa.Column("slot", Uuid, unique=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("host", sa.String(255)),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("cancel", sa.Text),
        sa.Column("wake_at", Timestamp),
        sa.Column("lease_owner", sa.String(64)),
        sa.Column("lease_epoch", sa.Integer, nullable=False),
        sa.Column("lease_until", Timestamp),
        sa.Column("created_at", Timestamp, nullable=False),
        sa.Column("updated_at", Timestamp, nullable=False),
        sa.Column("body", Json(OperationRecord), nullable=False),
    )
    prefix = operations.name
    sa.Index(f"{prefix}_subject", operations.c.subject, operations.c.created_at)
    sa.Index(f"{prefix}_due", operations.c.state, operations.c.wake_at)
    sa.Index(f"{prefix}_created", operations.c.created_at)
    events = sa.Table(
        f"{prefix}_events",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("subject", Uuid, nullable=False, index=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tag", sa.String(255), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("created_at", Timestamp, nullable=False),
    )
    return operations, events


class Owned(msgspec.Struct, frozen=True):
    """An operation leased to this process, with the epoch that proves it."""

    record: OperationRecord
    epoch: int
    cancel: str | None


class Journal:
    """The statements over one journal. Every method runs inside a unit of work.

    Args:
        metadata: the schema that gets its tables. name: of the table of operations; that of events is named after it.
    """

    def __init__(self, metadata: sa.MetaData, name: str) -> None:
        self.operations, self.events = _tables(metadata, name)
        t = self.operations
        driven = sa.or_(*(t.c.state == state.value for state in sorted(DRIVEN)))
        names = [c.name for c in t.columns]
        self._insert = Prepared(sa.insert(t).values({n: sa.bindparam(n) for n in names}))
        self._save = Prepared(
            sa.update(t)
            .where(t.c.id == sa.bindparam("b_id"), t.c.lease_epoch == sa.bindparam("b_epoch"))
            .values({n: sa.bindparam(n) for n in ("slot", "state", "host", "wake_at", "lease_owner", "lease_until",
                                                  "updated_at", "body")})
            .returning(t.c.cancel)
        )
        self._lease = Prepared(
            sa.update(t)
            .where(t.c.id == sa.bindparam("b_id"), t.c.lease_epoch == sa.bindparam("b_epoch"))
            .values(lease_owner=sa.bindparam("owner"), lease_epoch=sa.bindparam("next_epoch"),
                    lease_until=sa.bindparam("until"))
        )
        self._renew = Prepared(
            sa.update(t)
            .where(t.c.lease_owner == sa.bindparam("owner"), driven)
            .values(lease_until=sa.bindparam("until"))
        )
        due = (
            driven,
            t.c.wake_at <= sa.bindparam("now"),
            sa.or_(t.c.lease_until.is_(None), t.c.lease_until <= sa.bindparam("now")),
        )
        self._due = Prepared(
            sa.select(t.c.body, t.c.lease_epoch, t.c.cancel)
            .where(*due).order_by(t.c.wake_at).limit(sa.bindparam("count"))
        )
        self._next_due = Prepared(sa.select(
            sa.select(t.c.id).where(*due).limit(sa.literal_column("1")).scalar_subquery().label("due"),
            sa.select(sa.func.min(t.c.wake_at)).where(driven, t.c.lease_until.is_(None))
            .scalar_subquery().label("wake"),
        ))
        self._queued = Prepared(
            sa.select(t.c.body)
            .where(t.c.subject == sa.bindparam("subject"), t.c.state == OperationState.QUEUED.value)
            .order_by(t.c.created_at)
            .limit(sa.literal_column("1"))
        )
        self._get = Prepared(sa.select(t.c.body).where(t.c.id == sa.bindparam("id")))
        self._holder = Prepared(sa.select(t.c.body, t.c.cancel).where(t.c.slot == sa.bindparam("subject")))
        self._owes = Prepared(
            sa.select(t.c.id)
            .where(t.c.subject == sa.bindparam("subject"), t.c.kind == "debt",
                   driven, t.c.created_at < sa.bindparam("before"))
            .limit(sa.literal_column("1"))
        )
        self._replace = Prepared(
            sa.update(t)
            .where(t.c.id == sa.bindparam("b_id"))
            .values({n: sa.bindparam(n) for n in ("slot", "state", "wake_at", "updated_at", "body")})
            .values(lease_owner=None, lease_until=None, lease_epoch=t.c.lease_epoch + 1)
        )
        self._wake_debts = Prepared(
            sa.update(t)
            .where(t.c.kind == "debt", t.c.host == sa.bindparam("b_host"), driven)
            .values(wake_at=sa.bindparam("now"))
        )
        self._wake_holder = Prepared(
            sa.update(t).where(t.c.slot == sa.bindparam("b_subject")).values(wake_at=sa.bindparam("now"))
        )
        e = self.events
        self._add_event = Prepared(
            sa.insert(e).values({c.name: sa.bindparam(c.name) for c in e.columns if c.name != "id"})
        )
        self._events = Prepared(sa.select(e).where(e.c.subject == sa.bindparam("subject")).order_by(e.c.id))
        self._drop_events = Prepared(sa.delete(e).where(e.c.subject == sa.bindparam("subject")))
        self._drop_event = Prepared(
            sa.delete(e).where(*(e.c[n] == sa.bindparam(n) for n in ("subject", "name", "tag")))
        )

    # --- writing ---------------------------------------------------------------------------------

    def insert(self, conn: sa.Connection, record: OperationRecord, *, wake_at: float | None) -> None:
        self._insert.run(
            conn,
            id=record.id,
            kind=record.kind,
            subject=record.subject,
            slot=record.subject if _holds_slot(record) else None,
            state=record.state.value,
            host=record.host,
            request_id=record.asker.request_id,
            cancel=None,
            wake_at=wake_at,
            lease_owner=None,
            lease_epoch=0,
            lease_until=None,
            created_at=record.created_at,
            updated_at=record.created_at,
            body=record,
        )

    def save(
        self, conn: sa.Connection, record: OperationRecord, epoch: int, *, now: float, wake_at: float | None,
        owner: str | None, lease_until: float | None,
    ) -> str | None:
        """Rewrite an operation under its lease.

        Returns:
            The cancel request stored meanwhile, if any.

        Raises:
            Fenced: another process holds the lease by now; nothing is written.
        """
        saved = self._save.first(
            conn,
            b_id=record.id,
            b_epoch=epoch,
            slot=record.subject if _holds_slot(record) else None,
            state=record.state.value,
            host=record.host,
            wake_at=wake_at,
            lease_owner=owner,
            lease_until=lease_until,
            updated_at=now,
            body=record,
        )
        if saved is None:
            raise Fenced(f"Operation {record.id} has another owner than epoch {epoch}.")
        cancel: str | None = saved[0]
        return cancel

    def lock(self, conn: sa.Connection, operation_id: str) -> None:
        """Hold the row, so that an event or a cancel comes wholly before or wholly after this transaction."""
        if conn.dialect.name != "sqlite":  # which has one writer at a time anyway
            t = self.operations
            conn.execute(sa.select(t.c.id).where(t.c.id == operation_id).with_for_update())

    def claim(self, conn: sa.Connection, owner: str, *, now: float, until: float, count: int) -> list[Owned]:
        """Lease up to `count` operations that are due and that nobody holds."""
        claimed = []
        for record, epoch, cancel in self._due.all(conn, now=now, count=count):
            taken = self._lease.run(
                conn, b_id=record.id, b_epoch=epoch, owner=owner, next_epoch=epoch + 1, until=until
            )
            if taken == 1:
                claimed.append(Owned(record, epoch + 1, cancel))
        return claimed

    def renew(self, conn: sa.Connection, owner: str, until: float) -> None:
        self._renew.run(conn, owner=owner, until=until)

    def expire_leases(self, conn: sa.Connection) -> None:
        """Free every lease: for a process that knows it is the only one (one-machine mode)."""
        t = self.operations
        conn.execute(sa.update(t).where(t.c.lease_until.is_not(None)).values(lease_until=None))

    def request_cancel(self, conn: sa.Connection, operation_id: str, reason: str, now: float) -> bool:
        """Ask an operation to end. Returns False if it has ended already."""
        t = self.operations
        return bool(conn.execute(
            sa.update(t)
            .where(t.c.id == operation_id, t.c.state.not_in([s.value for s in TERMINAL]), t.c.cancel.is_(None))
            .values(cancel=reason, wake_at=now)
        ).rowcount)

    def wake(self, conn: sa.Connection, operation_id: str, now: float) -> None:
        t = self.operations
        conn.execute(sa.update(t).where(t.c.id == operation_id).values(wake_at=now))

    def wake_debts(self, conn: sa.Connection, host: str, now: float) -> int:
        """Let everything owed to a host be tried now, because it has come back."""
        return self._wake_debts.run(conn, b_host=host, now=now)

    def replace(self, conn: sa.Connection, record: OperationRecord, *, wake_at: float | None, now: float) -> None:
        """Rewrite an operation that nobody drives (held, queued, stranded), raising its epoch."""
        self._replace.run(
            conn, b_id=record.id, slot=record.subject if _holds_slot(record) else None, state=record.state.value,
            body=record, wake_at=wake_at, updated_at=now,
        )

    # --- reading ---------------------------------------------------------------------------------

    def get(self, conn: sa.Connection, operation_id: str) -> OperationRecord | None:
        found: OperationRecord | None = self._get.scalar(conn, id=operation_id)
        return found

    def holder(self, conn: sa.Connection, subject: str) -> tuple[OperationRecord, str | None] | None:
        """The operation that has the subject to itself, with its cancel request."""
        row = self._holder.first(conn, subject=subject)
        return (row[0], row[1]) if row else None

    def queued(self, conn: sa.Connection, subject: str) -> OperationRecord | None:
        found: OperationRecord | None = self._queued.scalar(conn, subject=subject)
        return found

    def owes(self, conn: sa.Connection, subject: str, before: float) -> bool:
        """Whether a debt about the subject is older than `before` and not paid."""
        return self._owes.first(conn, subject=subject, before=before) is not None

    def next_due(self, conn: sa.Connection, now: float) -> float | None:
        """When an operation can be claimed next: `now` if one can be already, None if none is in sight."""
        due, wake = self._next_due.first(conn, now=now)
        found: float | None = wake if due is None else now
        return found

    def of_subject(self, conn: sa.Connection, subject: str) -> list[OperationRecord]:
        """The history of a subject, newest first."""
        t = self.operations
        query = sa.select(t.c.body).where(t.c.subject == subject).order_by(t.c.created_at.desc(), t.c.id.desc())
        return list(conn.execute(query).scalars())

    def select(
        self, conn: sa.Connection, *, states: Collection[OperationState] = (), limit: int = 100
    ) -> list[OperationRecord]:
        """Operations, newest first."""
        t = self.operations
        query = sa.select(t.c.body).order_by(t.c.created_at.desc(), t.c.id.desc()).limit(limit)
        if states:
            query = query.where(t.c.state.in_([s.value for s in states]))
        return list(conn.execute(query).scalars())

    # --- events ----------------------------------------------------------------------------------

    def add_event(self, conn: sa.Connection, event: ExternalEvent, now: float) -> bool:
        """Keep an event for the operation that holds its subject, and wake it.

        Returns:
            False if no operation is active on the subject: nobody can be waiting, nothing is kept.
        """
        if not self._wake_holder.run(conn, b_subject=event.subject, now=now):
            return False
        self._add_event.run(
            conn, subject=event.subject, name=event.name, tag=event.tag, status=event.status, data=event.data,
            created_at=now,
        )
        return True

    def events_of(self, conn: sa.Connection, subject: str) -> list[ExternalEvent]:
        rows = self._events.all(conn, subject=subject)
        return [
            ExternalEvent(subject=r.subject, name=r.name, tag=r.tag, status=r.status, data=r.data) for r in rows
        ]

    def drop_events(self, conn: sa.Connection, subject: str, keys: Collection[str] | None = None) -> None:
        """Forget events of a subject: those of these keys, or all."""
        if keys is None:
            self._drop_events.run(conn, subject=subject)
            return
        for key in sorted(keys):
            name, _, tag = key.partition(":")
            self._drop_event.run(conn, subject=subject, name=name, tag=tag)


def _holds_slot(record: OperationRecord) -> bool:
    return record.exclusive and record.state is not OperationState.QUEUED and record.state not in TERMINAL


api_journal = Journal(api_metadata, "api_operations")
cell_journal = Journal(cell_metadata, "operations")

__all__: Sequence[Any] = ("Journal", "Owned", "api_journal", "cell_journal")
