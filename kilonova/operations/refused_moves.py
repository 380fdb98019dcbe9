"""Moves to other hosts: asked for, written down, and refused in the same transaction.

This release moves no server to another host. A move is accepted as in a cloud in which no host can take the server:
the migration is recorded in error, the server stays what it is and has a fault that says why.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from enum import Enum

import msgspec
import sqlalchemy as sa

from kilonova.cells.registry import Located
from kilonova.db import instances, migration_records, services
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InstanceInvalidState, InstanceNotReady, NoValidHost
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.operation import Failure, OperationRecord, OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.acceptance import asked_by, respect_lock
from kilonova.operations.records import check_states

V = VmState
ONLY_HOST = "There is no other host."
NOT_BUILT = "Servers are not moved between hosts."


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How one kind of move is known.

    Args:
        kind: in the journal. action: in error texts. vm: states in which it may be asked for.
        lock: whether a lock keeps it off. any_task: it may be asked for whatever the server does.
    """

    kind: str
    action: str
    migration: MigrationType
    vm: tuple[VmState, ...]
    lock: bool = True
    any_task: bool = False


class Move(Enum):
    """All kinds. Spec: API-130 to API-132."""

    COLD = Kind(kind="migrate", action="migrate", migration=MigrationType.COLD, vm=(V.ACTIVE, V.STOPPED))
    LIVE = Kind(kind="live-migration", action="os-migrateLive", migration=MigrationType.LIVE, vm=(V.ACTIVE, V.PAUSED))
    EVACUATION = Kind(
        kind="evacuate", action="evacuate", migration=MigrationType.EVACUATION, vm=(V.ACTIVE, V.STOPPED, V.ERROR),
        lock=False, any_task=True,
    )


def check_move(context: RequestContext, server: Located, move: Move) -> None:
    """Raises InstanceLocked, InstanceInvalidState, InstanceNeverLaunched, InstanceNotReady. Spec: API-068."""
    if move.value.lock:
        respect_lock(context, server, move.value.action)
    _check(server.instance, move.value)


def _check(instance: Instance, kind: Kind) -> None:
    tasks: Collection[TaskState | None] = (None, *TaskState) if kind.any_task else (None,)
    check_states(instance, action=kind.action, vm=kind.vm, task=tasks)
    if instance.host is None:
        raise InstanceNotReady(instance.uuid)


async def refuse_move(clock: Clock, context: RequestContext, server: Located, move: Move) -> NoValidHost:
    """Write down that the move was asked for and why it is not made; returns that.

    Raises:
        As `check_move`; InstanceInvalidState also for a server that an operation works on.
    """
    check_move(context, server, move)
    if server.cell is None:
        raise InstanceNotReady(server.instance.uuid)
    now, kind, subject = clock.now(), move.value, server.instance.uuid

    def refuse(conn: sa.Connection) -> NoValidHost:
        instance = instances.get(conn, subject, lock=True)
        _check(instance, kind)
        holder = cell_journal.holder(conn, subject)
        if holder is not None:
            task = instance.task_state.value if instance.task_state else "None"
            raise InstanceInvalidState(subject, kind.action, "task_state", task)
        hosts = {agent.host for agent in services.all_services(conn, binary=services.COMPUTE)}
        reason = NoValidHost(NOT_BUILT if hosts - {instance.host} else ONLY_HOST)
        operation = str(uuid.uuid4())
        migration_records.insert(conn, Migration(
            uuid=str(uuid.uuid5(uuid.UUID(operation), "migration")), instance_uuid=subject, user_id=context.user_id,
            project_id=context.project_id, migration_type=kind.migration, status=MigrationStatus.ERROR,
            source_compute=instance.host, source_node=instance.node, old_flavor=instance.flavor,
            new_flavor=instance.flavor, old_vm_state=instance.vm_state, created_at=now, updated_at=now,
        ))
        cell_journal.insert(conn, OperationRecord(
            id=operation, kind=kind.kind, version=1, subject=subject, state=OperationState.FAILED, exclusive=False,
            asker=asked_by(context), failure=Failure(kind="NoValidHost", message=reason.message, step="choose host"),
            created_at=now, updated_at=now, finished_at=now,
        ), wake_at=None)
        instances.add_fault(conn, subject, operation, Fault(code=500, message=reason.message, created_at=now))
        return reason

    return await server.cell.database.write(refuse)
