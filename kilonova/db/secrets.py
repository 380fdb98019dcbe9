"""Secrets of servers, in the cell database beside the servers they are for, encrypted.

The row goes in the transaction that deletes its server (`kilonova.db.instances` calls `forget`), and with it whatever
was encrypted by the secret.
"""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Timestamp, Uuid

secrets = sa.Table(
    "secrets",
    cell_metadata,
    sa.Column("instance_uuid", Uuid, primary_key=True),
    sa.Column("purpose", sa.String(16), primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("sealed", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
)


def insert(conn: sa.Connection, instance: str, purpose: str, owner: str, sealed: str, *, now: float) -> None:
    """Store a secret that is not there yet."""
    conn.execute(sa.insert(secrets), {
        "instance_uuid": instance, "purpose": purpose, "owner": owner, "sealed": sealed, "created_at": now,
    })


def find(conn: sa.Connection, instance: str, purpose: str) -> tuple[str, str] | None:
    """Owner and encrypted value; None without one."""
    query = sa.select(secrets.c.owner, secrets.c.sealed).where(
        secrets.c.instance_uuid == instance, secrets.c.purpose == purpose
    )
    row = conn.execute(query).one_or_none()
    return None if row is None else (row.owner, row.sealed)


def forget(conn: sa.Connection, instance: str) -> None:
    """Remove all secrets of a server; none is fine."""
    conn.execute(sa.delete(secrets).where(secrets.c.instance_uuid == instance))
