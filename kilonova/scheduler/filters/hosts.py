"""Filters by which host it is, and whether it lives."""

from __future__ import annotations

import numpy as np

from kilonova.scheduler.demand import Demand
from kilonova.scheduler.view import HostView, Mask


def forced(view: HostView, demand: Demand) -> Mask | None:
    """Only the host or node that an administrator has forced."""
    if not demand.forced:
        return None
    mask = view.on([demand.spec.force_host]) if demand.spec.force_host is not None else view.alive.copy()
    if demand.spec.force_node is not None:
        mask &= _on_node(view, demand.spec.force_node)
    return mask


def requested(view: HostView, demand: Demand) -> Mask | None:
    """Only the host that was asked for, named by its host or its hypervisor."""
    host = demand.spec.requested_host
    return None if host is None else view.on([host]) | _on_node(view, host)


def not_ignored(view: HostView, demand: Demand) -> Mask | None:
    """Not the hosts that were tried before, or that the server is to leave."""
    return ~view.on(demand.spec.ignore_hosts) if demand.spec.ignore_hosts else None


def up(view: HostView, demand: Demand) -> Mask:
    """Hosts that gave a sign of life lately."""
    return np.asarray(view.seen_at >= demand.now - demand.service_down_time)


def _on_node(view: HostView, node: str) -> Mask:
    return np.fromiter((row is not None and row.node == node for row in view.rows), np.bool_, len(view.rows))
