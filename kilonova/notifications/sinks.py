"""Where notifications go."""

from __future__ import annotations

from typing import Any, Protocol

import structlog

from kilonova.domain.errors import KilonovaError
from kilonova.domain.notification import Notification

log = structlog.get_logger(__name__)


class Refused(KilonovaError):
    """A sink does not take this notification, though it may take others."""


class Sink(Protocol):
    """A place that takes notifications."""

    async def send(self, message: Notification) -> None:
        """Return when the message is safe there. It may be called again with the same one.

        Raises:
            Refused: this message is not taken. Anything else: the sink takes nothing at the moment.
        """
        ...

    async def close(self) -> None: ...


class LogSink:
    """Writes notifications to the log of the process."""

    async def send(self, message: Notification) -> None:
        told = envelope(message)
        log.info("notification", told_at=told.pop("timestamp"), **told)

    async def close(self) -> None:
        return None


def envelope(message: Notification) -> dict[str, Any]:
    """A notification as those receive it who take JSON."""
    return {
        "message_id": message.message_id, "publisher_id": message.publisher_id, "event_type": message.event_type,
        "priority": message.priority.value, "timestamp": message.timestamp, "payload": message.payload,
        "context": context(message),
    }


def context(message: Notification) -> dict[str, str]:
    """The request that caused a notification."""
    return {"request_id": message.request_id, "user_id": message.user_id, "project_id": message.project_id}
