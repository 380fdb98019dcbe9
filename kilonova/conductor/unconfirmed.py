"""Resizes on which nobody has decided in time are confirmed, host by host as they report.

Everything is read and written in one transaction on the database itself, and the confirm is an operation like one that
a user asks for. Spec: PER-04, PER-05, PER-36.
"""

from __future__ import annotations

from uuid import uuid4

import structlog

from kilonova.db import instances, migration_records
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.migration import Migration, MigrationStatus
from kilonova.domain.operation import Asker
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize

log = structlog.get_logger(__name__)

LEFT_ALONE = (TaskState.DELETING, TaskState.SOFT_DELETING, TaskState.RESIZE_FINISH)
"""A delete ends the migration itself, or a restore brings it back, and a resize is about to arrive. Spec: PER-39,
PER-40."""


def confirm_overdue(tx: Tx, host: str, window: float) -> None:
    """Confirm what has waited longer than the window.

    Args:
        window: seconds; 0 for never. Spec: PER-35.
    """
    if window <= 0:
        return
    overdue = migration_records.finished_on(tx.conn, host, before=tx.now - window)
    if overdue:
        log.info("resizes to be confirmed", host=host, count=len(overdue), window=window)
    for migration in overdue:
        _decide(tx, migration)


def _decide(tx: Tx, migration: Migration) -> None:
    """Spec: PER-37 to PER-45."""
    try:
        instance = instances.get(tx.conn, migration.instance_uuid)
    except InstanceNotFound:
        _give_up(tx, migration, "The server does not exist any more.")
        return
    if instance.task_state in LEFT_ALONE or instance.vm_state is VmState.SOFT_DELETED:
        return
    if (instance.vm_state, instance.task_state) != (VmState.RESIZED, None):
        task = instance.task_state.value if instance.task_state else "None"
        reason = f"The resize cannot be confirmed: the server is in states {instance.vm_state.value}/{task}."
        _give_up(tx, migration, reason)
        fault = Fault(code=500, message=reason, created_at=tx.now)
        instances.add_fault(tx.conn, instance.uuid, str(uuid4()), fault)
        return
    _confirm(tx, instance)


def _give_up(tx: Tx, migration: Migration, reason: str) -> None:
    log.warning("migration in error", migration=migration.uuid, instance=migration.instance_uuid, reason=reason)
    migration_records.change(
        tx.conn, migration.uuid, now=tx.now, was=(MigrationStatus.FINISHED,), status=MigrationStatus.ERROR
    )


def _confirm(tx: Tx, instance: Instance) -> None:
    asker = Asker(project_id=instance.project_id, request_id=f"req-{uuid4()}")
    try:
        submit.submit(tx, cell_journal, CONFIRM_RESIZE, instance.uuid, ConfirmResize(), asker)
    except KilonovaError as error:
        log.info("resize not confirmed", instance=instance.uuid, error=str(error))
