"""Filters by what placement knows: room, traits, disabled hosts."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kilonova.db.placement.hosts import STATUS_DISABLED
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.view import HostView, Mask


def room(view: HostView, demand: Demand) -> Mask | None:
    """Hosts with enough left of every resource class, in portions that they give. What providers below them have is
    looked at by `groups`."""
    if not demand.resources:
        return None
    return _all(_has_room(view, name, amount) | _below(view, name) for name, amount in demand.resources.items())


def why_no_room(view: HostView, demand: Demand) -> str:
    """The resource classes that no host has."""
    lacking = [name for name in sorted(demand.resources) if not np.any(view.alive & _has_any(view, name))]
    return f"No host offers {', '.join(lacking)}." if lacking else ""


def _has_any(view: HostView, name: str) -> Mask:
    offers = view.offers.get(name)
    return _below(view, name) if offers is None else np.asarray(offers.capacity > 0) | _below(view, name)


def _below(view: HostView, name: str) -> Mask:
    return view.nested.get(name, np.zeros(len(view.alive), np.bool_))


def _has_room(view: HostView, name: str, amount: int) -> Mask:
    offers = view.offers.get(name)
    if offers is None:
        return np.zeros(len(view.alive), np.bool_)
    given = (offers.min_unit <= amount) & (amount <= offers.max_unit) & (amount % offers.step_size == 0)
    return np.asarray(given & (offers.free() >= amount))


def traits(view: HostView, demand: Demand) -> Mask | None:
    """Hosts with every required and no forbidden trait."""
    if not demand.required and not demand.forbidden:
        return None
    wanted = [view.with_trait(trait) for trait in sorted(demand.required)]
    return _all([*wanted, *(~view.with_trait(trait) for trait in sorted(demand.forbidden))])


def why_no_traits(view: HostView, demand: Demand) -> str:
    """The required traits that no host has, and what asks for them."""
    lacking = [trait for trait in sorted(demand.required) if not np.any(view.alive & view.with_trait(trait))]
    told = [f"{trait} ({demand.asked_by[trait]})" if trait in demand.asked_by else trait for trait in lacking]
    return f"No host offers {', '.join(told)}." if told else ""


def not_disabled(view: HostView, demand: Demand) -> Mask:
    """Hosts that no operator has disabled: neither by what placement has been told, which may have failed, nor by the
    record of the service. Spec: HST-12."""
    return ~(view.with_trait(STATUS_DISABLED) | view.on(demand.kept_off))


def _all(masks: Iterable[Mask]) -> Mask:
    return np.asarray(np.logical_and.reduce(list(masks)), np.bool_)
