"""Small changes to the record of a server that no operation is needed for: name, metadata, tags.

The record is read and written in one unit of work, wherever it is: in a cell, or still as a build request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.cells.registry import Located
from kilonova.db import build_requests, instances
from kilonova.db.outbox import cell_outbox
from kilonova.domain.errors import InstanceInvalidState, InstanceLocked, InstanceNotFound
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.notifications.changes import tell_update
from kilonova.operations.acceptance import asked_by

Changes = Callable[[Instance], dict[str, Any]]
"""From the stored record to the fields to change ({} to leave it)."""

QUIET_STATES = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED})
"""vm_states in which metadata and tags may change."""


def check_state(instance: Instance, action: str, states: Collection[VmState]) -> None:
    """Raises InstanceInvalidState unless the server is in one of the states. Spec: API-062."""
    if instance.vm_state not in states:
        raise InstanceInvalidState(instance.uuid, action, "vm_state", instance.vm_state.value)


def check_lock(call: Call, instance: Instance) -> None:
    """Raises InstanceLocked for a locked server, unless the caller is admin. Spec: API-064."""
    if instance.locked_by is not None and not call.context.is_admin:
        raise InstanceLocked(instance.uuid)


async def change(call: Call, server: Located, changes: Changes, *, told: bool = False) -> Instance:
    """Change a record and return it as it is then.

    Args:
        changes: called inside the unit of work with the stored record; what it raises undoes the unit.
        told: others are told of it.

    Raises:
        InstanceNotFound: the server is gone.
    """
    uuid = server.instance.uuid
    if server.cell is None:
        changed = await call.cloud.cells.api.write(lambda conn: _change_request(conn, uuid, changes))
        if changed is not None:
            return changed
        server = await call.cloud.cells.locate(uuid)  # it was handed over to its cell meanwhile
        if server.cell is None:
            raise InstanceNotFound(uuid)
    now = call.cloud.clock.now()

    def write(conn: sa.Connection) -> Instance:
        before, after = _change_instance(conn, uuid, now, changes)
        if told and after is not before:
            tell_update(
                conn, cell_outbox, before, after, now=now, asker=asked_by(call.context), by_api=True
            )
        return after

    return await server.cell.database.write(write)


def _change_request(conn: sa.Connection, uuid: str, changes: Changes) -> Instance | None:
    request = build_requests.get(conn, uuid)
    if request is None:
        return None
    changed = msgspec.structs.replace(request.instance, **changes(request.instance))
    build_requests.update(conn, uuid, msgspec.structs.replace(request, instance=changed))
    return changed


def _change_instance(conn: sa.Connection, uuid: str, now: float, changes: Changes) -> tuple[Instance, Instance]:
    """Returns the record before and after; one and the same if nothing changes."""
    current = instances.get(conn, uuid)
    fields = changes(current)
    return current, instances.update(conn, uuid, now=now, **fields) if fields else current
