"""Telling others of what a request changes at once, in the transaction of the change."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.db import flavors
from kilonova.db.outbox import api_outbox, listeners
from kilonova.notifications.payloads import Payload, flavor, versioned
from kilonova.notifications.tell import tell
from kilonova.operations.acceptance import asked_by


def tell_change(
    call: Call, conn: sa.Connection, what: str, subject: str, payload: Payload, *, phases: tuple[str, ...] = ("",)
) -> None:
    """Tell of a change in the API database.

    Args:
        what: `keypair.create`. subject: what identifies the object.
        phases: what is told one after the other; "" for a change that is told as a whole.
    """
    to = listeners(conn)
    if to is None:
        return
    asker = asked_by(call.context)
    for phase in phases:
        tell(
            conn, api_outbox, now=call.cloud.clock.now(), subject=subject, payload=payload, asker=asker,
            event_type=f"{what}.{phase}" if phase else what, publisher_id=f"nova-api:{to.host}",
        )


def tell_flavor(call: Call, conn: sa.Connection, flavor_id: str) -> None:
    """Tell of a flavor whose extra specs, or whose projects, are others now."""
    if listeners(conn) is not None:
        changed = flavors.get(conn, flavor_id)
        projects = None if changed.is_public else list(flavors.projects_with_access(conn, flavor_id))
        tell_change(call, conn, "flavor.update", flavor_id, flavor(changed, projects))


PAIR = ("start", "end")
"""Phases of what is told when it begins and when it is done, which here is one moment."""


def aggregate_told(*, number: int, uuid: str, name: str, hosts: tuple[str, ...], metadata: dict[str, str]) -> Payload:
    return versioned("AggregatePayload", "1.1", {
        "id": number, "uuid": uuid, "name": name, "hosts": list(hosts), "metadata": metadata,
    })
