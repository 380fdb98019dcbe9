"""Tables of physical networks, and of what ports that are devices of hosts ask for beside their type."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db.columns import Uuid
from kilonova.embedded.network.qos_schema import NETWORK
from kilonova.embedded.network.schema import metadata

__all__ = ["NETWORK", "Physical", "numa_policies", "physical_networks"]

physical_networks = sa.Table(
    "physical_networks", metadata,
    sa.Column("network_id", Uuid, primary_key=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("vlan", sa.Integer, nullable=False),
    sa.UniqueConstraint("name", "vlan"),
)
"""The networks that are a part of the world outside. vlan: 0 for untagged frames."""

numa_policies = sa.Table(
    "port_numa_policies", metadata,
    sa.Column("port_id", Uuid, primary_key=True),
    sa.Column("policy", sa.String(16), nullable=False),
)


class Physical(msgspec.Struct, frozen=True, kw_only=True):
    """What a network is outside. vlan: tag of its frames, 0 for none."""

    name: str
    vlan: int

    @property
    def network_type(self) -> str:
        return "vlan" if self.vlan else "flat"
