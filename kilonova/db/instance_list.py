"""Lists of instances in one cell: filters, sort keys, pages.

A page is found by keyset: the values of the sort keys of the marker bound the query, so that a deep page costs
what the first one costs. A filter that no column answers is a test on the decoded record; then records are read
in batches until the page is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSON

from kilonova.db.build_requests import instance_mappings, request_specs
from kilonova.db.instances import instances
from kilonova.domain.instance import Instance

Condition = sa.ColumnElement[bool]
BATCH = 500
_CHUNK = 500


class SortKey(msgspec.Struct, frozen=True):
    """How one key is found: a column, or a field of the stored document.

    Args:
        column: name of the column, "" when the value is only in the document.
        number: compares as a number. nullable: records may lack it; those come first in ascending order.
    """

    value: Callable[[Instance], Any]
    column: str = ""
    field: str = ""
    number: bool = False
    nullable: bool = True


def _column(name: str, *, number: bool = False, nullable: bool = False) -> SortKey:
    return SortKey(lambda i: _plain(getattr(i, name)), column=name, number=number, nullable=nullable)


def _document(name: str, *, number: bool = False) -> SortKey:
    return SortKey(lambda i: _plain(getattr(i, name)), field=name, number=number)


def _plain(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return getattr(value, "value", value)


SORT_KEYS: Mapping[str, SortKey] = {
    "access_ip_v4": _document("access_ip_v4"),
    "access_ip_v6": _document("access_ip_v6"),
    "auto_disk_config": _document("auto_disk_config", number=True),
    "availability_zone": _column("availability_zone", nullable=True),
    "config_drive": _document("config_drive"),
    "created_at": _column("created_at", number=True),
    "display_description": _document("display_description"),
    "display_name": _column("display_name"),
    "host": _column("host", nullable=True),
    "hostname": _column("hostname"),
    "image_ref": _column("image_ref"),
    "instance_type_id": SortKey(lambda i: i.flavor.flavor_id, column="flavor_id", nullable=False),
    "kernel_id": _document("kernel_id"),
    "key_name": _column("key_name", nullable=True),
    "launch_index": _document("launch_index", number=True),
    "launched_at": _column("launched_at", number=True, nullable=True),
    "locked": SortKey(lambda i: int(i.locked_by is not None), column="locked", number=True, nullable=False),
    "locked_by": _document("locked_by"),
    "node": _column("node", nullable=True),
    "power_state": _column("power_state", number=True),
    "progress": _document("progress", number=True),
    "project_id": _column("project_id"),
    "ramdisk_id": _document("ramdisk_id"),
    "root_device_name": _document("root_device_name"),
    "task_state": _column("task_state", nullable=True),
    "terminated_at": _document("terminated_at", number=True),
    "updated_at": _column("updated_at", number=True, nullable=True),
    "user_id": _column("user_id"),
    "uuid": _column("uuid"),
    "vm_state": _column("vm_state"),
}
"""Every key a list can be sorted by. Spec: API-628."""


class Order(msgspec.Struct, frozen=True):
    key: str
    descending: bool


class Filter(msgspec.Struct, frozen=True):
    """One condition on records: the test, and the same as SQL where a column knows."""

    matches: Callable[[Instance], bool]
    condition: Condition | None = None


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to list.

    Args:
        order: must end with a key that is unique (uuid). marker: list what comes after this record.
    """

    filters: Sequence[Filter]
    order: Sequence[Order]
    limit: int
    marker: Instance | None = None


def in_order(order: Sequence[Order], found: Iterable[Instance]) -> list[Instance]:
    """Sort records the way the database does; needed to merge lists."""
    ordered = list(found)
    for entry in reversed(order):
        value = SORT_KEYS[entry.key].value
        ordered.sort(key=lambda i: _comparable(value(i)), reverse=entry.descending)
    return ordered


def comes_after(order: Sequence[Order], instance: Instance, marker: Instance) -> bool:
    """Whether a record comes after the marker."""
    for entry in order:
        value = SORT_KEYS[entry.key].value
        ours, its = _comparable(value(instance)), _comparable(value(marker))
        if ours != its:
            return (ours < its) if entry.descending else (ours > its)
    return False


def _comparable(value: Any) -> tuple[Any, ...]:
    return (0,) if value is None else (1, value)


def page(conn: sa.Connection, query: ListQuery) -> list[Instance]:
    """The records of one page, in order."""
    if query.limit == 0:
        return []
    conditions = [f.condition for f in query.filters if f.condition is not None]
    tests = [f.matches for f in query.filters if f.condition is None]
    found: list[Instance] = []
    marker = query.marker
    while True:
        size = query.limit if not tests else max(query.limit - len(found), BATCH)
        batch = _batch(conn, conditions, query.order, marker, size)
        found += [i for i in batch if all(test(i) for test in tests)] if tests else batch
        if len(batch) < size or len(found) >= query.limit:
            return found[: query.limit]
        marker = batch[-1]


def _batch(
    conn: sa.Connection, conditions: Sequence[Condition], order: Sequence[Order], marker: Instance | None, size: int
) -> list[Instance]:
    expressions = [_expression(conn, SORT_KEYS[entry.key]) for entry in order]
    statement = sa.select(instances.c.body).where(*conditions).limit(size)
    if marker is not None:
        statement = statement.where(_after(order, expressions, marker))
    for entry, expression in zip(order, expressions, strict=True):
        if SORT_KEYS[entry.key].nullable:
            present = expression.is_not(None)
            statement = statement.order_by(present.desc() if entry.descending else present.asc())
        statement = statement.order_by(expression.desc() if entry.descending else expression.asc())
    return list(conn.execute(statement).scalars())


def _expression(conn: sa.Connection, key: SortKey) -> sa.ColumnElement[Any]:
    postgres = conn.dialect.name == "postgresql"
    if key.column:
        column: sa.ColumnElement[Any] = instances.c[key.column]
        if isinstance(column.type, sa.Boolean):
            return sa.cast(column, sa.Integer)
        return column if key.number or not postgres else column.collate("C")
    text = sa.type_coerce(instances.c.body, sa.Text)
    if not postgres:
        return sa.func.json_extract(text, f"$.{key.field}", type_=sa.Double if key.number else sa.Text)
    value: sa.ColumnElement[Any] = sa.cast(text, JSON)[key.field].astext
    if not key.number:
        return value.collate("C")
    return sa.cast(sa.case({"true": "1", "false": "0"}, value=value, else_=value), sa.Double)


def _after(order: Sequence[Order], expressions: Sequence[sa.ColumnElement[Any]], marker: Instance) -> Condition:
    """Keyset: equal in the first n keys and beyond in the next, for some n."""
    alternatives: list[Condition] = []
    equal: list[Condition] = []
    for entry, expression in zip(order, expressions, strict=True):
        key = SORT_KEYS[entry.key]
        value = key.value(marker)
        beyond = _beyond(expression, value, entry.descending, key.nullable)
        if beyond is not None:
            alternatives.append(sa.and_(*equal, beyond))
        equal.append(expression.is_(None) if value is None else expression == value)
    return sa.or_(*alternatives)


def _beyond(
    expression: sa.ColumnElement[Any], value: Any, descending: bool, nullable: bool
) -> Condition | None:
    if value is None:
        return None if descending else expression.is_not(None)
    smaller: Condition = expression < value
    if not descending:
        return sa.and_(expression > value)
    return sa.or_(smaller, expression.is_(None)) if nullable else smaller


class Asked(msgspec.Struct, frozen=True):
    """The parts of a request spec that answers show."""

    availability_zone: str | None = None
    scheduler_hints: dict[str, list[str]] = {}


_decode_asked = msgspec.json.Decoder(Asked).decode


def asked_of(conn: sa.Connection, uuids: Sequence[str]) -> dict[str, Asked]:
    """What the creators of those servers asked for, from the API database."""
    found: dict[str, Asked] = {}
    body = sa.type_coerce(request_specs.c.body, sa.Text)
    for start in range(0, len(uuids), _CHUNK):
        chosen = request_specs.c.uuid.in_(uuids[start : start + _CHUNK])
        for uuid, text in conn.execute(sa.select(request_specs.c.uuid, body).where(chosen)):
            found[uuid] = _decode_asked(text)
    return found


class Mapped(msgspec.Struct, frozen=True):
    """What is known of a server whose cell cannot be asked."""

    uuid: str
    project_id: str
    created_at: float


def mapped_to(conn: sa.Connection, cell: str, project_id: str | None, limit: int) -> list[Mapped]:
    """The servers of a cell, newest first, from the API database."""
    table = instance_mappings.c
    query = sa.select(table.uuid, table.project_id, table.created_at).where(table.cell == cell)
    if project_id is not None:
        query = query.where(table.project_id == project_id)
    rows = conn.execute(query.order_by(table.created_at.desc(), table.uuid.desc()).limit(limit))
    return [Mapped(*row) for row in rows]


def mapped(conn: sa.Connection, uuid: str) -> Mapped | None:
    """One server, from the API database."""
    table = instance_mappings.c
    row = conn.execute(sa.select(table.uuid, table.project_id, table.created_at).where(table.uuid == uuid)).first()
    return None if row is None else Mapped(*row)
