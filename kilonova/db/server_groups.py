"""Server groups and their members, in the API database."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import NotFound
from kilonova.domain.grouping import GroupPolicy, ServerGroup

groups = sa.Table(
    "server_groups",
    api_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("policy", sa.String(32), nullable=False),
    sa.Column("max_per_host", sa.Integer),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
)

members = sa.Table(
    "server_group_members",
    api_metadata,
    sa.Column("instance_uuid", Uuid, primary_key=True),
    sa.Column("group_uuid", Uuid, nullable=False, index=True),
)


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A server group as its owner made it. max_per_host: None unless that rule was given."""

    uuid: str
    name: str
    policy: GroupPolicy
    max_per_host: int | None = None
    project_id: str
    user_id: str
    created_at: float = 0.0
    members: tuple[str, ...] = ()


_COLUMNS = [column for column in groups.columns if column.name != "id"]
_GET = Prepared(sa.select(*_COLUMNS).where(groups.c.uuid == sa.bindparam("uuid")))
_MEMBERS = Prepared(
    sa.select(members.c.instance_uuid).where(members.c.group_uuid == sa.bindparam("uuid"))
    .order_by(members.c.instance_uuid)
)
_JOIN = Prepared(
    sa.insert(members).values(instance_uuid=sa.bindparam("instance_uuid"), group_uuid=sa.bindparam("group_uuid"))
)
_LEAVE = Prepared(sa.delete(members).where(members.c.instance_uuid == sa.bindparam("uuid")))


def create(conn: sa.Connection, group: GroupRecord) -> None:
    row = {column.name: getattr(group, column.name) for column in _COLUMNS}
    conn.execute(sa.insert(groups).values({**row, "policy": group.policy.value}))


def get(conn: sa.Connection, uuid: str) -> GroupRecord:
    """Raises NotFound."""
    row = _GET.first(conn, uuid=uuid)
    if row is None:
        raise NotFound(f"Instance group {uuid} could not be found.")
    return _record(row, tuple(_MEMBERS.scalars(conn, uuid=uuid)))


def _record(row: Any, members_of: tuple[str, ...]) -> GroupRecord:
    fields = {**row._asdict(), "policy": GroupPolicy(row.policy)}
    return GroupRecord(**fields, members=members_of)


def of_project(
    conn: sa.Connection, project_id: str | None, *, offset: int = 0, limit: int | None = None
) -> list[GroupRecord]:
    """The groups of a project (None: of all), oldest first."""
    query = sa.select(*_COLUMNS).order_by(groups.c.id).offset(offset).limit(limit)
    if project_id is not None:
        query = query.where(groups.c.project_id == project_id)
    rows = conn.execute(query).all()
    held: dict[str, list[str]] = {row.uuid: [] for row in rows}
    found = sa.select(members).where(members.c.group_uuid.in_(held)).order_by(members.c.instance_uuid)
    for member in conn.execute(found) if held else ():
        held[member.group_uuid].append(member.instance_uuid)
    return [_record(row, tuple(held[row.uuid])) for row in rows]


def count(conn: sa.Connection, project_id: str) -> int:
    """How many groups a project has."""
    query = sa.select(sa.func.count()).select_from(groups).where(groups.c.project_id == project_id)
    return int(conn.execute(query).scalar_one())


def delete(conn: sa.Connection, uuid: str) -> None:
    """Remove a group; its servers stay. Raises NotFound."""
    if conn.execute(sa.delete(groups).where(groups.c.uuid == uuid)).rowcount == 0:
        raise NotFound(f"Instance group {uuid} could not be found.")
    conn.execute(sa.delete(members).where(members.c.group_uuid == uuid))


def join(conn: sa.Connection, uuid: str, instance_uuid: str) -> None:
    """Make a server a member. A group that is gone takes nobody. Spec: BLD-20."""
    if _GET.first(conn, uuid=uuid) is not None:
        _JOIN.run(conn, instance_uuid=instance_uuid, group_uuid=uuid)


def leave(conn: sa.Connection, instance_uuid: str) -> None:
    """A server is deleted. One that is in no group is fine."""
    _LEAVE.run(conn, uuid=instance_uuid)


def of_server(conn: sa.Connection, instance_uuid: str) -> str | None:
    """The uuid of the group that a server is in."""
    query = sa.select(members.c.group_uuid).where(members.c.instance_uuid == instance_uuid)
    found: str | None = conn.execute(query).scalar()
    return found


def for_scheduling(conn: sa.Connection, uuid: str) -> ServerGroup | None:
    """The group as the scheduler needs it; None if there is none any more."""
    row = _GET.first(conn, uuid=uuid)
    if row is None:
        return None
    return ServerGroup(
        uuid=uuid, policy=GroupPolicy(row.policy), max_per_host=row.max_per_host or 1,
        members=tuple(_MEMBERS.scalars(conn, uuid=uuid)),
    )
