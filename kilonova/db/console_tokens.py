"""Tokens of consoles, in the cell database beside the servers they are for. A token itself is never stored.

A change of a server's record that ends its guest, or moves it, revokes the tokens in the same transaction
(`kilonova.db.instances` calls `revoke`), so no operation has to think of them.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.console import ConsoleAddress, ConsoleToken

console_tokens = sa.Table(
    "console_tokens",
    cell_metadata,
    sa.Column("token_hash", sa.String(64), primary_key=True),
    sa.Column("instance_uuid", Uuid, nullable=False, index=True),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("compute_host", sa.String(255), nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("port", sa.Integer),
    sa.Column("tls_port", sa.Integer),
    sa.Column("internal_access_path", sa.Text, nullable=False),
    sa.Column("access_url_base", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("expires_at", Timestamp, nullable=False, index=True),
)

BATCH = 500
"""Expired tokens that one transaction removes."""


_REVOKE = Prepared(
    sa.delete(console_tokens).where(console_tokens.c.instance_uuid == sa.bindparam("instance_uuid"))
)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def insert(conn: sa.Connection, token: str, right: ConsoleToken, *, now: float) -> None:
    """Store what a new token gives a right to."""
    conn.execute(sa.insert(console_tokens), {
        "token_hash": _hash(token),
        "instance_uuid": right.instance_uuid,
        "type": right.type,
        "compute_host": right.compute_host,
        "host": right.address.host,
        "port": right.address.port,
        "tls_port": right.address.tls_port,
        "internal_access_path": right.address.internal_access_path,
        "access_url_base": right.access_url_base,
        "created_at": now,
        "expires_at": right.expires_at,
    })


def find(conn: sa.Connection, token: str, *, now: float) -> ConsoleToken | None:
    """What a token gives a right to; None for one that is unknown, revoked or expired."""
    table = console_tokens.c
    row = conn.execute(
        sa.select(console_tokens).where(table.token_hash == _hash(token), table.expires_at > now)
    ).first()
    if row is None:
        return None
    return ConsoleToken(
        instance_uuid=row.instance_uuid, type=row.type, compute_host=row.compute_host,
        address=ConsoleAddress(
            host=row.host, port=row.port, tls_port=row.tls_port, internal_access_path=row.internal_access_path
        ),
        access_url_base=row.access_url_base, expires_at=row.expires_at,
    )


def revoke(conn: sa.Connection, instance_uuid: str) -> None:
    """Remove all tokens of a server, whatever is configured now. Spec: CON-20, DEL-31, LMR-27."""
    _REVOKE.run(conn, instance_uuid=instance_uuid)


def remove_expired(conn: sa.Connection, *, now: float) -> int:
    """Remove at most `BATCH` expired tokens, of whichever host, and pass over those that somebody else removes.

    Returns:
        How many; fewer than `BATCH` when none is left. Spec: PER-110, PER-111.
    """
    table = console_tokens.c
    expired = sa.select(table.token_hash).where(table.expires_at <= now).limit(BATCH)
    chosen = conn.execute(expired.with_for_update(skip_locked=True)).scalars().all()
    if chosen:
        conn.execute(sa.delete(console_tokens).where(table.token_hash.in_(chosen)))
    return len(chosen)
