"""Instance records and their faults, in the cell database.

A record is one JSON document (`body`), because nearly every reader wants all of it; the columns beside it are
projections for look-ups, filters and guarded saves. `insert` and `update` are the only writers, so that document
and columns cannot disagree.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db import block_devices, console_tokens, secrets
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import InstanceNotFound, StaleState
from kilonova.domain.instance import GUEST_PASSWORD, Fault, Instance
from kilonova.domain.states import GUEST_OFF, HARD_REBOOT_TASKS, PowerState, TaskState, VmState
from kilonova.shapes.resources import is_volume_backed, local_gib

instances = sa.Table(
    "instances",
    cell_metadata,
    sa.Column("uuid", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False),
    sa.Column("user_id", sa.String(64), nullable=False),
    sa.Column("reservation_id", sa.String(64), nullable=False),
    sa.Column("display_name", sa.String(255), nullable=False),
    sa.Column("hostname", sa.String(255), nullable=False),
    sa.Column("vm_state", sa.String(32), nullable=False),
    sa.Column("task_state", sa.String(64)),
    sa.Column("power_state", sa.Integer, nullable=False),
    sa.Column("host", sa.String(255)),
    sa.Column("node", sa.String(255)),
    sa.Column("availability_zone", sa.String(255)),
    sa.Column("image_ref", sa.String(64), nullable=False),
    sa.Column("flavor_id", sa.String(255), nullable=False),
    sa.Column("key_name", sa.String(255)),
    sa.Column("vcpus", sa.Integer, nullable=False),
    sa.Column("memory_mib", sa.Integer, nullable=False),
    sa.Column("disk_gib", sa.Integer, nullable=False),
    sa.Column("locked", sa.Boolean, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.Column("updated_at", Timestamp),
    sa.Column("launched_at", Timestamp),
    sa.Column("deleted_at", Timestamp),
    sa.Column("body", Json(Instance), nullable=False),
    sa.Index("instances_project_created", "project_id", "created_at", "uuid"),
    sa.Index("instances_created", "created_at", "uuid"),
    sa.Index("instances_host", "host"),
    sa.Index(
        "instances_soft_deleted", "project_id", "user_id", "vcpus", "memory_mib", "disk_gib",
        sqlite_where=sa.text("vm_state = 'soft-delete'"), postgresql_where=sa.text("vm_state = 'soft-delete'"),
    ),
    sa.Index("instances_usage", "project_id", "deleted_at", "user_id", "vcpus", "memory_mib", "disk_gib"),
)

instance_faults = sa.Table(
    "instance_faults",
    cell_metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("instance_uuid", Uuid, nullable=False),
    sa.Column("operation_id", Uuid, nullable=False),
    sa.Column("code", sa.Integer, nullable=False),
    sa.Column("message", sa.String(255), nullable=False),
    sa.Column("details", sa.Text, nullable=False),
    sa.Column("created_at", Timestamp, nullable=False),
    sa.UniqueConstraint("instance_uuid", "operation_id"),
)

_by_uuid = sa.select(instances.c.body).where(instances.c.uuid == sa.bindparam("uuid"))
_GET = Prepared(_by_uuid)
_GET_LOCKED = Prepared(_by_uuid.with_for_update())
_INSERT = Prepared(sa.insert(instances).values({c.name: sa.bindparam(c.name) for c in instances.columns}))
_UPDATE = Prepared(
    sa.update(instances)
    .where(instances.c.uuid == sa.bindparam("b_uuid"))
    .values({c.name: sa.bindparam(c.name) for c in instances.columns if c.name != "uuid"})
)
_ON_HOST = Prepared(
    sa.select(instances.c.body).where(instances.c.host == sa.bindparam("host"), instances.c.deleted_at.is_(None))
)
_COUNT_ON_HOST = Prepared(
    sa.select(sa.func.count())
    .select_from(instances)
    .where(instances.c.host == sa.bindparam("host"), instances.c.deleted_at.is_(None))
)
_DERIVED = ("body", "flavor_id", "vcpus", "memory_mib", "disk_gib", "locked")
_PROJECTED = tuple(c.name for c in instances.columns if c.name not in _DERIVED)
_NO_CONSOLE = GUEST_OFF | {PowerState.SUSPENDED}
_ENDS_GUEST = HARD_REBOOT_TASKS | {
    TaskState.DELETING, TaskState.SOFT_DELETING, TaskState.REBUILDING, TaskState.RESCUING,
    TaskState.UNRESCUING,
}
WATCHER = "kilonova_watcher"
"""Name of the execution option under which connections carry who is called with each change of a record: with the
connection, the record before and after it, and the time."""
ANY: Collection[Any] = ("any",)
"""As an expectation of `update`: whatever is stored."""


def _row(instance: Instance) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(instance, name) for name in _PROJECTED}
    row["vm_state"] = instance.vm_state.value
    row["task_state"] = instance.task_state.value if instance.task_state else None
    row["power_state"] = int(instance.power_state)
    row["flavor_id"] = instance.flavor.flavor_id
    row["vcpus"] = instance.flavor.vcpus
    row["memory_mib"] = instance.flavor.memory_mib
    row["disk_gib"] = local_gib(instance.flavor, volume_backed=is_volume_backed(instance.block_devices))
    row["locked"] = instance.locked_by is not None
    row["body"] = instance
    return row


def insert(conn: sa.Connection, instance: Instance) -> None:
    """Store a new record; one that exists already is left as it is (the call is repeatable)."""
    if _GET.first(conn, uuid=instance.uuid) is None:
        _INSERT.run(conn, **_row(instance))


def get(conn: sa.Connection, uuid: str, *, deleted: bool = False, lock: bool = False) -> Instance:
    """Read a record. lock: and keep others from changing it until the end of the transaction.

    Raises:
        InstanceNotFound: there is none, or it is deleted and `deleted` is not set.
    """
    found: Instance | None = (_GET_LOCKED if lock else _GET).scalar(conn, uuid=uuid)
    if found is None or (found.deleted_at is not None and not deleted):
        raise InstanceNotFound(uuid)
    return found


def on_host(conn: sa.Connection, host: str) -> list[Instance]:
    """All records, not deleted, that name this host."""
    return _ON_HOST.scalars(conn, host=host)


def hosts_in_use(conn: sa.Connection) -> list[str]:
    """Hosts that records, not deleted, name."""
    query = sa.select(instances.c.host).where(instances.c.host.is_not(None), instances.c.deleted_at.is_(None))
    return list(conn.execute(query.distinct().order_by(instances.c.host)).scalars())


def count_on_host(conn: sa.Connection, host: str) -> int:
    """How many records, not deleted, name this host."""
    return int(_COUNT_ON_HOST.scalar(conn, host=host))


def rescued(conn: sa.Connection) -> list[Instance]:
    """All servers that are rescued and at rest."""
    query = sa.select(instances.c.body).where(
        instances.c.vm_state == sa.literal_column(f"'{VmState.RESCUED.value}'"), instances.c.task_state.is_(None),
        instances.c.deleted_at.is_(None),
    )
    return list(conn.execute(query).scalars())


def shelved(conn: sa.Connection) -> list[Instance]:
    """All servers that are shelved and at rest."""
    query = sa.select(instances.c.body).where(
        instances.c.vm_state == sa.literal_column(f"'{VmState.SHELVED.value}'"), instances.c.task_state.is_(None),
        instances.c.deleted_at.is_(None),
    )
    return list(conn.execute(query).scalars())


def soft_deleted(conn: sa.Connection) -> list[Instance]:
    """All servers that are soft-deleted and at rest."""
    query = sa.select(instances.c.body).where(
        instances.c.vm_state == sa.literal_column(f"'{VmState.SOFT_DELETED.value}'"), instances.c.task_state.is_(None)
    )
    return list(conn.execute(query).scalars())


def with_tasks(conn: sa.Connection, tasks: Collection[TaskState]) -> list[str]:
    """UUIDs of servers, not deleted, that are in one of these task states."""
    query = sa.select(instances.c.uuid).where(
        instances.c.task_state.in_([task.value for task in tasks]), instances.c.deleted_at.is_(None)
    )
    return list(conn.execute(query.order_by(instances.c.created_at)).scalars())


def update(
    conn: sa.Connection,
    uuid: str,
    *,
    now: float,
    task: Collection[TaskState | None] = ANY,
    vm: Collection[VmState] = ANY,
    deleted: bool = False,
    **changes: Any,
) -> Instance:
    """A guarded save: change fields if the stored states are among the expected ones.

    Args:
        now: the time of the change, stored as updated_at.
        task, vm: the states accepted; `ANY` accepts all.
        deleted: also change a record marked deleted.
        changes: field names of Instance and their new values.

    Raises:
        InstanceNotFound: the record is gone. StaleState: it is in another state; nothing is written.
    """
    current: Instance | None = _GET_LOCKED.scalar(conn, uuid=uuid)
    if current is None or (current.deleted_at is not None and not deleted):
        raise InstanceNotFound(uuid)
    if task is not ANY and current.task_state not in task:
        raise StaleState(f"Instance {uuid} is in task_state {_value(current.task_state)}")
    if vm is not ANY and current.vm_state not in vm:
        raise StaleState(f"Instance {uuid} is in vm_state {current.vm_state.value}")
    changed = msgspec.structs.replace(current, updated_at=now, **changes)
    row = _row(changed)
    row["b_uuid"] = row.pop("uuid")
    _UPDATE.run(conn, **row)
    if (watcher := conn.get_execution_options().get(WATCHER)) is not None:
        watcher(conn, current, changed, now)
    if _loses_guest(current, changed):
        console_tokens.revoke(conn, uuid)
    if changed.deleted_at is not None and current.deleted_at is None:
        secrets.forget(conn, uuid)
    return changed


def _loses_guest(before: Instance, after: Instance) -> bool:
    """Whether the guest that was there ends with this change, is about to, or is another one now. Spec: CON-20."""
    return (
        before.host != after.host
        or (before.power_state not in _NO_CONSOLE and after.power_state in _NO_CONSOLE)
        or (before.task_state is not after.task_state and after.task_state in _ENDS_GUEST)
    )


def _value(state: TaskState | None) -> str:
    return state.value if state else "None"


def add_fault(conn: sa.Connection, uuid: str, operation_id: str, fault: Fault) -> None:
    """Store why an operation failed, at most once per operation. Spec: FND-18, FND-21."""
    seen = sa.select(instance_faults.c.id).where(
        instance_faults.c.instance_uuid == uuid, instance_faults.c.operation_id == operation_id
    )
    if conn.execute(seen).first() is None:
        conn.execute(
            sa.insert(instance_faults),
            {
                "instance_uuid": uuid,
                "operation_id": operation_id,
                "code": fault.code,
                "message": fault.message[:255],
                "details": fault.details,
                "created_at": fault.created_at,
            },
        )


def latest_faults(conn: sa.Connection, uuids: Collection[str]) -> dict[str, Fault]:
    """The newest fault of each of those instances that has one."""
    faults: dict[str, Fault] = {}
    if not uuids:
        return faults
    table = instance_faults
    newest = sa.select(sa.func.max(table.c.id)).where(table.c.instance_uuid.in_(uuids)).group_by(table.c.instance_uuid)
    for row in conn.execute(sa.select(table).where(table.c.id.in_(newest))):
        faults[row.instance_uuid] = Fault(
            code=row.code, message=row.message, details=row.details, created_at=row.created_at
        )
    return faults


def erase(conn: sa.Connection, uuid: str) -> None:
    """Remove a record as if it had never been: for a server that was deleted before it reached its cell."""
    conn.execute(sa.delete(instance_faults).where(instance_faults.c.instance_uuid == uuid))
    block_devices.remove_all(conn, uuid)
    conn.execute(sa.delete(instances).where(instances.c.uuid == uuid))


def keep_password(conn: sa.Connection, uuid: str, password: str, *, now: float) -> bool:
    """Keep what a guest tells of its password, encrypted by it; False if it has told before. Raises
    InstanceNotFound."""
    known = get(conn, uuid, lock=True).system_metadata
    if known.get(GUEST_PASSWORD):
        return False
    update(conn, uuid, now=now, system_metadata={**known, GUEST_PASSWORD: password})
    return True


_AT_REST = Prepared(
    sa.select(
        instances.c.uuid, instances.c.vm_state, instances.c.power_state, instances.c.updated_at, instances.c.created_at
    ).where(
        instances.c.host == sa.bindparam("host"), instances.c.task_state.is_(None), instances.c.deleted_at.is_(None)
    )
)


def power_states(conn: sa.Connection, host: str) -> dict[str, tuple[VmState, PowerState, float]]:
    """Of the servers that are on the host and at rest: their stored states, and when their records last changed."""
    return {
        row.uuid: (VmState(row.vm_state), PowerState(row.power_state), row.updated_at or row.created_at)
        for row in _AT_REST.all(conn, host=host)
    }
