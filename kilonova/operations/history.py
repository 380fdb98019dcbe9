"""The journal as instance actions: every operation on a server is an action, every step an event. Spec: API-460,
API-461."""

from __future__ import annotations

import msgspec

from kilonova.cells.registry import Cells
from kilonova.db import build_requests
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, NotFound
from kilonova.domain.operation import TERMINAL, Entry, EntryState, Failure, OperationRecord, OperationState
from kilonova.operations.action_log import Action, ActionEvent
from kilonova.operations.catalogue import CELL_OPERATIONS

OTHERS = {
    "reset-state": ("resetState", ""),
    "migrate": ("migrate", "cold_migrate"),
    "live-migration": ("live-migration", "live_migrate"),
    "evacuate": ("evacuate", "rebuild_server"),
}
"""Actions that are done in one transaction and so have no declared operation, with their event, "" for none."""


class History:
    """Reads the journals of the cells."""

    def __init__(self, cells: Cells) -> None:
        self._cells = cells

    async def actions(
        self, instance_uuid: str, *, limit: int | None = None, marker: str | None = None,
        changes_since: float | None = None, changes_before: float | None = None,
    ) -> list[Action]:
        """See `ActionLog.actions`."""
        shown = [a for record in await self._records(instance_uuid) if (a := _action(record)) is not None]
        if changes_since is not None:
            shown = [a for a in shown if (a.updated_at or a.start_time) >= changes_since]
        if changes_before is not None:
            shown = [a for a in shown if (a.updated_at or a.start_time) <= changes_before]
        if marker is not None:
            ids = [a.request_id for a in shown]
            if marker not in ids:
                raise NotFound(f"Action for request_id {marker} on instance {instance_uuid} could not be found.")
            shown = shown[ids.index(marker) + 1 :]
        return shown if limit is None else shown[:limit]

    async def action(self, instance_uuid: str, request_id: str) -> Action | None:
        """See `ActionLog.action`."""
        for action in await self.actions(instance_uuid):
            if action.request_id == request_id:
                return action
        return None

    async def _records(self, instance_uuid: str) -> list[OperationRecord]:
        try:
            name = await self._cells.api.read(lambda conn: build_requests.cell_of(conn, instance_uuid))
        except InstanceNotFound:
            return []
        if name is None:
            return []
        database = self._cells.named(name).database
        return await database.read(lambda conn: cell_journal.of_subject(conn, instance_uuid))


def _action(record: OperationRecord) -> Action | None:
    """One operation, or None if it is not shown."""
    definition = CELL_OPERATIONS.find(record.kind, record.version)
    name, event = (definition.action, definition.event) if definition is not None else OTHERS.get(record.kind, ("", ""))
    if not name:
        return None
    events: list[ActionEvent] = []
    if event:
        events = [_event(record, entry) for entry in record.entries if _has_effect(entry)]
        events.append(_whole(record, event))
        events.sort(key=lambda e: e.start_time or 0.0, reverse=True)
    failed = record.state in (OperationState.FAILED, OperationState.CANCELLED, OperationState.STRANDED)
    return Action(
        action=name, instance_uuid=record.subject, request_id=record.asker.request_id,
        user_id=record.asker.user_id or None, project_id=record.asker.project_id or None,
        start_time=record.created_at, updated_at=record.updated_at, message="Error" if failed else None,
        events=tuple(events),
    )


def _has_effect(entry: Entry) -> bool:
    """Steps that were passed over or that only wrote the journal are not worth a line."""
    return entry.host is not None or entry.state is not EntryState.DONE or entry.undo


def _whole(record: OperationRecord, event: str) -> ActionEvent:
    ended = record.state in TERMINAL
    failure = record.failure if record.state is not OperationState.SUCCEEDED else None
    return ActionEvent(
        event=event, start_time=record.created_at, finish_time=record.finished_at,
        result=None if not ended else ("Error" if failure else "Success"), host=record.host,
        traceback=_traceback(failure), details=failure.message if failure else None,
    )


def _event(record: OperationRecord, entry: Entry) -> ActionEvent:
    verb = "undo_" if entry.undo else ""
    result = {EntryState.DONE: "Success", EntryState.FAILED: "Error", EntryState.OWED: "Success"}.get(entry.state)
    return ActionEvent(
        event=f"{record.kind}.{verb}{entry.step.replace(' ', '_')}", start_time=entry.started_at,
        finish_time=entry.finished_at, result=result, host=entry.host, traceback=_traceback(entry.failure),
        details=entry.failure.message if entry.failure else _note(entry),
    )


class _Noted(msgspec.Struct):
    """What a step's result says of itself, if it does."""

    note: str = ""


def _note(entry: Entry) -> str | None:
    """Why it went otherwise than asked: a soft reboot that became a hard one says so. Spec: INI-147."""
    noted = msgspec.json.decode(entry.output, type=_Noted | None)
    return noted.note or None if noted is not None else None


def _traceback(failure: Failure | None) -> str | None:
    return None if failure is None else failure.details or failure.message
