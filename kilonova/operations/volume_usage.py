"""Counting what servers do with their volumes: stored and told in one transaction. Nothing fails because of it."""

from __future__ import annotations

import sqlalchemy as sa
import structlog

from kilonova.db import instances
from kilonova.db.volume_usage import count
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import Asker
from kilonova.hypervisor.volumes import VolumeUsage
from kilonova.notifications.volume_usage import tell_volume_usage

log = structlog.get_logger(__name__)


def count_and_tell(
    conn: sa.Connection, server: str, volume_id: str, usage: VolumeUsage, *, host: str, now: float,
    asker: Asker, ended: bool = False,
) -> None:
    """Args: now: seconds since the epoch. ended: the guest loses the volume. Spec: VOL-32, VOL-33, PER-69."""
    try:
        instance = instances.get(conn, server)
    except KilonovaError as error:
        log.info("usage of a volume not counted", instance=server, volume=volume_id, error=error.message)
        return
    counted = count(conn, instance, volume_id, usage, now=now, ended=ended)
    tell_volume_usage(conn, instance, counted, host=host, asker=asker)
