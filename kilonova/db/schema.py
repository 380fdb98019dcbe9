"""All tables of both databases: importing this module registers every one of them."""

from __future__ import annotations

from kilonova.db import (
    aggregates,
    block_devices,
    build_requests,
    console_tokens,
    flavors,
    instances,
    journal,
    keypairs,
    migration_records,
    outbox,
    placement,
    quotas,
    secrets,
    server_groups,
    services,
    usage_audits,
    volume_usage,
)
from kilonova.db.api_schema import api_metadata
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.placement import tables as placement_tables
from kilonova.db.upgrade import Schema

API = Schema("api", api_metadata, ("0001",))
"""What the whole installation shares."""

CELL = Schema("cell", cell_metadata, ("0001",))
"""What belongs to one cell."""

__all__ = (
    "API", "CELL", "aggregates", "api_metadata", "block_devices", "build_requests", "cell_metadata", "console_tokens",
    "flavors", "instances", "journal", "keypairs", "migration_records", "outbox", "placement", "placement_tables",
    "quotas", "secrets", "server_groups", "services", "usage_audits", "volume_usage",
)
