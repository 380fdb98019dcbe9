"""Telling others of what a request changes at once, in the transaction of the change."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.db.outbox import api_outbox, listeners
from kilonova.domain.operation import Asker
from kilonova.notifications.payloads import Payload, versioned
from kilonova.notifications.tell import tell


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
    context = call.context
    asker = Asker(
        request_id=context.request_id, user_id=context.user_id or "", project_id=context.project_id or ""
    )
    for phase in phases:
        tell(
            conn, api_outbox, now=call.cloud.clock.now(), subject=subject, payload=payload, asker=asker,
            event_type=f"{what}.{phase}" if phase else what, publisher_id=f"nova-api:{to.host}",
        )


PAIR = ("start", "end")
"""Phases of what is told when it begins and when it is done, which here is one moment."""


def server_group_told(
    *, uuid: str, name: str, project_id: str, user_id: str, policy: str, max_per_host: int | None,
    members: tuple[str, ...] = (),
) -> Payload:
    rules = {"max_server_per_host": str(max_per_host)} if max_per_host is not None else {}
    return versioned("ServerGroupPayload", "1.1", {
        "uuid": uuid, "name": name, "project_id": project_id, "user_id": user_id, "policies": [policy],
        "policy": policy, "rules": rules, "members": list(members), "hosts": None,
    })


def aggregate_told(*, number: int, uuid: str, name: str, hosts: tuple[str, ...], metadata: dict[str, str]) -> Payload:
    return versioned("AggregatePayload", "1.1", {
        "id": number, "uuid": uuid, "name": name, "hosts": list(hosts), "metadata": metadata,
    })
