"""The weighers: which of the hosts that can take the server is best.

Each gives every host a number; the numbers are spread over 0 to 1 and added up with the weigher's multiplier. A
positive multiplier favours large numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kilonova.domain.grouping import GroupPolicy
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.view import HostView, Numbers

Floats = NDArray[np.float64]
WeigherFunction = Callable[[HostView, Demand, NDArray[np.intp]], Numbers | None]


@dataclass(frozen=True)
class Weigher:
    """A weigher; the function answers None when it has nothing to say to the request."""

    name: str
    number: WeigherFunction
    multiplier: float


def _free(name: str) -> WeigherFunction:
    def free(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers | None:
        offers = view.offers.get(name)
        return None if offers is None else offers.free()[rows]

    return free


def _io_ops(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers:
    """Servers being worked on; one that was just placed is about to be built."""
    return (view.io_ops + view.held_instances)[rows]


def _instances(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers:
    return (view.instances + view.held_instances)[rows]


def _failed_builds(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers:
    return view.failed_builds[rows]


def _hypervisor_version(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers:
    return view.hypervisor_version[rows]


def _members(policy: GroupPolicy) -> WeigherFunction:
    def members(view: HostView, demand: Demand, rows: NDArray[np.intp]) -> Numbers | None:
        return view.counted(demand.members_on)[rows] if demand.policy is policy else None

    return members


WEIGHERS: tuple[Weigher, ...] = (
    Weigher("ram", _free("MEMORY_MB"), 1.0),
    Weigher("cpu", _free("VCPU"), 1.0),
    Weigher("disk", _free("DISK_GB"), 1.0),
    Weigher("io_ops", _io_ops, -1.0),
    Weigher("build_failure", _failed_builds, -1_000_000.0),
    Weigher("soft_affinity", _members(GroupPolicy.SOFT_AFFINITY), 1.0),
    Weigher("soft_anti_affinity", _members(GroupPolicy.SOFT_ANTI_AFFINITY), -1.0),
    Weigher("hypervisor_version", _hypervisor_version, 1.0),
    Weigher("num_instances", _instances, 0.0),
)


def weigh(
    view: HostView, demand: Demand, rows: NDArray[np.intp], multipliers: Mapping[str, float] | None = None
) -> Floats:
    """The weight of each of these rows.

    Args:
        multipliers: by weigher name, in place of the usual ones.
    """
    total: Floats = np.zeros(len(rows), np.float64)
    for weigher in WEIGHERS:
        multiplier = (multipliers or {}).get(weigher.name, weigher.multiplier)
        numbers = weigher.number(view, demand, rows) if multiplier else None
        if numbers is not None:
            total += multiplier * _spread(numbers)
    return total


def _spread(numbers: Numbers) -> Floats:
    """Spread over 0 to 1; equal numbers all become 0, so they decide nothing."""
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low) if high > low else np.zeros(len(numbers), np.float64)
