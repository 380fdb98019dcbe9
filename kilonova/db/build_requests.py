"""Which cell a server is in, what was asked for, and servers that have no cell yet. In the API database.

A server is visible through its mapping. While the mapping names no cell, the build request is its record.
Deleting it in that time removes mapping and build request in one transaction. Spec: DEL-46 to DEL-51.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
import sqlalchemy as sa

from kilonova.db import server_groups
from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import BuildRequest, RequestSpec

instance_mappings = sa.Table(
    "instance_mappings",
    api_metadata,
    sa.Column("uuid", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("cell", sa.String(64)),
    sa.Column("created_at", Timestamp, nullable=False),
)

build_requests = sa.Table(
    "build_requests",
    api_metadata,
    sa.Column("uuid", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("body", Json(BuildRequest), nullable=False),
)

request_specs = sa.Table(
    "request_specs",
    api_metadata,
    sa.Column("uuid", Uuid, primary_key=True),
    sa.Column("body", Json(RequestSpec), nullable=False),
)


_MAP = Prepared(sa.insert(instance_mappings).values({c.name: sa.bindparam(c.name) for c in instance_mappings.columns}))
_WAIT = Prepared(sa.insert(build_requests).values({c.name: sa.bindparam(c.name) for c in build_requests.columns}))
_SPECIFY = Prepared(sa.insert(request_specs).values({c.name: sa.bindparam(c.name) for c in request_specs.columns}))
_CELL_OF = Prepared(sa.select(instance_mappings.c.cell).where(instance_mappings.c.uuid == sa.bindparam("uuid")))
_waiting = sa.select(build_requests.c.body).where(build_requests.c.uuid == sa.bindparam("uuid"))
_GET, _GET_LOCKED = Prepared(_waiting), Prepared(_waiting.with_for_update())
_DROP = Prepared(sa.delete(build_requests).where(build_requests.c.uuid == sa.bindparam("uuid")))
_DROP_SPEC = Prepared(sa.delete(request_specs).where(request_specs.c.uuid == sa.bindparam("uuid")))
_HAND_OVER = Prepared(
    sa.update(instance_mappings).where(instance_mappings.c.uuid == sa.bindparam("b_uuid"))
    .values(cell=sa.bindparam("cell"))
)


def accept(conn: sa.Connection, requests: Collection[BuildRequest]) -> None:
    """Store new servers: mapping, build request, request spec and membership in a group of each."""
    for request in requests:
        instance = request.instance
        known = {"uuid": instance.uuid, "project_id": instance.project_id, "created_at": instance.created_at}
        _MAP.run(conn, **known, cell=None)
        _WAIT.run(conn, **known, body=request)
        _SPECIFY.run(conn, uuid=instance.uuid, body=request.spec)
        if request.spec.server_group is not None:
            server_groups.join(conn, request.spec.server_group, instance.uuid)


def cell_of(conn: sa.Connection, uuid: str) -> str | None:
    """The cell of a server, None while it has none. Raises InstanceNotFound."""
    row = _CELL_OF.first(conn, uuid=uuid)
    if row is None:
        raise InstanceNotFound(uuid)
    cell: str | None = row[0]
    return cell


def get(conn: sa.Connection, uuid: str) -> BuildRequest | None:
    """The build request, None once it is consumed or deleted."""
    found: BuildRequest | None = _GET.scalar(conn, uuid=uuid)
    return found


def of_project(conn: sa.Connection, project_id: str | None) -> list[BuildRequest]:
    """All waiting build requests of a project (None: of all), newest first."""
    query = sa.select(build_requests.c.body).order_by(
        build_requests.c.created_at.desc(), build_requests.c.uuid.desc()
    )
    if project_id is not None:
        query = query.where(build_requests.c.project_id == project_id)
    return list(conn.execute(query).scalars())


def update(conn: sa.Connection, uuid: str, request: BuildRequest) -> None:
    """Replace the stored request (a rename while it waits)."""
    conn.execute(sa.update(build_requests).where(build_requests.c.uuid == uuid).values(body=request))


def consume(conn: sa.Connection, uuid: str, cell: str) -> BuildRequest | None:
    """Hand the server over to its cell: one atomic step.

    Returns:
        The request as it stood at that moment, with what was changed while it waited; None if it was deleted
        first: the server must not come back. Spec: DEL-50.
    """
    request: BuildRequest | None = _GET_LOCKED.scalar(conn, uuid=uuid)
    if request is None:
        return None
    _DROP.run(conn, uuid=uuid)
    _HAND_OVER.run(conn, b_uuid=uuid, cell=cell)
    return request


def discard(conn: sa.Connection, uuid: str) -> bool:
    """Delete a server that has no cell yet. Returns False if it was handed over first. Spec: DEL-46, DEL-49."""
    if _DROP.run(conn, uuid=uuid) != 1:
        return False
    conn.execute(sa.delete(instance_mappings).where(instance_mappings.c.uuid == uuid))
    forget(conn, uuid)
    return True


def spec_of(conn: sa.Connection, uuid: str) -> RequestSpec | None:
    found: RequestSpec | None = conn.execute(
        sa.select(request_specs.c.body).where(request_specs.c.uuid == uuid)
    ).scalar()
    return found


def forget(conn: sa.Connection, uuid: str) -> None:
    """Drop the request spec of a deleted server, and take it out of its group. The mapping stays, so that its
    history can be found."""
    _DROP_SPEC.run(conn, uuid=uuid)
    server_groups.leave(conn, uuid)


def replace_spec(conn: sa.Connection, spec: RequestSpec, **changes: object) -> None:
    conn.execute(
        sa.update(request_specs)
        .where(request_specs.c.uuid == spec.instance_uuid)
        .values(body=msgspec.structs.replace(spec, **changes))
    )
