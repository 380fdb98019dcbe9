"""The types of volumes that are made without one: a project's own, or that of the installation. Units of work."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.upsert import put
from kilonova.domain.errors import NotFound
from kilonova.embedded.volume import schema, volume_types
from kilonova.embedded.volume.records import VolumeType

table = schema.default_types
column = table.c


def effective(conn: sa.Connection, project_id: str | None, name: str) -> VolumeType:
    """The type of a new volume of a project that names none. name: of the type for projects without their own.

    Raises:
        VolumeTypeNotFound: there is no type of that name.
    """
    own = None if project_id is None else _own(conn, project_id)
    return volume_types.by_name(conn, name) if own is None else volume_types.get(conn, own)


def every(conn: sa.Connection) -> list[tuple[str, str]]:
    """Pairs of project and type."""
    rows = conn.execute(sa.select(column.project_id, column.type_id).order_by(column.project_id))
    return [(project, type_id) for project, type_id in rows]


def of_project(conn: sa.Connection, project_id: str) -> str:
    """The id of a project's own. Raises NotFound: it has none."""
    found = _own(conn, project_id) if "\0" not in project_id else None
    if found is None:
        raise NotFound(f"Default type for project {project_id} could not be found.")
    return found


def _own(conn: sa.Connection, project_id: str) -> str | None:
    found: str | None = conn.execute(
        sa.select(column.type_id).where(column.project_id == project_id)
    ).scalar_one_or_none()
    return found


def assign(conn: sa.Connection, project_id: str, type_id: str) -> None:
    """Give a project its own, in place of what it had."""
    put(conn, table, {"project_id": project_id, "type_id": type_id}, ["project_id"])


def remove(conn: sa.Connection, project_id: str) -> None:
    """Let a project have that of the installation again, if it does not already."""
    conn.execute(table.delete().where(column.project_id == project_id))
