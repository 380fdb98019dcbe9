"""What a consumer holds of a host, changed while it stays there."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from kilonova.db.placement.claims import lock_providers, raise_consumer_generation
from kilonova.db.placement.tables import allocations, hosts, touch


def root_of(connection: sa.Connection, consumer: str, host: str) -> int | None:
    """The provider of a host, locked; None if the consumer holds nothing of it."""
    root: int | None = connection.execute(
        sa.select(hosts.c.provider_id).join(allocations, allocations.c.provider_id == hosts.c.provider_id)
        .where(hosts.c.host == host, allocations.c.consumer == consumer).limit(1)
    ).scalar()
    if root is not None:
        lock_providers(connection, {root})
    return root


def hold(connection: sa.Connection, consumer: str, provider_id: int, amounts: Mapping[str, int]) -> None:
    """Let a consumer hold exactly these amounts of a locked provider, whose counters the caller changes."""
    connection.execute(allocations.delete().where(
        allocations.c.consumer == consumer, allocations.c.provider_id == provider_id
    ))
    rows = [
        {"consumer": consumer, "provider_id": provider_id, "resource_class": name, "used": amount}
        for name, amount in sorted(amounts.items()) if amount
    ]
    if rows:
        connection.execute(allocations.insert(), rows)
    raise_consumer_generation(connection, consumer)
    touch(connection, [provider_id])
