"""Flavors and who may use the private ones, in the API database."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Json, Timestamp
from kilonova.db.prepared import Prepared
from kilonova.db.upsert import insert_new
from kilonova.domain.errors import Conflict, FlavorNotFound, NotFound
from kilonova.domain.flavor import Flavor

flavors = sa.Table(
    "flavors",
    api_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("flavor_id", sa.String(255), nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("root_gib", sa.Integer, nullable=False),
    sa.Column("ephemeral_gib", sa.Integer, nullable=False),
    sa.Column("swap_mib", sa.Integer, nullable=False),
    sa.Column("rxtx_factor", sa.Double, nullable=False),
    sa.Column("vcpu_weight", sa.Integer, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("is_public", sa.Boolean, nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("extra_specs", Json(dict[str, str]), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
)

flavor_access = sa.Table(
    "flavor_access",
    api_metadata,
    sa.Column("flavor_id", sa.String(255), primary_key=True),
    sa.Column("project_id", sa.String(64), primary_key=True),
)

SEEDS = (
    ("42", "m1.nano", 1, 128, 1),
    ("1", "m1.tiny", 1, 512, 1),
    ("2", "m1.small", 1, 2048, 20),
    ("3", "m1.medium", 2, 4096, 40),
    ("4", "m1.large", 4, 8192, 80),
)
"""Public id, name, CPUs, memory (MiB) and root disk (GiB) of the flavors a fresh installation has."""

_BATCH = 500
_FIELDS = tuple(field for field in Flavor.__struct_fields__ if field not in ("id", "pci_requests"))
_COLUMNS = [flavors.c.id, *(flavors.c[name] for name in _FIELDS)]
_GET = Prepared(sa.select(*_COLUMNS).where(flavors.c.flavor_id == sa.bindparam("flavor_id")))


def _flavor(row: Any) -> Flavor:
    return Flavor(**row._asdict())


def get(conn: sa.Connection, flavor_id: str) -> Flavor:
    """One flavor by its public id. Raises FlavorNotFound."""
    row = _GET.first(conn, flavor_id=flavor_id)
    if row is None:
        raise FlavorNotFound(flavor_id)
    return _flavor(row)


def visible(conn: sa.Connection, flavor_id: str, project_id: str | None) -> Flavor:
    """One flavor, if that project may see it (None: whoever asks sees all). Raises FlavorNotFound."""
    flavor = get(conn, flavor_id)
    hidden = project_id is not None and not flavor.is_public
    if hidden and project_id not in projects_with_access(conn, flavor_id):
        raise FlavorNotFound(flavor_id)
    return flavor


def create(conn: sa.Connection, flavor: Flavor, *, now: float) -> Flavor:
    """Store a new flavor and return it with its row number. Raises Conflict: name or id is taken."""
    for column, value in ((flavors.c.name, flavor.name), (flavors.c.flavor_id, flavor.flavor_id)):
        if conn.execute(sa.select(flavors.c.id).where(column == value)).first() is not None:
            what = "name" if column is flavors.c.name else "ID"
            raise Conflict(f"Flavor with {what} {value} already exists.")
    row = {name: getattr(flavor, name) for name in _FIELDS}
    number = insert_new(conn, flavors, {**row, "created_at": now})
    if number is None:
        raise Conflict(f"Flavor with name {flavor.name} or ID {flavor.flavor_id} already exists.")
    return msgspec.structs.replace(flavor, id=number)


def delete(conn: sa.Connection, flavor_id: str) -> None:
    """Remove a flavor and its access entries. Raises FlavorNotFound."""
    if conn.execute(sa.delete(flavors).where(flavors.c.flavor_id == flavor_id)).rowcount == 0:
        raise FlavorNotFound(flavor_id)
    conn.execute(sa.delete(flavor_access).where(flavor_access.c.flavor_id == flavor_id))


SORT_KEYS: Mapping[str, sa.ColumnElement[Any]] = {
    "created_at": flavors.c.created_at,
    "description": sa.func.coalesce(flavors.c.description, ""),
    "disabled": sa.cast(flavors.c.disabled, sa.Integer),
    "ephemeral_gb": flavors.c.ephemeral_gib,
    "flavorid": flavors.c.flavor_id,
    "id": flavors.c.id,
    "is_public": sa.cast(flavors.c.is_public, sa.Integer),
    "memory_mb": flavors.c.memory_mib,
    "name": flavors.c.name,
    "root_gb": flavors.c.root_gib,
    "rxtx_factor": flavors.c.rxtx_factor,
    "swap": flavors.c.swap_mib,
    "updated_at": sa.func.coalesce(flavors.c.updated_at, 0.0),
    "vcpu_weight": flavors.c.vcpu_weight,
    "vcpus": flavors.c.vcpus,
}
"""Every key a list can be sorted by. Spec: API-631."""


class FlavorQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to list, in which order.

    Args:
        is_public: None for all; True adds the private ones that `project_id` may use.
        disabled: None for all. least_memory_mib, least_root_gib: 0 for any.
        name: a test of the name, None for any. marker: list what comes after this flavor (public id).
    """

    is_public: bool | None = None
    project_id: str | None = None
    disabled: bool | None = None
    least_memory_mib: int = 0
    least_root_gib: int = 0
    name: Callable[[str], bool] | None = None
    sort_key: str = "flavorid"
    descending: bool = False
    limit: int = 1000
    marker: str | None = None


def page(conn: sa.Connection, query: FlavorQuery) -> list[Flavor]:
    """The flavors of one page, in order; equal ones by row number. Raises FlavorNotFound: the marker."""
    key = SORT_KEYS[query.sort_key]
    if conn.dialect.name == "postgresql" and isinstance(key.type, sa.String):
        key = key.collate("C")
    order = (key, flavors.c.id)
    statement = sa.select(*_COLUMNS).where(*_conditions(query))
    statement = statement.order_by(*(part.desc() if query.descending else part.asc() for part in order))
    marker = query.marker
    found: list[Flavor] = []
    while len(found) < query.limit:
        size = query.limit - len(found) if query.name is None else _BATCH
        batch = statement.limit(size)
        if marker is not None:
            batch = batch.where(_beyond(order, _place(conn, order, marker), descending=query.descending))
        rows = [_flavor(row) for row in conn.execute(batch)]
        found += [flavor for flavor in rows if query.name is None or query.name(flavor.name)]
        if len(rows) < size:
            break
        marker = rows[-1].flavor_id
    return found[: query.limit]


def _conditions(query: FlavorQuery) -> list[sa.ColumnElement[bool]]:
    wanted = [flavors.c.memory_mib >= query.least_memory_mib, flavors.c.root_gib >= query.least_root_gib]
    if query.disabled is not None:
        wanted.append(flavors.c.disabled.is_(query.disabled))
    if query.is_public is not None:
        public = flavors.c.is_public.is_(query.is_public)
        mine = sa.select(flavor_access.c.flavor_id).where(flavor_access.c.project_id == query.project_id)
        wanted.append(sa.or_(public, flavors.c.flavor_id.in_(mine)) if query.is_public else public)
    return wanted


def _place(conn: sa.Connection, order: Sequence[sa.ColumnElement[Any]], flavor_id: str) -> Sequence[Any]:
    row = conn.execute(sa.select(*order).where(flavors.c.flavor_id == flavor_id)).first()
    if row is None:
        raise FlavorNotFound(flavor_id)
    return tuple(row)


def _beyond(
    order: Sequence[sa.ColumnElement[Any]], place: Sequence[Any], *, descending: bool
) -> sa.ColumnElement[bool]:
    (key, number), (value, last) = order, place
    if descending:
        return sa.or_(key < value, sa.and_(key == value, number < last))
    return sa.or_(key > value, sa.and_(key == value, number > last))


def projects_with_access(conn: sa.Connection, flavor_id: str) -> Sequence[str]:
    """The projects that may use a private flavor."""
    query = sa.select(flavor_access.c.project_id).where(flavor_access.c.flavor_id == flavor_id)
    return list(conn.execute(query.order_by(flavor_access.c.project_id)).scalars())


def add_access(conn: sa.Connection, flavor_id: str, project_id: str) -> None:
    """Let a project use a private flavor. Raises Conflict: it may already."""
    if project_id in projects_with_access(conn, flavor_id):
        raise Conflict(f"Flavor access already exists for flavor {flavor_id} and project {project_id} combination.")
    conn.execute(sa.insert(flavor_access), {"flavor_id": flavor_id, "project_id": project_id})


def remove_access(conn: sa.Connection, flavor_id: str, project_id: str) -> None:
    """Raises NotFound: the project has no access of its own."""
    one = (flavor_access.c.flavor_id == flavor_id, flavor_access.c.project_id == project_id)
    if conn.execute(sa.delete(flavor_access).where(*one)).rowcount == 0:
        raise NotFound(f"Flavor access not found for {flavor_id} / {project_id} combination.")


def describe(conn: sa.Connection, flavor_id: str, description: str | None, *, now: float) -> Flavor:
    """Change the description. Raises FlavorNotFound."""
    change = sa.update(flavors).where(flavors.c.flavor_id == flavor_id)
    if conn.execute(change.values(description=description, updated_at=now)).rowcount == 0:
        raise FlavorNotFound(flavor_id)
    return get(conn, flavor_id)


def set_extra_specs(conn: sa.Connection, flavor_id: str, specs: Mapping[str, str], *, now: float) -> None:
    """Add extra specs or change their values; others stay. Raises FlavorNotFound."""
    _write_extra_specs(conn, flavor_id, {**_lock_extra_specs(conn, flavor_id), **specs}, now)


def remove_extra_spec(conn: sa.Connection, flavor_id: str, key: str, *, now: float) -> None:
    """Raises FlavorNotFound, NotFound: the flavor has no such extra spec."""
    present = _lock_extra_specs(conn, flavor_id)
    if key not in present:
        raise NotFound(f"Flavor {flavor_id} has no extra specs with key {key}.")
    _write_extra_specs(conn, flavor_id, {name: value for name, value in present.items() if name != key}, now)


def _lock_extra_specs(conn: sa.Connection, flavor_id: str) -> dict[str, str]:
    query = sa.select(flavors.c.extra_specs).where(flavors.c.flavor_id == flavor_id).with_for_update()
    found: dict[str, str] | None = conn.execute(query).scalar()
    if found is None:
        raise FlavorNotFound(flavor_id)
    return found


def _write_extra_specs(conn: sa.Connection, flavor_id: str, specs: dict[str, str], now: float) -> None:
    change = sa.update(flavors).where(flavors.c.flavor_id == flavor_id)
    conn.execute(change.values(extra_specs=specs, updated_at=now))


def seed(conn: sa.Connection, *, now: float) -> None:
    """Give an installation that has no flavor the usual ones. May be repeated."""
    if conn.execute(sa.select(flavors.c.id).limit(1)).first() is not None:
        return
    for flavor_id, name, vcpus, memory_mib, root_gib in SEEDS:
        flavor = Flavor(flavor_id=flavor_id, name=name, vcpus=vcpus, memory_mib=memory_mib, root_gib=root_gib)
        create(conn, flavor, now=now)
