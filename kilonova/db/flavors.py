"""Flavors and who may use the private ones, in the API database."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Json, Timestamp
from kilonova.domain.errors import Conflict, FlavorNotFound
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

_FIELDS = tuple(field for field in Flavor.__struct_fields__ if field != "id")
_COLUMNS = [flavors.c.id, *(flavors.c[name] for name in _FIELDS)]


def _flavor(row: sa.Row[tuple[object, ...]]) -> Flavor:
    return Flavor(**row._mapping)


def get(conn: sa.Connection, flavor_id: str) -> Flavor:
    """One flavor by its public id. Raises FlavorNotFound."""
    row = conn.execute(sa.select(*_COLUMNS).where(flavors.c.flavor_id == flavor_id)).first()
    if row is None:
        raise FlavorNotFound(flavor_id)
    return _flavor(row)


def create(conn: sa.Connection, flavor: Flavor, *, now: float) -> Flavor:
    """Store a new flavor and return it with its row number. Raises Conflict: name or id is taken."""
    for column, value in ((flavors.c.name, flavor.name), (flavors.c.flavor_id, flavor.flavor_id)):
        if conn.execute(sa.select(flavors.c.id).where(column == value)).first() is not None:
            what = "name" if column is flavors.c.name else "ID"
            raise Conflict(f"Flavor with {what} {value} already exists.")
    row = {name: getattr(flavor, name) for name in _FIELDS}
    done = conn.execute(sa.insert(flavors), {**row, "created_at": now})
    assert done.inserted_primary_key is not None
    return msgspec.structs.replace(flavor, id=done.inserted_primary_key[0])


def all_flavors(conn: sa.Connection) -> list[Flavor]:
    """Every flavor, by public id."""
    return [_flavor(row) for row in conn.execute(sa.select(*_COLUMNS).order_by(flavors.c.flavor_id))]


def delete(conn: sa.Connection, flavor_id: str) -> None:
    """Remove a flavor and its access entries. Raises FlavorNotFound."""
    if conn.execute(sa.delete(flavors).where(flavors.c.flavor_id == flavor_id)).rowcount == 0:
        raise FlavorNotFound(flavor_id)
    conn.execute(sa.delete(flavor_access).where(flavor_access.c.flavor_id == flavor_id))


def projects_with_access(conn: sa.Connection, flavor_id: str) -> Sequence[str]:
    """The projects that may use a private flavor."""
    query = sa.select(flavor_access.c.project_id).where(flavor_access.c.flavor_id == flavor_id)
    return list(conn.execute(query.order_by(flavor_access.c.project_id)).scalars())
