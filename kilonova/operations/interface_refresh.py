"""Keeping what a server's record says of its interfaces in step with the network service."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db import instances
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.network import Vif
from kilonova.services.network import NetworkService

CHANGED = "network-changed"
"""The event that says so."""

ATTEMPTS = 3
"""How often the network service is asked if others change the record meanwhile; the next refresh does the rest."""


async def refresh_interfaces(
    cell: Database, networks: NetworkService, clock: Clock, instance_uuid: str, port_id: str = ""
) -> tuple[str, ...]:
    """Store addresses of a server's interfaces as they are now. A record that is gone needs nothing.

    Interfaces only come and go with the operations that attach and detach them; the ids of those whose ports are
    gone are returned. What was asked before somebody else changed the record is asked again. Spec: EMN-55, EMN-62,
    PER-17, PER-19, PER-23.

    Args:
        port_id: only this one; "" for all of the server's.

    Raises:
        ServiceUnavailable: the network service does not answer.
    """
    for _ in range(ATTEMPTS):
        before = await cell.read(lambda conn: _interfaces(conn, instance_uuid))
        if before is None:
            return ()
        fresh = {vif.id: vif for vif in await networks.vifs(instance_uuid)}
        now = clock.now()

        def store(
            conn: sa.Connection, before: tuple[Vif, ...] = before, fresh: dict[str, Vif] = fresh, now: float = now
        ) -> bool:
            known = _interfaces(conn, instance_uuid, lock=True)
            if known != before:
                return known is None
            kept = tuple(
                _refreshed(vif, fresh[vif.id])
                if vif.id in fresh and port_id in ("", vif.id) else vif
                for vif in known
            )
            if kept != known:
                instances.update(conn, instance_uuid, now=now, network_info=kept)
            return True

        if await cell.write(store):
            return tuple(vif.id for vif in before if vif.id not in fresh and port_id in ("", vif.id))
    return ()


def _refreshed(known: Vif, fresh: Vif) -> Vif:
    """Which device it is in the guest, only operations change."""
    profile = known.profile if known.is_device else fresh.profile
    return msgspec.structs.replace(fresh, active=known.active, profile=profile)


def _interfaces(conn: sa.Connection, uuid: str, *, lock: bool = False) -> tuple[Vif, ...] | None:
    try:
        return instances.get(conn, uuid, lock=lock).network_info
    except InstanceNotFound:
        return None
