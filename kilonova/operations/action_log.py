"""Reading what was done to a server: its operations and their steps, as instance actions and events."""

from __future__ import annotations

from typing import Protocol

import msgspec


class ActionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Times are seconds since the epoch; result is `Success` or `Error`. Spec: API-461."""

    event: str
    start_time: float | None = None
    finish_time: float | None = None
    result: str | None = None
    traceback: str | None = None
    host: str | None = None
    details: str | None = None


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One operation on a server. message is `Error` when it failed. Spec: API-460.

    Args:
        user_id, project_id: who asked; None for periodic work.
        events: newest first; may be left empty in lists.
    """

    action: str
    instance_uuid: str
    request_id: str
    user_id: str | None = None
    project_id: str | None = None
    start_time: float
    updated_at: float | None = None
    message: str | None = None
    events: tuple[ActionEvent, ...] = ()


class ActionLog(Protocol):
    """Reads actions. Nothing is raised for a server without any."""

    async def actions(
        self,
        instance_uuid: str,
        *,
        limit: int | None = None,
        marker: str | None = None,
        changes_since: float | None = None,
        changes_before: float | None = None,
    ) -> list[Action]:
        """The actions of a server, newest first.

        Args:
            limit: at most so many. marker: only those after the action of this request id.
            changes_since, changes_before: bounds of `updated_at`, inclusive.

        Raises:
            NotFound: the marker is not among the actions of the server.
        """
        ...

    async def action(self, instance_uuid: str, request_id: str) -> Action | None:
        """One action with its events, None if there is none."""
        ...
