"""The table of what administrators set of agents. An agent without a row is enabled and has no description."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.columns import Uuid
from kilonova.embedded.network.physical_schema import NETWORK
from kilonova.embedded.network.schema import metadata

__all__ = ["NETWORK", "NONE_DISABLED", "agents"]

agents = sa.Table(
    "agents", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("admin_state_up", sa.Boolean, nullable=False),
    sa.Column("description", sa.String(255), nullable=False),
)

NONE_DISABLED = ~sa.exists().where(agents.c.admin_state_up == sa.false())
"""Condition: the one agent that there is takes new routers."""
