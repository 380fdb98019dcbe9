"""Telling of changes of records that no operation makes: of servers, services and groups, and of states.

Spec: DEL-53, DEL-56.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
import structlog

from kilonova.db import block_devices, server_groups
from kilonova.db.journal import cell_journal
from kilonova.db.outbox import Outbox, api_outbox, cell_outbox, listeners
from kilonova.db.services import Service
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.instance import BuildRequest, Instance
from kilonova.domain.notification import Priority
from kilonova.domain.operation import Asker, Failure
from kilonova.domain.states import TaskState, VmState
from kilonova.notifications import payloads
from kilonova.notifications.exists import COMPUTE
from kilonova.notifications.periods import current
from kilonova.notifications.tell import tell
from kilonova.notifications.usage import time_text, usage

log = structlog.get_logger(__name__)


def tell_action(conn: sa.Connection, outbox: Outbox, event: str, of: Instance, *, now: float, asker: Asker) -> None:
    """Tell what the API has done to a server at once. event: `lock`. It has no older form."""
    to = listeners(conn)
    if to is not None:
        told = payloads.instance(of, _volumes(conn, outbox, of), asker, None)
        tell(
            conn, outbox, now=now, subject=of.uuid, event_type=f"instance.{event}", asker=asker,
            publisher_id=f"nova-api:{to.host}", payload=payloads.versioned("InstanceActionPayload", "1.8", told),
        )


def _volumes(conn: sa.Connection, outbox: Outbox, of: Instance) -> list[BlockDevice]:
    """A server that no cell has yet has none."""
    return block_devices.of_server(conn, of.uuid) if outbox is cell_outbox else []


def tell_discarded(conn: sa.Connection, of: Instance, *, now: float, asker: Asker, forced: bool) -> None:
    """Tell of the delete of a server that had no cell yet, from its start to its end, in both forms."""
    to = listeners(conn)
    if to is None:
        return
    kind = "force_delete" if forced else "delete"
    for phase, changes in (
        ("start", {"task_state": TaskState.DELETING}),
        ("end", {"task_state": None, "vm_state": VmState.DELETED, "deleted_at": now, "terminated_at": now}),
    ):
        stands = payloads.replaced(of, **changes)
        tell(
            conn, api_outbox, now=now, subject=of.uuid, event_type=f"compute.instance.{kind}.{phase}", asker=asker,
            payload=usage(stands, network=True, fault=None), publisher_id=f"api.{to.host}", versioned=False,
        )
        tell_action(conn, api_outbox, f"{kind}.{phase}", stands, now=now, asker=asker)


def tell_update(
    conn: sa.Connection, outbox: Outbox, before: Instance, after: Instance, *, now: float, asker: Asker,
    by_api: bool = False,
) -> None:
    """Tell that the record of a server has changed, in both forms. by_api: the API has changed it."""
    to = listeners(conn)
    if to is None:
        return
    begin, end = current(now, to.usage_period)
    states = {
        "old_state": before.vm_state.value, "state": after.vm_state.value,
        "old_task_state": before.task_state.value if before.task_state else None,
        "new_task_state": after.task_state.value if after.task_state else None,
    }
    renamed = before.display_name if before.display_name != after.display_name else None
    host = to.host if by_api or after.host is None else after.host
    older = usage(
        after, network=False, fault=None, audit_period_beginning=time_text(begin), audit_period_ending=time_text(end),
        bandwidth={}, **states, **({"old_display_name": renamed} if renamed is not None else {}),
    )
    tell(
        conn, outbox, now=now, subject=after.uuid, event_type="compute.instance.update", payload=older, asker=asker,
        publisher_id=f"{'api' if by_api else 'compute'}.{host}", versioned=False,
    )
    data = payloads.instance(after, _volumes(conn, outbox, after), asker, None)
    del data["fault"]
    data |= {
        "state_update": payloads.versioned("InstanceStateUpdatePayload", "1.0", states),
        "audit_period": payloads.period(begin, end), "bandwidth": [], "old_display_name": renamed,
        "tags": list(after.tags),
    }
    tell(
        conn, outbox, now=now, subject=after.uuid, event_type="instance.update", asker=asker,
        payload=payloads.versioned("InstanceUpdatePayload", "1.9", data),
        publisher_id=f"{'nova-api' if by_api else COMPUTE}:{host}",
    )


def watch_states(conn: sa.Connection, before: Instance, after: Instance, now: float) -> None:
    """Called with each save of a server's record: tells of new states, if somebody wants to know. Nothing that goes
    wrong with it (but for a database that is away) undoes the save. Spec: BLD-44."""
    to = listeners(conn)
    if to is None or not to.state_changes:
        return
    changed = before.vm_state is not after.vm_state
    if to.state_changes == "vm_and_task_state":
        changed = changed or before.task_state is not after.task_state
    if not changed:
        return
    try:
        holder = cell_journal.holder(conn, after.uuid)
        asker = holder[0].asker if holder is not None else Asker()
        tell_update(conn, cell_outbox, before, after, now=now, asker=asker)
    except sa.exc.SQLAlchemyError:
        raise
    except Exception:
        log.exception("nobody is told of a state", instance=after.uuid)


def tell_service(conn: sa.Connection, event: str, of: Service, *, now: float, asker: Asker) -> None:
    """event: `create`, `update` or `delete`, in the cell of the service."""
    data = {
        "host": of.host, "binary": of.binary, "topic": of.binary.removeprefix("nova-"), "uuid": of.uuid,
        "disabled": of.disabled, "disabled_reason": of.disabled_reason, "forced_down": of.forced_down,
        "availability_zone": None, "last_seen_up": payloads.time_of(of.seen_at), "report_count": 0, "version": 0,
    }
    tell(
        conn, cell_outbox, now=now, subject=of.uuid, event_type=f"service.{event}", asker=asker,
        publisher_id=f"{of.binary}:{of.host}", payload=payloads.versioned("ServiceStatusPayload", "1.1", data),
    )


def tell_members(conn: sa.Connection, requests: Sequence[BuildRequest], *, now: float, asker: Asker) -> None:
    """New servers have joined their groups."""
    to = listeners(conn)
    for request in requests if to is not None else ():
        if to is not None and request.spec.server_group is not None:
            group = server_groups.get(conn, request.spec.server_group)
            payload = payloads.server_group(
                uuid=group.uuid, name=group.name, project_id=group.project_id, user_id=group.user_id,
                policy=group.policy.value, max_per_host=group.max_per_host, members=(request.instance.uuid,),
            )
            tell(
                conn, api_outbox, now=now, subject=group.uuid, event_type="server_group.add_member", payload=payload,
                publisher_id=f"nova-api:{to.host}", asker=asker,
            )


def tell_unplaced(conn: sa.Connection, request: BuildRequest, failure: Failure, *, now: float, asker: Asker) -> None:
    """No host can take a new server, in both forms."""
    to = listeners(conn)
    if to is None:
        return
    uuid = request.instance.uuid
    older = {
        "instance_id": uuid, "state": VmState.ERROR.value, "method": "build_instances", "reason": failure.message,
        "instance_properties": {"uuid": uuid}, "request_spec": {"instance_uuids": [uuid]},
    }
    tell(
        conn, cell_outbox, now=now, subject=uuid, event_type="compute_task.build_instances", payload=older,
        publisher_id=f"conductor.{to.host}", asker=asker, priority=Priority.ERROR, versioned=False,
    )
    data = {
        "instance_uuid": uuid, "state": VmState.ERROR.value, "reason": payloads.exception(failure),
        "request_spec": payloads.request_spec(request.spec),
    }
    tell(
        conn, cell_outbox, now=now, subject=uuid, event_type="compute_task.build_instances.error", asker=asker,
        payload=payloads.versioned("ComputeTaskPayload", "1.0", data), publisher_id=f"nova-conductor:{to.host}",
        priority=Priority.ERROR,
    )
