"""How hosts and servers are grouped: host aggregates and server groups."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Aggregate(msgspec.Struct, frozen=True, kw_only=True):
    """A named set of hosts with properties. Which hosts are in it, placement knows."""

    uuid: str
    name: str
    metadata: dict[str, str] = {}

    @property
    def availability_zone(self) -> str | None:
        return self.metadata.get("availability_zone")


class GroupPolicy(StrEnum):
    """What a server group asks of the hosts of its members."""

    AFFINITY = "affinity"
    """All on one host."""
    ANTI_AFFINITY = "anti-affinity"
    """At most `max_per_host` on each host."""
    SOFT_AFFINITY = "soft-affinity"
    """On as few hosts as possible."""
    SOFT_ANTI_AFFINITY = "soft-anti-affinity"
    """On as many hosts as possible."""


class ServerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A server group as far as placing a server needs it.

    Args:
        members: instance uuids; the server that is being placed may be among them.
        max_per_host: rule `max_server_per_host` of an anti-affinity group. Spec: BLD-12.
    """

    uuid: str
    policy: GroupPolicy
    max_per_host: int = 1
    members: tuple[str, ...] = ()
