"""Putting a notification into the outbox, in the transaction of the change that it tells of."""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa

from kilonova.db.outbox import Outbox, listeners
from kilonova.domain.notification import Notification, Priority
from kilonova.domain.operation import Asker
from kilonova.notifications.payloads import Payload, timestamp


def tell(
    conn: sa.Connection, outbox: Outbox, *, now: float, subject: str, event_type: str, publisher_id: str,
    payload: Payload, asker: Asker, priority: Priority = Priority.INFO, versioned: bool = True,
) -> None:
    """Keep a notification for everybody who listens.

    Args:
        subject: the object that it is about. payload: what it says. asker: whose request caused it.
    """
    to = listeners(conn)
    if to is None or not (to.versioned if versioned else to.unversioned):
        return
    message = Notification(
        message_id=str(uuid4()), subject=subject, event_type=event_type, priority=priority,
        publisher_id=publisher_id, timestamp=timestamp(now), payload=payload, versioned=versioned,
        request_id=asker.request_id, user_id=asker.user_id, project_id=asker.project_id,
    )
    outbox.add(conn, message, to.sinks, now)
