"""Filters by host aggregate: availability zone, and extra specs matched against aggregate properties."""

from __future__ import annotations

from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters.operators import matches
from kilonova.scheduler.view import HostView, Mask

SCOPE = "aggregate_instance_extra_specs:"


def zone(view: HostView, demand: Demand) -> Mask | None:
    """Hosts in an aggregate of the zone that was asked for; hosts of no zone are in the default zone."""
    wanted = demand.spec.availability_zone
    if wanted is None:
        return None
    mask = view.on(())
    zoned = view.on(())
    for aggregate in demand.aggregates:
        if aggregate.availability_zone is not None:
            members = view.in_aggregate(aggregate.uuid)
            zoned |= members
            if aggregate.availability_zone == wanted:
                mask |= members
    return mask | ~zoned if wanted == demand.default_zone else mask


def extra_specs(view: HostView, demand: Demand) -> Mask | None:
    """Hosts that for each scoped extra spec are in an aggregate with a property that meets it."""
    asked = {
        key.removeprefix(SCOPE): value for key, value in demand.spec.flavor.extra_specs.items() if key.startswith(SCOPE)
    }
    if not asked:
        return None
    mask = view.alive.copy()
    for key, wanted in asked.items():
        meets = view.on(())
        for aggregate in demand.aggregates:
            values = aggregate.metadata.get(key)
            if values is not None and any(matches(value.strip(), wanted) for value in values.split(",")):
                meets |= view.in_aggregate(aggregate.uuid)
        mask &= meets
    return mask
