"""Placement: what hosts offer, who holds how much of it, and since when.

Every function here is a unit of work, or part of one: a plain function of a connection to the API database.
A claim therefore commits together with the record of why it was made, and allocations cannot leak.
"""

from kilonova.db.placement.claims import (
    INSTANCE,
    MIGRATION,
    Claim,
    Holding,
    claim,
    holdings,
    move,
    release,
)
from kilonova.db.placement.hosts import (
    HostSettings,
    count_build,
    forget_host,
    heartbeat,
    join_aggregate,
    leave_aggregate,
    mark_down,
    publish_status,
    report,
    set_io_ops,
)
from kilonova.db.placement.providers import (
    Inventory,
    Provider,
    create_provider,
    delete_provider,
    find_provider,
    rename_provider,
    set_aggregates,
    set_inventories,
    set_traits,
)

__all__ = [
    "INSTANCE",
    "MIGRATION",
    "Claim",
    "Holding",
    "HostSettings",
    "Inventory",
    "Provider",
    "claim",
    "count_build",
    "create_provider",
    "delete_provider",
    "find_provider",
    "forget_host",
    "heartbeat",
    "holdings",
    "join_aggregate",
    "leave_aggregate",
    "mark_down",
    "move",
    "publish_status",
    "release",
    "rename_provider",
    "report",
    "set_aggregates",
    "set_inventories",
    "set_io_ops",
    "set_traits",
]
