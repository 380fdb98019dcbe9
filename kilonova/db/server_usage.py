"""What the servers of a project take, counted from their records. Quotas are checked against it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON

from kilonova.db.build_requests import build_requests
from kilonova.db.instances import instances
from kilonova.domain.states import VmState

_CHUNK = 500


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Servers, virtual CPUs and memory (MiB) in use."""

    instances: int = 0
    cores: int = 0
    ram: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(instances=self.instances + other.instances, cores=self.cores + other.cores,
                     ram=self.ram + other.ram)


def _text(conn: sa.Connection, body: sa.ColumnElement[str], *path: str) -> sa.ColumnElement[str]:
    """A value inside a JSON text column."""
    text = sa.type_coerce(body, sa.Text)
    if conn.dialect.name == "postgresql":
        value: sa.ColumnElement[str] = sa.cast(text, JSON)[list(path)].astext
        return value
    return sa.func.json_extract(text, "$." + ".".join(path), type_=sa.Text)


def _number(conn: sa.Connection, body: sa.ColumnElement[str], *path: str) -> sa.ColumnElement[int]:
    return sa.cast(_text(conn, body, *path), sa.Integer)


def of_instances(conn: sa.Connection, project_id: str, user_id: str | None = None) -> Usage:
    """The usage of the records in this cell that are not deleted, not even softly. Spec: API-136."""
    table = instances.c
    query = sa.select(
        sa.func.count(),
        sa.func.coalesce(sa.func.sum(table.vcpus), 0),
        sa.func.coalesce(sa.func.sum(table.memory_mib), 0),
    ).where(table.project_id == project_id, table.deleted_at.is_(None))
    if user_id is not None:
        query = query.where(table.user_id == user_id)
    soft = query.where(table.vm_state == sa.literal_column(f"'{VmState.SOFT_DELETED.value}'"))  # has an index
    (count, cores, ram), (soft_count, soft_cores, soft_ram) = conn.execute(query).one(), conn.execute(soft).one()
    return Usage(instances=count - soft_count, cores=cores - soft_cores, ram=ram - soft_ram)


def of_build_requests(conn: sa.Connection, project_id: str, user_id: str | None = None) -> dict[str, Usage]:
    """The usage of each server that waits for its cell, by uuid."""
    table = build_requests.c
    query = sa.select(
        table.uuid,
        _number(conn, table.body, "instance", "flavor", "vcpus"),
        _number(conn, table.body, "instance", "flavor", "memory_mib"),
    ).where(table.project_id == project_id)
    if user_id is not None:
        query = query.where(_text(conn, table.body, "instance", "user_id") == user_id)
    return {uuid: Usage(instances=1, cores=cores, ram=ram) for uuid, cores, ram in conn.execute(query)}


def known(conn: sa.Connection, uuids: Sequence[str]) -> set[str]:
    """Those of the servers that have a record in this cell."""
    found: set[str] = set()
    for start in range(0, len(uuids), _CHUNK):
        chunk = uuids[start : start + _CHUNK]
        found.update(conn.execute(sa.select(instances.c.uuid).where(instances.c.uuid.in_(chunk))).scalars())
    return found
