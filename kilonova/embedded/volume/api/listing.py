"""Lists: filters, sorting, pages and links, the same for every resource. Spec: EMI-07, EMI-08, EMI-12."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
import sqlalchemy as sa

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.volume.api.call import Call, flag, whole

LARGEST_PAGE = 1000
LONGEST_FILTER = 4000
LIKE = 31
"""The version from which `name~` finds parts of names."""
COUNTS = 45
"""The version from which lists tell how many there are."""

Condition = sa.ColumnElement[bool]
Filter = Callable[[str, str], Condition]
"""Makes a condition of a filter's name and its text. Raises InvalidInput."""

COMPARISONS: dict[str, Callable[[Any, Any], Condition]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le, "eq": operator.eq,
    "neq": operator.ne,
}


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """A resource that can be listed.

    Args:
        record: what a row is made into. name: of one, in bodies.
        sorts: columns by the names that callers sort by.
        filters: by name. liked: columns that a part of the text finds, by name.
        unknown_marker: the error for a marker that names nothing, None for InvalidInput.
    """

    table: Any
    record: type[Any]
    name: str
    sorts: Mapping[str, Any]
    filters: Mapping[str, Any]
    liked: Mapping[str, Any] = {}
    unknown_marker: Callable[[str], NotFound] | None = None

    @property
    def plural(self) -> str:
        return f"{self.name}s"


class Page(msgspec.Struct, frozen=True):
    """records: of the kind. full: there may be others. count: of all that match, None if nobody asked."""

    records: list[Any]
    full: bool
    count: int | None


def find(conn: sa.Connection, call: Call, kind: Kind, *conditions: Condition) -> Page:
    """One page of what the caller asks for.

    Args:
        conditions: what the caller may see.

    Raises:
        InvalidInput: a filter, key, limit or marker makes no sense. NotFound: the marker, of snapshots.
    """
    where = [*conditions, *_filters(call, kind)]
    query, count = sa.select(kind.table).where(*where), None
    if call.version >= COUNTS and call.asks("with_count"):
        count = conn.execute(sa.select(sa.func.count()).select_from(kind.table).where(*where)).scalar_one()
    sort = _sort(call, kind)
    columns = [kind.sorts[key] for key, _ in sort]
    marker = call.request.query_params.get("marker")
    if marker is not None:
        asked = sa.select(*columns).where(*conditions, kind.table.c.id == marker)
        row = conn.execute(asked).one_or_none() if "\0" not in marker else None
        if row is None and kind.unknown_marker is not None:
            raise kind.unknown_marker(marker[:64])
        if row is None:
            raise InvalidInput(f"marker [{marker[:64]}] not found")
        query = query.where(_after(columns, sort, row))
    for column, (_, descending) in zip(columns, sort, strict=True):
        query = query.order_by(column.desc() if descending else column.asc())
    limit = _limit(call)
    rows = conn.execute(query.limit(limit).offset(_number(call, "offset", 0)))
    records = [kind.record(**row._mapping) for row in rows]
    return Page(records, len(records) == limit, count)


def answer(call: Call, kind: Kind, page: Page, views: list[dict[str, Any]]) -> dict[str, Any]:
    """The body of a list. A full page leads to another one, which may be empty: clients count on that."""
    body: dict[str, Any] = {kind.plural: views}
    if page.full and views:
        same = [(name, value) for name, value in call.request.query_params.multi_items()
                if name not in ("marker", "offset")]
        path = call.request.url.path.removeprefix(call.request.scope.get("root_path", ""))
        below = path.removeprefix(f"/v3{call.request.path_params['project']}")
        body[f"{kind.plural}_links"] = [
            {"rel": "next", "href": f"{call.href(below)}?{urlencode([*same, ('marker', page.records[-1].id)])}"}
        ]
    if page.count is not None:
        body["count"] = page.count
    return body


def own(call: Call, project: Any) -> list[Condition]:
    """What the caller sees in lists: its project's; for administrators who ask so, that of all, or of one."""
    asked = call.request.query_params
    if not (call.who.is_admin and call.asks("all_tenants")):
        return [project == call.who.project_id]
    wanted = asked.get("project_id") or asked.get("tenant_id")
    return [project == wanted] if wanted else []


def _limit(call: Call) -> int:
    return min(_number(call, "limit", LARGEST_PAGE), LARGEST_PAGE)


def _number(call: Call, name: str, default: int) -> int:
    value = call.request.query_params.get(name)
    return default if value is None else whole(name, value)


def _sort(call: Call, kind: Kind) -> list[tuple[str, bool]]:
    """Pairs of key and whether descending; without a key, and among equals, the newest first."""
    asked = call.request.query_params
    keys, directions = asked.getlist("sort_key"), asked.getlist("sort_dir")
    if "sort" in asked:
        if keys or directions:
            raise InvalidInput("The 'sort_key' and 'sort_dir' parameters cannot be used with the 'sort' parameter.")
        parts = [part.strip().partition(":") for part in asked["sort"].split(",")]
        keys, directions = [key for key, _, _ in parts], [direction or "desc" for _, _, direction in parts]
    if len(directions) > max(len(keys), 1):
        raise InvalidInput("Sort direction array size exceeds sort key array size.")
    directions += ["desc"] * (max(len(keys), 1) - len(directions))
    for key in keys:
        if key not in kind.sorts:
            raise InvalidInput(f"Sort key {key[:64]} is invalid.", hint=f"use one of {', '.join(kind.sorts)}")
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise InvalidInput(f"Sort direction {direction[:64]} is invalid: it is asc or desc.")
    order = dict(zip(keys, (direction == "desc" for direction in directions), strict=False))
    for key in ("created_at", "id"):
        order.setdefault(key, directions[0] == "desc")
    return list(order.items())


def _after(columns: list[Any], sort: list[tuple[str, bool]], row: Any) -> Condition:
    """What comes after a row in this order."""
    alternatives: list[Condition] = []
    equal: list[Condition] = []
    for column, (_, descending), value in zip(columns, sort, row, strict=True):
        alternatives.append(sa.and_(*equal, column < value if descending else column > value))
        equal.append(column == value)
    return sa.or_(*alternatives)


# --- filters -------------------------------------------------------------------------------------


def _filters(call: Call, kind: Kind) -> list[Condition]:
    found = []
    for name, value in call.request.query_params.multi_items():
        if len(value) > LONGEST_FILTER or "\0" in value:
            raise InvalidInput(f"The filter {name[:64]} is too long, or holds a NUL.")
        liked = kind.liked.get(name.removesuffix("~")) if name.endswith("~") else None
        if liked is not None and call.version >= LIKE:
            found.append(holds(liked, value))
        elif name in kind.filters:
            found.append(kind.filters[name](name, value))
    return found


def holds(column: Any, part: str) -> Condition:
    """The column's text has that part, letter by letter on every database."""
    text = sa.type_coerce(column, sa.Text)
    return sa.func.replace(text, part, "") != text if part else sa.true()


def equal(column: Any) -> Filter:
    return lambda name, value: sa.type_coerce(column, sa.Text) == value


def truth(column: Any) -> Filter:
    return lambda name, value: column == flag(name, value)


def number(column: Any) -> Filter:
    return lambda name, value: column == whole(name, value)


def pairs(column: Any) -> Filter:
    """A filter on keys and values of a column that is a JSON object: `{'key': 'value'}`."""
    def made(name: str, value: str) -> Condition:
        try:
            wanted = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InvalidInput(f"The filter {name} must be an object of keys and values.") from error
        if not isinstance(wanted, dict):
            raise InvalidInput(f"The filter {name} must be an object of keys and values.")
        return sa.and_(True, *(_has(column, str(key), str(one)) for key, one in wanted.items()))

    return made


def _has(column: Any, key: str, value: str) -> Condition:
    """The pair as it is in the column's text: nothing within a key or value looks so, since quotes are escaped."""
    pair = msgspec.json.encode({key: value}).decode()[1:-1]
    return sa.or_(holds(column, "{" + pair), holds(column, "," + pair))


def times(column: Any) -> Filter:
    """A filter on times: `gt:2026-01-01T00:00:00`, several with commas between."""
    def made(name: str, value: str) -> Condition:
        return sa.and_(True, *(_time(column, name, part) for part in value.split(",")))

    return made


def _time(column: Any, name: str, part: str) -> Condition:
    comparison, _, when = part.partition(":")
    if comparison not in COMPARISONS:
        comparison, when = "eq", part
    try:
        at = datetime.fromisoformat(when)
    except ValueError as error:
        raise InvalidInput(f"The filter {name} has no time: {when[:64]!r}.") from error
    return COMPARISONS[comparison](column, at.replace(tzinfo=at.tzinfo or UTC).timestamp())
