"""Tables of QoS policies: what the ports of a network, or single ports, are guaranteed."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.db.columns import Uuid
from kilonova.domain.network import BANDWIDTH, BANDWIDTH_CLASSES, PACKET_RATE, PACKET_RATE_CLASSES
from kilonova.embedded.network.schema import NETWORK, Stamped, metadata, stamped_columns

__all__ = [
    "MINIMUM_BANDWIDTH", "MINIMUM_PACKET_RATE", "NETWORK", "RULE_TYPES", "Policy", "Rule", "RuleType", "policies",
    "rules", "targets",
]

policies = sa.Table(
    "qos_policies", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(64), nullable=False, index=True),
    sa.Column("name", sa.String(255), nullable=False),
    sa.Column("shared", sa.Boolean, nullable=False),
    *stamped_columns(),
)

rules = sa.Table(
    "qos_rules", metadata,
    sa.Column("id", Uuid, primary_key=True),
    sa.Column("policy_id", Uuid, sa.ForeignKey("qos_policies.id"), nullable=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("direction", sa.String(8), nullable=False),
    sa.Column("amount", sa.Integer, nullable=False),
    sa.UniqueConstraint("policy_id", "type", "direction"),
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
    """What a policy guarantees. type: of a RuleType. direction: ingress (to the guest), egress, or any. amount: in the
    unit of the type."""

    id: str
    policy_id: str
    type: str
    direction: str
    amount: int


class RuleType(msgspec.Struct, frozen=True, kw_only=True):
    """A type of rules.

    Args:
        name: as callers know it. amount, unit: the attribute that says how much, and in what.
        group: the name of the group of resources that it makes ports ask for. classes: of these resources, by
            direction.
    """

    name: str
    amount: str
    unit: str
    group: str
    classes: dict[str, str]


MINIMUM_BANDWIDTH = RuleType(
    name="minimum_bandwidth", amount="min_kbps", unit="kbit/s", group=BANDWIDTH, classes=BANDWIDTH_CLASSES
)
MINIMUM_PACKET_RATE = RuleType(
    name="minimum_packet_rate", amount="min_kpps", unit="1000 packets per second", group=PACKET_RATE,
    classes=PACKET_RATE_CLASSES,
)
RULE_TYPES = (MINIMUM_BANDWIDTH, MINIMUM_PACKET_RATE)
