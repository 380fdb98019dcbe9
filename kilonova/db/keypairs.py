"""Key pairs of users, in the API database. Only public keys are kept."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Timestamp
from kilonova.db.upsert import insert_new
from kilonova.domain.errors import Conflict, NotFound

keypairs = sa.Table(
    "keypairs",
    api_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("user_id", sa.String(255), nullable=False),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("public_key", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(255), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.UniqueConstraint("user_id", "name"),
)


class Keypair(msgspec.Struct, frozen=True, kw_only=True):
    """A public key of a user. type: `ssh` or `x509`. created_at: seconds since the epoch."""

    id: int = 0
    user_id: str
    name: str
    type: str = "ssh"
    public_key: str
    fingerprint: str
    created_at: float = 0.0


def _keypair(row: sa.Row[tuple[object, ...]]) -> Keypair:
    return Keypair(**row._mapping)


def get(conn: sa.Connection, user_id: str, name: str) -> Keypair:
    """Raises NotFound."""
    query = sa.select(keypairs).where(keypairs.c.user_id == user_id, keypairs.c.name == name)
    row = conn.execute(query).first()
    if row is None:
        raise NotFound(f"Keypair {name} not found for user {user_id}")
    return _keypair(row)


def create(conn: sa.Connection, keypair: Keypair) -> Keypair:
    """Store a new key pair and return it with its row number. Raises Conflict: the name is taken."""
    row = {name: getattr(keypair, name) for name in Keypair.__struct_fields__ if name != "id"}
    number = insert_new(conn, keypairs, row)
    if number is None:
        raise Conflict(f"Key pair '{keypair.name}' already exists.")
    return msgspec.structs.replace(keypair, id=number)


def count(conn: sa.Connection, user_id: str) -> int:
    """How many key pairs a user has."""
    query = sa.select(sa.func.count()).select_from(keypairs).where(keypairs.c.user_id == user_id)
    return int(conn.execute(query).scalar_one())


def of_user(conn: sa.Connection, user_id: str, *, limit: int | None = None, marker: str | None = None) -> list[Keypair]:
    """The key pairs of a user by name, those after `marker` if given, at most `limit`."""
    query = sa.select(keypairs).where(keypairs.c.user_id == user_id).order_by(keypairs.c.name)
    if marker is not None:
        query = query.where(keypairs.c.name > marker)
    return [_keypair(row) for row in conn.execute(query.limit(limit))]


def delete(conn: sa.Connection, user_id: str, name: str) -> None:
    """Raises NotFound."""
    query = sa.delete(keypairs).where(keypairs.c.user_id == user_id, keypairs.c.name == name)
    if conn.execute(query).rowcount == 0:
        raise NotFound(f"Keypair {name} not found for user {user_id}")
