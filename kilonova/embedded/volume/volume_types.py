"""Types of volumes: what a volume can do beside holding data, and who may use it. Units of work."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.upsert import insert_missing
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import VolumeTypeNotFound
from kilonova.embedded.volume.records import Encryption, VolumeType

table = schema.types
column = table.c

DEFAULT = "__DEFAULT__"
"""The type that is always there: of volumes that are made without one, unless another was chosen for them."""
DEFAULT_ID = str(uuid.uuid5(uuid.UUID("0a0e6f2c-62f5-5b0d-8c5e-7d3f1f1b4a55"), DEFAULT))


def make_default(conn: sa.Connection, now: float) -> None:
    """Make the default type, unless it is there."""
    made = VolumeType(id=DEFAULT_ID, name=DEFAULT, description="Default Volume Type", created_at=now)
    insert_missing(conn, table, msgspec.structs.asdict(made))


def insert(conn: sa.Connection, made: VolumeType) -> None:
    """Raises Conflict: the name is taken."""
    if not insert_missing(conn, table, msgspec.structs.asdict(made)):
        raise Conflict(f"Volume Type {made.name} already exists.")


def get(conn: sa.Connection, type_id: str) -> VolumeType:
    """Raises VolumeTypeNotFound."""
    return _one(conn, type_id, column.id == type_id)


def named(conn: sa.Connection, caller: RequestContext, name_or_id: str) -> VolumeType:
    """A type that the caller may use, by name or id. Raises VolumeTypeNotFound. Spec: EMV-03."""
    found = _one(conn, name_or_id, sa.or_(column.id == name_or_id, column.name == name_or_id))
    return _allowed(conn, caller, found)


def visible(conn: sa.Connection, caller: RequestContext, type_id: str) -> VolumeType:
    """Raises VolumeTypeNotFound."""
    return _allowed(conn, caller, get(conn, type_id))


def by_name(conn: sa.Connection, name: str) -> VolumeType:
    """Raises VolumeTypeNotFound."""
    return _one(conn, name, column.name == name)


def _one(conn: sa.Connection, asked: str, where: sa.ColumnElement[bool]) -> VolumeType:
    row = conn.execute(sa.select(table).where(where).limit(1)).one_or_none() if "\0" not in asked else None
    if row is None:
        raise VolumeTypeNotFound(asked)
    return VolumeType(**row._mapping)


def _allowed(conn: sa.Connection, caller: RequestContext, found: VolumeType) -> VolumeType:
    if not found.is_public and not caller.is_admin and caller.project_id not in projects(conn, found.id):
        raise VolumeTypeNotFound(found.id)
    return found


def change(conn: sa.Connection, type_id: str, now: float, **values: Any) -> VolumeType:
    """Raises VolumeTypeNotFound; Conflict: the name is taken."""
    name = values.get("name")
    if name and conn.execute(sa.select(column.id).where(column.name == name, column.id != type_id)).first():
        raise Conflict(f"Volume Type {name} already exists.")
    conn.execute(table.update().where(column.id == type_id).values(updated_at=now, **values))
    return get(conn, type_id)


def delete(conn: sa.Connection, type_id: str, default: str) -> None:
    """Forget a type that nobody needs. default: name of that of the installation.

    Raises:
        VolumeTypeNotFound. InvalidInput: volumes have it, or it is the default of the installation or of a project.
    """
    of_projects = sa.select(schema.default_types.c.project_id).where(schema.default_types.c.type_id == type_id)
    if get(conn, type_id).name in (DEFAULT, default) or conn.execute(of_projects.limit(1)).first():
        raise InvalidInput(f"Volume Type {type_id} is a default volume type and cannot be deleted.")
    refuse_if_used(conn, type_id, "deleted")
    conn.execute(schema.type_access.delete().where(schema.type_access.c.type_id == type_id))
    conn.execute(schema.type_encryption.delete().where(schema.type_encryption.c.type_id == type_id))
    conn.execute(table.delete().where(column.id == type_id))


def refuse_if_used(conn: sa.Connection, type_id: str, what: str) -> None:
    """Raises InvalidInput."""
    if conn.execute(sa.select(schema.volumes.c.id).where(schema.volumes.c.type_id == type_id).limit(1)).first():
        raise InvalidInput(f"Volume Type {type_id} cannot be {what} while volumes have it.")


# --- who may use it ------------------------------------------------------------------------------


def projects(conn: sa.Connection, type_id: str) -> list[str]:
    """The projects that may use a type that is not public."""
    a = schema.type_access.c
    return list(conn.execute(sa.select(a.project_id).where(a.type_id == type_id).order_by(a.project_id)).scalars())


def add_project(conn: sa.Connection, type_id: str, project_id: str) -> None:
    """Raises VolumeTypeNotFound; Conflict: it may already, or all may."""
    if get(conn, type_id).is_public:
        raise Conflict(f"Type access modification is not applicable to public volume type {type_id}.")
    if not insert_missing(conn, schema.type_access, {"type_id": type_id, "project_id": project_id}):
        raise Conflict(f"Volume type access for {type_id} / {project_id} combination already exists.")


def remove_project(conn: sa.Connection, type_id: str, project_id: str) -> None:
    """Raises VolumeTypeNotFound; NotFound: it may not."""
    get(conn, type_id)
    a = schema.type_access.c
    gone = schema.type_access.delete().where(a.type_id == type_id, a.project_id == project_id)
    if not conn.execute(gone).rowcount:
        raise NotFound(f"Volume type access not found for {type_id} / {project_id} combination.")


# --- encryption ----------------------------------------------------------------------------------


def encryption(conn: sa.Connection, type_id: str) -> Encryption | None:
    """How volumes of the type are encrypted, None if they are not."""
    t = schema.type_encryption
    row = conn.execute(sa.select(t).where(t.c.type_id == type_id)).one_or_none()
    return None if row is None else Encryption(**row._mapping)


def set_encryption(conn: sa.Connection, made: Encryption) -> None:
    """Raises VolumeTypeNotFound; InvalidInput: it has one already, or volumes have the type."""
    get(conn, made.type_id)
    refuse_if_used(conn, made.type_id, "encrypted")
    if not insert_missing(conn, schema.type_encryption, msgspec.structs.asdict(made)):
        raise InvalidInput(f"Volume type encryption for type {made.type_id} already exists.")


def change_encryption(conn: sa.Connection, type_id: str, now: float, **values: Any) -> Encryption:
    """Raises NotFound; InvalidInput: volumes have the type."""
    refuse_if_used(conn, type_id, "encrypted otherwise")
    t = schema.type_encryption
    conn.execute(t.update().where(t.c.type_id == type_id).values(updated_at=now, **values))
    found = encryption(conn, type_id)
    if found is None:
        raise NotFound(f"Volume type encryption for type {type_id} does not exist.")
    return found


def drop_encryption(conn: sa.Connection, type_id: str) -> None:
    """Raises NotFound; InvalidInput: volumes have the type."""
    refuse_if_used(conn, type_id, "left without encryption")
    t = schema.type_encryption
    if not conn.execute(t.delete().where(t.c.type_id == type_id)).rowcount:
        raise NotFound(f"Volume type encryption for type {type_id} does not exist.")
