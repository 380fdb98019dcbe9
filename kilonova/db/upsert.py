"""Inserts that meet rows which are there already. Both dialects know the same two forms of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert_new(conn: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> int | None:
    """Insert a row and return its number (column `id`); None if a unique column or key is taken."""
    number: int | None = conn.execute(
        _insert(conn, table).values(**row).on_conflict_do_nothing().returning(table.c.id)
    ).scalar()
    return number


def insert_missing(conn: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> bool:
    """Insert a row of a table without numbers. Returns False if its key, or another unique value of it, is taken."""
    statement = _insert(conn, table).values(**row).on_conflict_do_nothing().returning(*table.primary_key)
    return conn.execute(statement).first() is not None


def put(conn: sa.Connection, table: sa.Table, row: Mapping[str, Any], key: Sequence[str]) -> None:
    """Insert a row, or change the one with the same key.

    Args:
        key: names of the columns that identify it.
    """
    changed = {name: value for name, value in row.items() if name not in key}
    conn.execute(_insert(conn, table).values(**row).on_conflict_do_update(index_elements=list(key), set_=changed))


def _insert(conn: sa.Connection, table: sa.Table) -> Any:
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)
