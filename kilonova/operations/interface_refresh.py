"""Keeping what a server's record says of its interfaces in step with the network service."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db import instances
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InstanceNotFound
from kilonova.services.network import NetworkService

CHANGED = "network-changed"
"""The event that says so."""


async def refresh_interfaces(
    cell: Database, networks: NetworkService, clock: Clock, instance_uuid: str, port_id: str = ""
) -> None:
    """Store addresses of a server's interfaces as they are now. A record that is gone needs nothing.

    Interfaces only come and go with the operations that attach and detach them. Spec: EMN-55, EMN-62.

    Args:
        port_id: only this one; "" for all of the server's.

    Raises:
        ServiceUnavailable: the network service does not answer.
    """
    fresh = {vif.id: vif for vif in await networks.vifs(instance_uuid) if port_id in ("", vif.id)}
    now = clock.now()

    def store(conn: sa.Connection) -> None:
        try:
            known = instances.get(conn, instance_uuid, lock=True).network_info
        except InstanceNotFound:
            return
        kept = tuple(
            msgspec.structs.replace(fresh[vif.id], active=vif.active) if vif.id in fresh else vif for vif in known
        )
        if kept != known:
            instances.update(conn, instance_uuid, now=now, network_info=kept)

    await cell.write(store)
