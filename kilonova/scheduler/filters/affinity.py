"""Filters by which other servers are on a host: scheduler hints and server groups."""

from __future__ import annotations

import numpy as np

from kilonova.domain.grouping import GroupPolicy
from kilonova.scheduler.demand import Demand, hint_values
from kilonova.scheduler.view import HostView, Mask


def same_host(view: HostView, demand: Demand) -> Mask | None:
    """Hint `same_host`: hosts with at least one of the servers."""
    servers = hint_values(demand.spec, "same_host")
    return view.on(_hosts_of(demand, servers)) if servers else None


def different_host(view: HostView, demand: Demand) -> Mask | None:
    """Hint `different_host`: hosts with none of the servers."""
    servers = hint_values(demand.spec, "different_host")
    return ~view.on(_hosts_of(demand, servers)) if servers else None


def group_apart(view: HostView, demand: Demand) -> Mask | None:
    """Policy anti-affinity: hosts with fewer members than may share one. Spec: BLD-11, BLD-12."""
    if demand.group is None or demand.policy is not GroupPolicy.ANTI_AFFINITY:
        return None
    return np.asarray(view.counted(demand.members_on) < demand.group.max_per_host)


def group_together(view: HostView, demand: Demand) -> Mask | None:
    """Policy affinity: hosts that already have members, once any member has a host. Spec: BLD-13."""
    if demand.policy is not GroupPolicy.AFFINITY or not demand.members_on:
        return None
    return view.on(demand.members_on)


def _hosts_of(demand: Demand, servers: list[str]) -> set[str]:
    return {host for server in servers for host in demand.hosts_of.get(server, ())}
