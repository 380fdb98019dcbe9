"""Finding the server a route is about. Spec: API-042, API-043."""

from __future__ import annotations

import re

from kilonova.api.call import Call
from kilonova.cells.registry import Cells, Located
from kilonova.db import build_requests, instances
from kilonova.domain.errors import InstanceNotFound

_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


def is_uuid(text: str) -> bool:
    """Whether a text looks like a UUID, with or without dashes."""
    return _UUID.fullmatch(text) is not None


async def locate_deleted(cells: Cells, uuid: str) -> Located:
    """Find a server, deleted or not. Raises InstanceNotFound."""
    cell_name = await cells.api.read(lambda conn: build_requests.cell_of(conn, uuid))
    if cell_name is None:
        return await cells.locate(uuid)
    cell = cells.named(cell_name)
    return Located(await cell.database.read(lambda conn: instances.get(conn, uuid, deleted=True)), cell)


async def find_server(call: Call) -> None:
    """Set `call.server` from the path. Raises InstanceNotFound, also for a server of another project."""
    server_id = call.path["server_id"]
    if not is_uuid(server_id):
        raise InstanceNotFound(server_id)
    _settle(call, await call.cloud.cells.locate(server_id))


async def find_server_or_deleted(call: Call) -> None:
    """The same, deleted servers included."""
    server_id = call.path["server_id"]
    if not is_uuid(server_id):
        raise InstanceNotFound(server_id)
    _settle(call, await locate_deleted(call.cloud.cells, server_id))


async def find_server_of_anyone(call: Call) -> None:
    """The same for routes whose rule refuses a foreign server instead of hiding it. Spec: API-042."""
    server_id = call.path["server_id"]
    if not is_uuid(server_id):
        raise InstanceNotFound(server_id)
    call.server = await call.cloud.cells.locate(server_id)


def _settle(call: Call, found: Located) -> None:
    if not call.context.is_admin and found.instance.project_id != call.context.project_id:
        raise InstanceNotFound(found.instance.uuid)
    call.server = found
