"""Finding the server a route is about. Spec: API-042, API-043."""

from __future__ import annotations

import re

from kilonova.api.call import Call
from kilonova.domain.errors import InstanceNotFound

_UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)


def is_uuid(text: str) -> bool:
    """Whether a text looks like a UUID, with or without dashes."""
    return _UUID.fullmatch(text) is not None


async def find_server(call: Call) -> None:
    """Set `call.server` from the path. Raises InstanceNotFound, also for a server of another project."""
    server_id = call.path["server_id"]
    if not is_uuid(server_id):
        raise InstanceNotFound(server_id)
    found = await call.cloud.cells.locate(server_id)
    if not call.context.is_admin and found.instance.project_id != call.context.project_id:
        raise InstanceNotFound(server_id)
    call.server = found
