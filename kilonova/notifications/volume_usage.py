"""Telling what a server has done with a volume, which billing reads. Spec: VOL-33, PER-69."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.outbox import cell_outbox
from kilonova.db.volume_usage import Counted
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker
from kilonova.notifications import payloads
from kilonova.notifications.tell import tell
from kilonova.notifications.usage import time_text

EVENT = "volume.usage"


def tell_volume_usage(conn: sa.Connection, of: Instance, counted: Counted, *, host: str, asker: Asker) -> None:
    """Tell it in both forms. host: who publishes it."""
    used = {
        "reads": counted.usage.read_requests, "read_bytes": counted.usage.read_bytes,
        "writes": counted.usage.write_requests, "write_bytes": counted.usage.write_bytes,
    }
    owner = {"volume_id": counted.volume_id, "user_id": of.user_id, "availability_zone": of.availability_zone or ""}
    older = owner | used | {
        "tenant_id": of.project_id, "instance_id": of.uuid, "last_refreshed": time_text(counted.refreshed_at),
    }
    newer = owner | used | {
        "project_id": of.project_id, "instance_uuid": of.uuid, "last_refreshed": payloads.time_of(counted.refreshed_at),
    }
    for payload, publisher, is_versioned in (
        (older, f"compute.{host}", False),
        (payloads.versioned("VolumeUsagePayload", "1.0", newer), f"nova-compute:{host}", True),
    ):
        tell(
            conn, cell_outbox, now=counted.refreshed_at, subject=of.uuid, event_type=EVENT, payload=payload,
            publisher_id=publisher, asker=asker, versioned=is_versioned,
        )
