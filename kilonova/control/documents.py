"""What the control API answers, as types: it encodes them, and commands decode them."""

from __future__ import annotations

import msgspec

from kilonova.domain.operation import OperationState


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why something failed. details: for operators, "" for expected errors."""

    kind: str
    message: str
    step: str = ""
    details: str = ""


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """A step of an operation, in one direction.

    Args:
        state: as in the journal, or `to do` if it has not been reached. undo: it was undone, or is being undone.
        attempt, crashes: how often it was tried, and how often its process died in it.
        started_at, finished_at: seconds since the epoch.
    """

    step: str
    state: str
    undo: bool = False
    round: int = 0
    attempt: int = 0
    crashes: int = 0
    host: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    fault: Fault | None = None


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """An operation.

    Args:
        subject: the server it works on, or what else `about` says. journal: `api`, `volumes`, or the name of the cell.
        step: the one it is at, "" once it has ended. waits_for: why it does not go on now, "" if it does.
        cancel: why its end was asked for. parent: the operation whose debt it pays.
    """

    id: str
    kind: str
    version: int
    about: str
    subject: str
    state: OperationState
    journal: str
    step: str
    waits_for: str
    cancel: str | None
    parent: str | None
    round: int
    user_id: str
    project_id: str
    request_id: str
    created_at: float
    updated_at: float
    finished_at: float | None
    worked_on_by: str | None
    fault: Fault | None
    steps: tuple[StepView, ...]


class OperationList(msgspec.Struct, frozen=True):
    """Operations, newest first."""

    operations: tuple[OperationView, ...]


class HostStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A compute host.

    Args:
        up: it has shown a sign of life lately. seen_at: when it last did, seconds since the epoch.
        servers: on it. memory_mib, memory_free_mib: MiB.
    """

    host: str
    cell: str
    up: bool
    disabled: bool
    disabled_reason: str | None
    version: str
    seen_at: float
    servers: int
    vcpus: int = 0
    memory_mib: int = 0
    memory_free_mib: int = 0
    hypervisor: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Args: servers: how many in each state. operations: how many active ones in each state. now: of the server."""

    version: str
    now: float
    started_at: float
    hosts: tuple[HostStatus, ...]
    servers: dict[str, int]
    operations: dict[str, int]
