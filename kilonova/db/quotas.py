"""Quotas that operators have set, in the API database: of projects, of users in them, and of quota classes.

A limit that nobody has set has no row. Spec: API-640, API-641.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.prepared import Prepared
from kilonova.db.upsert import put

PROJECT = ""
"""In place of a user: the limit of the project itself."""

quotas = sa.Table(
    "quotas",
    api_metadata,
    sa.Column("project_id", sa.String(255), primary_key=True),
    sa.Column("user_id", sa.String(255), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("limit_", sa.Integer, nullable=False),
)

quota_classes = sa.Table(
    "quota_classes",
    api_metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("resource", sa.String(64), primary_key=True),
    sa.Column("limit_", sa.Integer, nullable=False),
)


_OF_PROJECT = Prepared(
    sa.select(quotas.c.resource, quotas.c.limit_)
    .where(quotas.c.project_id == sa.bindparam("project"), quotas.c.user_id == sa.bindparam("user"))
)
_OF_CLASS = Prepared(
    sa.select(quota_classes.c.resource, quota_classes.c.limit_).where(quota_classes.c.name == sa.bindparam("name"))
)


def of_project(conn: sa.Connection, project_id: str, user_id: str = PROJECT) -> dict[str, int]:
    """The limits set for a project, or for that user in it, by resource."""
    return dict(_OF_PROJECT.all(conn, project=project_id, user=user_id))


def set_limits(conn: sa.Connection, project_id: str, limits: Mapping[str, int], user_id: str = PROJECT) -> None:
    """Set limits of a project, or of that user in it."""
    for resource, limit in limits.items():
        row = {"project_id": project_id, "user_id": user_id, "resource": resource, "limit_": limit}
        put(conn, quotas, row, ("project_id", "user_id", "resource"))


def forget(conn: sa.Connection, project_id: str, user_id: str | None = None) -> None:
    """Drop what is set for a user in the project, or for the project and all its users."""
    query = sa.delete(quotas).where(quotas.c.project_id == project_id)
    conn.execute(query if user_id is None else query.where(quotas.c.user_id == user_id))


def of_class(conn: sa.Connection, name: str) -> dict[str, int]:
    """The limits set for a quota class, by resource."""
    return dict(_OF_CLASS.all(conn, name=name))


def set_class_limits(conn: sa.Connection, name: str, limits: Mapping[str, int]) -> None:
    """Set limits of a quota class."""
    for resource, limit in limits.items():
        put(conn, quota_classes, {"name": name, "resource": resource, "limit_": limit}, ("name", "resource"))
