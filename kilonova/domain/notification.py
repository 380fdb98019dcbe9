"""What happened, as other services are told of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class Phase(StrEnum):
    """The part of an operation that a notification tells of."""

    START = "start"
    END = "end"
    ERROR = "error"


class Priority(StrEnum):
    """How urgent a notification is, by the names the ecosystem knows."""

    INFO = "INFO"
    ERROR = "ERROR"


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """One message to whoever listens.

    Args:
        message_id: the same at every delivery of it. subject: the object it is about; those about one object are
            delivered in their order.
        event_type: `instance.power_off.end`. publisher_id: which service tells it, on which host.
        timestamp: UTC, as the ecosystem writes it. payload: what it says.
        request_id, user_id, project_id: of the request that caused it, "" if none did.
        versioned: of the form with versioned objects; else of the older one of plain names.
    """

    message_id: str
    subject: str
    event_type: str
    priority: Priority
    publisher_id: str
    timestamp: str
    payload: dict[str, Any]
    request_id: str = ""
    user_id: str = ""
    project_id: str = ""
    versioned: bool = True


class Listeners(msgspec.Struct, frozen=True, kw_only=True):
    """Who is told of the changes of a database.

    Args:
        sinks: names of the places that notifications go to. versioned, unversioned: which forms are told.
        host: name of the machine that tells, where the object that is told of has none.
        state_changes: which of them are told: "vm_state", "vm_and_task_state", "" for none.
        usage_period: the period of usage, see `kilonova.notifications.periods`.
    """

    sinks: tuple[str, ...]
    versioned: bool = True
    unversioned: bool = True
    host: str = ""
    state_changes: str = ""
    usage_period: str = "month"
