"""Telling the usage of a server in a period: `exists`, which billing reads. Spec: PER-61, PER-65, MIG-48."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db import block_devices
from kilonova.db.outbox import cell_outbox
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker
from kilonova.notifications import payloads
from kilonova.notifications.tell import tell
from kilonova.notifications.usage import time_text, usage

COMPUTE = "nova-compute"
"""The service by whose name what happens on a host is published."""


def tell_exists(
    conn: sa.Connection, of: Instance, period: tuple[float, float], *, now: float, host: str, asker: Asker
) -> None:
    """Tell that a server exists, in both forms.

    Args:
        period: beginning and end, in seconds since the epoch. host: who publishes it.
    """
    begin, end = period
    older = usage(
        of, network=True, fault=None, bandwidth={}, audit_period_beginning=time_text(begin),
        audit_period_ending=time_text(end),
    )
    tell(
        conn, cell_outbox, now=now, subject=of.uuid, event_type="compute.instance.exists", payload=older,
        publisher_id=f"compute.{host}", asker=asker, versioned=False,
    )
    data = payloads.instance(of, block_devices.of_server(conn, of.uuid), asker, None)
    del data["fault"]
    data |= {"audit_period": payloads.period(begin, end), "bandwidth": []}
    tell(
        conn, cell_outbox, now=now, subject=of.uuid, event_type="instance.exists",
        payload=payloads.versioned("InstanceExistsPayload", "1.3", data), publisher_id=f"{COMPUTE}:{host}",
        asker=asker,
    )
