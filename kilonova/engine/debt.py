"""Debts: what could not be done or undone now is an operation of its own, tried until it succeeds.

A debt repeats one step of its parent (or that step's undo) exactly as the parent declared it. A debt to a host
is tried again when the host returns; until it is paid, no later command about its subject is sent, that of a younger
debt neither.
"""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa

from kilonova.db.journal import Journal
from kilonova.domain.operation import TERMINAL, Failure, OperationRecord, OperationState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Step, Tx
from kilonova.engine.run import Run

KIND = "debt"
FOREVER = 10.0 * 365 * 86400


class DebtRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The parent as it stood, and which of its steps is owed in which direction.

    Args:
        tried: attempts of the parent; a host answers one that it knows from memory.
    """

    parent: OperationRecord
    step: str
    undo: bool
    tried: int = 0


def incur(parent: OperationRecord, step: Step, *, undo: bool, host: str | None, now: float) -> OperationRecord:
    """The record of a new debt of `parent`."""
    entry = next(e for e in reversed(parent.entries) if (e.step, e.undo) == (step.name, undo))
    request = DebtRequest(parent=parent, step=step.name, undo=undo, tried=entry.attempt)
    return OperationRecord(
        id=_id(parent, step.name, undo=undo),
        kind=KIND,
        version=1,
        subject=parent.subject,
        state=OperationState.RUNNING,
        exclusive=False,
        asker=parent.asker,
        parent=parent.id,
        host=host,
        request=msgspec.Raw(msgspec.json.encode(request)),
        created_at=now,
        updated_at=now,
    )


def _id(parent: OperationRecord, step: str, *, undo: bool) -> str:
    return str(uuid.uuid5(uuid.UUID(parent.id), f"{parent.round}/{step}/{undo}"))


def is_owed(conn: sa.Connection, journal: Journal, parent: OperationRecord, step: str, *, undo: bool) -> bool:
    """Whether a step of an operation (or its undo) became a debt that is not paid yet."""
    found = journal.get(conn, _id(parent, step, undo=undo))
    return found is not None and found.state not in TERMINAL


def _nothing(_tx: Tx, _run: Run[DebtRequest]) -> None:
    return None


def _abandoned(_tx: Tx, _run: Run[DebtRequest], _failure: Failure) -> None:
    return None


def payment(definition: Operation, request: DebtRequest, parent_run: Run[msgspec.Struct]) -> Operation:
    """The operation that pays a debt: one step, taken from the parent's declaration."""
    step = definition.steps[definition.position(request.step)]
    paid: Step
    if isinstance(step, OnHost):
        entry = parent_run.entry(step.name, undo=request.undo)
        host = entry.host if entry is not None else None
        args = (step.undo_args or step.args) if request.undo else step.args
        do = step.undo if request.undo else step.do
        assert not isinstance(do, NoUndo)
        paid = OnHost(
            name=step.name, host=lambda _run: host, do=do, args=lambda _run: args(parent_run),
            undo=NoUndo("a debt is only ever paid"), recorded=step.undo_paid if request.undo else step.paid,
            timeout=FOREVER, retries=2**31,
        )
    else:
        assert isinstance(step, Here)
        function = step.undo if request.undo else step.do
        assert not isinstance(function, NoUndo)
        call = function

        async def pay(environment: object, _run: Run[DebtRequest]) -> None:
            await call(environment, parent_run)

        paid = Here(name=step.name, do=pay, undo=NoUndo("a debt is only ever paid"), timeout=FOREVER, retries=2**31)
    def without_secrets(paid_request: DebtRequest) -> DebtRequest:
        if definition.scrub is None:
            return paid_request
        parent = paid_request.parent
        clean = definition.scrub(msgspec.json.decode(parent.request, type=definition.request))
        parent = msgspec.structs.replace(parent, request=msgspec.Raw(msgspec.json.encode(clean)))
        return msgspec.structs.replace(paid_request, parent=parent)

    return Operation(
        name=KIND, request=DebtRequest, steps=(paid,), ends=_nothing, fails=_abandoned, exclusive=False,
        scrub=without_secrets, about=definition.about,
    )
