"""An operation as it stands in the journal: plain data that lists, resumes and explains it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class OperationState(StrEnum):
    """Where an operation stands."""

    HELD = "held"
    """Recorded but not released yet (its server is being handed over to this cell)."""
    QUEUED = "queued"
    """Waits until the operation that it pre-empts has unwound."""
    RUNNING = "running"
    """Goes forward; also while it waits for an event, a time or a retry."""
    UNDOING = "undoing"
    """A step failed for good, or it was cancelled: done steps are being undone in reverse order."""
    STRANDED = "stranded"
    """An undo failed too often. Needs an operator: resume, skip or force."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Undone, and the failure recorded."""
    CANCELLED = "cancelled"
    """Undone because somebody asked."""


TERMINAL = frozenset({OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED})
DRIVEN = frozenset({OperationState.RUNNING, OperationState.UNDOING})
"""States in which a conductor works on the operation."""


class EntryState(StrEnum):
    STARTED = "started"
    DONE = "done"
    FAILED = "failed"
    OWED = "owed"
    """Could not be done now; journaled as a debt of its own that will be paid."""
    SKIPPED = "skipped"
    """An operator decided to go on without it."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a step or an operation failed.

    Args:
        kind: class name of the error. status: HTTP-like code shown in the instance fault.
        message: for users. details: traceback text for operators, "" for expected errors.
        elsewhere: another host may succeed. cancelled: somebody asked for the end.
        retryable: the same step may succeed when repeated.
    """

    kind: str
    message: str
    status: int = 500
    details: str = ""
    step: str = ""
    elsewhere: bool = False
    cancelled: bool = False
    retryable: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the journal: a step in one direction in one round.

    Args:
        attempt: counts from 1. crashes: how often its process died in it. output: JSON of the step's result.
        resumed: the attempt with which an operator let it go on after it was stranded, 0 if none did.
    """

    step: str
    round: int = 0
    undo: bool = False
    state: EntryState = EntryState.STARTED
    attempt: int = 1
    crashes: int = 0
    resumed: int = 0
    host: str | None = None
    started_at: float = 0.0
    finished_at: float | None = None
    output: msgspec.Raw = msgspec.Raw(b"null")
    failure: Failure | None = None


class Asker(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for an operation, and in which request; empty for what the service does by itself.

    Args:
        global_request_id: what the caller calls its own request, of which this one may be a part.
        traceparent: the span of the request, in the form of the W3C; empty if nobody traces it.
    """

    project_id: str = ""
    user_id: str = ""
    request_id: str = ""
    global_request_id: str = ""
    traceparent: str = ""


class OperationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One operation with its journal.

    Args:
        subject: the object it works on (an instance uuid).
        cursor: index of the step it is at. round: how often it began anew on another host.
        parent: the operation whose debt this one pays.
        back_to: while it is being undone for another round, the index of the step where that round begins.
        resting: it was laid down on purpose (to wait), not left by a process that died.
        request: JSON of the operation's request type.
    """

    id: str
    kind: str
    version: int
    subject: str
    state: OperationState
    exclusive: bool
    cursor: int = 0
    round: int = 0
    asker: Asker = Asker()
    parent: str | None = None
    host: str | None = None
    back_to: int | None = None
    resting: bool = False
    request: msgspec.Raw = msgspec.Raw(b"null")
    entries: tuple[Entry, ...] = ()
    failure: Failure | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None


class ExternalEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something another service reports about a subject. status: completed or failed."""

    subject: str
    name: str
    tag: str = ""
    status: str = "completed"
    data: str = ""

    @property
    def key(self) -> str:
        """The one textual form of (name, tag). Spec: EVT-17."""
        return event_key(self.name, self.tag)


def event_key(name: str, tag: str) -> str:
    return f"{name}:{tag}" if tag else name
