"""Tables of QoS policies: what bandwidth the ports of a network, or single ports, are guaranteed."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db.columns import Uuid
from kilonova.embedded.network.schema import NETWORK, Stamped, metadata, stamped_columns

__all__ = ["NETWORK", "Policy", "Rule", "policies", "rules", "targets"]

policies = sa.Table(
    "qos_policies", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    *stamped_columns(),
)

rules = sa.Table(
    "qos_minimum_bandwidth_rules", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("policy_id", Uuid, sa.ForeignKey("qos_policies.id"), nullable=False),
    sa.Column("direction", sa.String(8), nullable=False),
    sa.Column("min_kbps", sa.Integer, nullable=False),
    sa.UniqueConstraint("policy_id", "direction"),
)

targets = sa.Table(
    "qos_targets", metadata,
    sa.Column("target_id", Uuid, primary_key=True),
    sa.Column("policy_id", Uuid, sa.ForeignKey("qos_policies.id"), nullable=False, index=True),
)
"""Which policy a network or a port (its id) has."""


class Policy(Stamped, frozen=True, kw_only=True):
    name: str
    shared: bool


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """min_kbps: in kbit/s. direction: ingress (to the guest) or egress."""

    id: str
    policy_id: str
    direction: str
    min_kbps: int
