"""Policies of server groups, checked again when a host is claimed: parallel decisions cannot see each other."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.placement.tables import allocations, consumers, hosts
from kilonova.domain.grouping import GroupPolicy, ServerGroup


def lock_group(connection: sa.Connection, group: ServerGroup) -> None:
    """One claim of a group at a time. SQLite has one writer anyway. Spec: BLD-18."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(group.uuid, 0))))


def group_allows(connection: sa.Connection, group: ServerGroup, instance: str, provider_id: int) -> bool:
    """Whether the policy lets a server of the group be on that host. Spec: BLD-11 to BLD-14, BLD-17."""
    others = [member for member in group.members if member != instance]
    if group.policy not in (GroupPolicy.AFFINITY, GroupPolicy.ANTI_AFFINITY) or not others:
        return True
    located = connection.execute(
        sa.select(hosts.c.host, consumers.c.instance)
        .distinct()
        .join_from(consumers, allocations, allocations.c.consumer == consumers.c.uuid)
        .join(hosts, hosts.c.provider_id == allocations.c.provider_id)
        .where(consumers.c.instance.in_(others))
    ).all()
    here = connection.execute(sa.select(hosts.c.host).where(hosts.c.provider_id == provider_id)).scalar()
    if group.policy is GroupPolicy.AFFINITY:
        return not located or any(row.host == here for row in located)
    members_here = sum(row.host == here for row in located)
    return bool(members_here < group.max_per_host)
