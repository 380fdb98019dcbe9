"""Migrations of servers: resizes, and what else moves them. Spec: API-250, API-456."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.server_filters import time
from kilonova.api.compute.server_view import microseconds
from kilonova.api.paging import effective_limit, next_page
from kilonova.api.policy import Audience, Rule, Target
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Integer, Text
from kilonova.db import migration_records
from kilonova.db.migration_records import Wanted
from kilonova.domain.errors import InvalidInput
from kilonova.domain.migration import LIVE_IN_PROGRESS, Migration, MigrationType

INDEX = Rule("os-migrations:index", Audience.MANAGER)
ALL_PROJECTS = Rule("os-migrations:index:all_projects", Audience.ADMIN)
HOSTS = Rule("os-migrations:index:host", Audience.ADMIN)

_FILTERS = ("instance_uuid", "host", "source_compute", "status", "migration_type")
_HOSTS = ("source_compute", "source_node", "dest_compute", "dest_node")
LIST_QUERY = Query(
    {
        **{name: Param(Text()) for name in (*_FILTERS, "hidden")},
        "limit": Param(Integer(0), since=59),
        "marker": Param(Text(), since=59),
        "changes-since": Param(Text(), since=59),
        "changes-before": Param(Text(), since=66),
        "user_id": Param(Text(), since=80),
        "project_id": Param(Text(), since=80),
    },
    strict_since=59,
)


def view(call: Call, migration: Migration) -> dict[str, Any]:
    hosts_seen = call.allows(HOSTS)
    shown: dict[str, Any] = {
        "id": migration.id, "instance_uuid": migration.instance_uuid, "status": migration.status.value,
        "old_instance_type_id": migration.old_flavor.id, "new_instance_type_id": migration.new_flavor.id,
        "created_at": microseconds(migration.created_at), "updated_at": microseconds(migration.updated_at),
        **{name: getattr(migration, name) if hosts_seen else None for name in _HOSTS},
        "dest_host": migration.dest_address if hosts_seen else None,
    }
    if call.version >= 23:
        shown["migration_type"] = migration.migration_type.value
        if migration.migration_type is MigrationType.LIVE and migration.status in LIVE_IN_PROGRESS:
            path = f"/servers/{migration.instance_uuid}/migrations/{migration.id}"
            shown["links"] = call.links.pair(path)
    if call.version >= 59:
        shown["uuid"] = migration.uuid
    if call.version >= 80:
        shown |= {"user_id": migration.user_id, "project_id": migration.project_id}
    return shown


async def index(call: Call) -> Any:
    """Managers see those of their own project, which they have to name."""
    asked = call.query.last("project_id")
    call.require(INDEX, Target(asked or call.context.project_id, None))
    if asked is None or asked != call.context.project_id:
        call.require(ALL_PROJECTS)
    wanted = _wanted(call)
    paged = call.version >= 59
    limit = effective_limit(call) if paged else None
    after = await _marker(call)
    found: list[Migration] = []
    for cell in call.cloud.cells.all:
        found += await cell.database.read(
            lambda conn: migration_records.listed(conn, wanted, limit=limit, after=after)
        )
    found.sort(key=lambda migration: (migration.created_at, migration.id), reverse=True)
    shown = found[:limit]
    entries = {"migrations": [view(call, migration) for migration in shown]}
    if not paged:
        return entries
    markers = [migration.uuid for migration in shown]
    return entries | next_page(call, "/os-migrations", markers, limit or 0, "migrations_links")


def _wanted(call: Call) -> Wanted:
    """Raises InvalidInput."""
    query = call.query
    since, before = (
        time(name, query.last(name)) if name in query else None for name in ("changes-since", "changes-before")
    )
    if since is not None and before is not None and since > before:
        raise InvalidInput("The value of changes-since must be less than or equal to changes-before.")
    return Wanted(
        **{name: query.last(name) for name in (*_FILTERS, "user_id", "project_id")},
        changed_since=since, changed_before=before,
    )


async def _marker(call: Call) -> Migration | None:
    """The migration that the page follows. Raises InvalidInput: there is none."""
    marker = call.query.last("marker")
    if marker is None:
        return None
    for cell in call.cloud.cells.all:
        found = await cell.database.read(lambda conn: migration_records.find(conn, marker))
        if found is not None:
            return found
    raise InvalidInput(f"Marker {marker} could not be found.")


ROUTES = [
    Route(method="GET", path="/os-migrations", handler=index, rules=(INDEX, ALL_PROJECTS, HOSTS), query=LIST_QUERY,
          answer=answers.MIGRATIONS),
]
