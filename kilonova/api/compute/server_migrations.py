"""Live migrations of a server that are in progress. Spec: API-164 to API-167, API-457, API-522 to API-524, API-565.

This release begins none, so that records of them are those of another one.
"""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.compute.server_view import microseconds
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Null, Object, required
from kilonova.db import migration_records
from kilonova.domain.errors import InstanceInvalidState, InvalidInput, NotFound, NotSupported
from kilonova.domain.migration import LIVE_IN_PROGRESS, Migration, MigrationStatus, MigrationType
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.acceptance import respect_lock

INDEX = Rule("servers:migrations:index", Audience.MANAGER)
HOSTS = Rule("servers:migrations:index:host", Audience.ADMIN)
SHOW = Rule("servers:migrations:show", Audience.ADMIN)
DELETE = Rule("servers:migrations:delete", Audience.MANAGER)
FORCE_COMPLETE = Rule("servers:migrations:force_complete", Audience.MANAGER)

_HOSTS = ("source_compute", "source_node", "dest_compute", "dest_node")
_PROGRESS = tuple(f"{of}_{what}_bytes" for of in ("memory", "disk") for what in ("total", "processed", "remaining"))
_QUEUED = (MigrationStatus.QUEUED, MigrationStatus.PREPARING)


async def index(call: Call) -> Any:
    hosts_seen = call.allows(HOSTS)
    return {"migrations": [_view(call, found, hosts_seen=hosts_seen) for found in await _in_progress(call)]}


async def show(call: Call) -> Any:
    for migration in await _in_progress(call):
        if str(migration.id) == call.path["id"]:
            return {"migration": _view(call, migration, hosts_seen=True)}
    raise _missing(call)


async def abort(call: Call) -> None:
    """Spec: API-166, API-565."""
    respect_lock(call.context, call.server, "abort live migration")
    _require_migrating(call, "abort live migration", (*VmState,))
    migration = await _find(call)
    if migration is None:
        raise _missing(call)
    wanted = (MigrationStatus.RUNNING, *(_QUEUED if call.version >= 65 else ()))
    if migration.status not in wanted:
        raise InvalidInput(f"Migration {migration.id} is {migration.status.value} and cannot be aborted.")
    raise NotSupported("This release has no live migrations that it could end.")


async def force_complete(call: Call) -> None:
    """Spec: API-167."""
    respect_lock(call.context, call.server, "force_complete")
    _require_migrating(call, "force_complete", (VmState.ACTIVE,))
    migration = await _find(call)
    if migration is None or migration.status is not MigrationStatus.RUNNING:
        raise InvalidInput(f"Migration {call.path['id']} of server {call.server.instance.uuid} is not running.")
    raise NotSupported("This release has no live migrations that it could speed up.")


def _require_migrating(call: Call, action: str, vm: tuple[VmState, ...]) -> None:
    """Raises InstanceInvalidState."""
    instance = call.server.instance
    if instance.vm_state not in vm:
        raise InstanceInvalidState(instance.uuid, action, "vm_state", instance.vm_state.value)
    if instance.task_state is not TaskState.MIGRATING:
        stored = instance.task_state.value if instance.task_state else "None"
        raise InstanceInvalidState(instance.uuid, action, "task_state", stored)


async def _live(call: Call) -> list[Migration]:
    server = call.server
    if server.cell is None:
        return []
    found = await server.cell.database.read(lambda conn: migration_records.of_server(conn, server.instance.uuid))
    return [m for m in found if m.migration_type is MigrationType.LIVE and not m.hidden]


async def _in_progress(call: Call) -> list[Migration]:
    return [migration for migration in await _live(call) if migration.status in LIVE_IN_PROGRESS]


async def _find(call: Call) -> Migration | None:
    return next((migration for migration in await _live(call) if str(migration.id) == call.path["id"]), None)


def _missing(call: Call) -> NotFound:
    return NotFound(f"Migration {call.path['id']} for server {call.server.instance.uuid} is not in progress.")


def _view(call: Call, migration: Migration, *, hosts_seen: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": migration.id, "server_uuid": migration.instance_uuid, "status": migration.status.value,
        "created_at": microseconds(migration.created_at), "updated_at": microseconds(migration.updated_at),
        **{name: getattr(migration, name) if hosts_seen else None for name in _HOSTS},
        "dest_host": migration.dest_address if hosts_seen else None, **dict.fromkeys(_PROGRESS),
    }
    if call.version >= 59:
        shown["uuid"] = migration.uuid
    if call.version >= 80:
        shown |= {"user_id": migration.user_id, "project_id": migration.project_id}
    return shown


_PATH = "/servers/{server_id}/migrations"
ROUTES = [
    Route(method="GET", path=_PATH, handler=index, look_up=find_server, rule=INDEX, rules=(HOSTS,), since=23,
          answer=answers.MIGRATIONS),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=show, look_up=find_server, rule=SHOW, since=23,
          answer=answers.MIGRATION),
    Route(method="DELETE", path=f"{_PATH}/{{id}}", handler=abort, look_up=find_server, rule=DELETE, since=24,
          status=202, errors=(501,)),
    Route(method="POST", path=f"{_PATH}/{{id}}/action", action="force_complete", handler=force_complete,
          look_up=find_server, rule=FORCE_COMPLETE, body=Object({"force_complete": required(Null())}), since=22,
          status=202, errors=(501,)),
]
