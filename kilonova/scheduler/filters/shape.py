"""Filters by the shape that a guest is to have: a place for its CPUs, NUMA cells and pages; groups; devices."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from kilonova.db.placement.changes import HostRow
from kilonova.db.placement.layouts import read_layouts, read_topology
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters.resources import room
from kilonova.scheduler.view import HostView, Mask
from kilonova.shapes.fitting import fit
from kilonova.shapes.host import DoesNotFit, HostTopology
from kilonova.shapes.pci_fitting import choose
from kilonova.shapes.pci_requests import ALIAS
from kilonova.shapes.trees import Branch, assign

MEMORY = "hw:pmem"
NOTHING = HostTopology(())


def place(view: HostView, demand: Demand) -> Mask | None:
    """Hosts with a place for the guest. The claim decides with the host locked; this is a forecast."""
    return _where(view, demand, _refusal) if demand.shape.cells else None


def _where(view: HostView, demand: Demand, refusal: Callable[[HostRow, Demand], str]) -> Mask:
    """The hosts with room for which there is no refusal. Hosts that are alike are looked at once."""
    enough = room(view, demand)
    mask = view.alive if enough is None else view.alive & enough
    answers: dict[tuple[str, str | None], bool] = {}
    found = np.zeros(len(mask), np.bool_)
    for index in np.flatnonzero(mask):
        row = view.row(int(index))
        key = (row.topology, row.layouts)
        if key not in answers:
            answers[key] = not refusal(row, demand)
        found[index] = answers[key]
    return found


def why_no_place(view: HostView, demand: Demand) -> str:
    """What most hosts lack."""
    lacking = [name for name in sorted(demand.resources) if name not in view.offers]
    if lacking:
        return f"No host offers {', '.join(lacking)}."
    return _most_common(view, demand, _refusal)


def _most_common(view: HostView, demand: Demand, refusal: Callable[[HostRow, Demand], str]) -> str:
    reasons = Counter(refusal(row, demand) for row in view.rows if row is not None)
    del reasons[""]
    return reasons.most_common(1)[0][0] if reasons else ""


def _refusal(row: HostRow, demand: Demand) -> str:
    """Why the guest has no place on a host, "" if it has one."""
    try:
        fit(demand.shape, read_topology(row.topology), read_layouts(row.layouts))
    except DoesNotFit as error:
        return error.reason
    return ""


def groups(view: HostView, demand: Demand) -> Mask | None:
    """Hosts that are, with the providers below them, a tree in which each group finds a provider. The claim decides;
    this is a forecast."""
    nested = any(name in view.nested for name in demand.resources)
    if not demand.groups and not nested:
        return None
    enough = room(view, demand)
    mask = view.alive if enough is None else view.alive & enough
    found = np.zeros(len(mask), np.bool_)
    for index in np.flatnonzero(mask):
        row = view.row(int(index))
        tree = (Branch(provider=row.provider, offers=row.offers, traits=row.traits), *row.below)
        found[index] = assign(demand.resources, demand.groups, tree, isolate=demand.isolate) is not None
    return found


def why_no_groups(view: HostView, demand: Demand) -> str:
    """What one group asks for that nobody has at all, else that they do not fit."""
    for group in demand.groups:
        offered = view.offers.keys() | view.nested.keys()
        lacking = ", ".join(sorted(group.resources.keys() - offered))
        if lacking:
            return f"No host offers {lacking}."
    if demand.isolate and not any(row.below for row in view.rows if row is not None):
        return "group_policy = isolate needs hosts whose devices are resource providers of their own; there are none."
    return "No host has a provider for each of the groups of resources that are asked for." if demand.groups else ""


def devices(view: HostView, demand: Demand) -> Mask | None:
    """Hosts with enough PCI devices left, wherever they are in the host. A flavor that names an alias and was not read
    with it finds none."""
    if demand.shape.pci_requests:
        return _where(view, demand, _lacking)
    return np.zeros(len(view.alive), np.bool_) if ALIAS in demand.spec.flavor.extra_specs else None


def why_no_devices(view: HostView, demand: Demand) -> str:
    asked = f"{ALIAS} = {demand.spec.flavor.extra_specs[ALIAS]}" if ALIAS in demand.spec.flavor.extra_specs else "ports"
    if not demand.shape.pci_requests or not any(
        row is not None and (read_topology(row.topology) or NOTHING).devices for row in view.rows
    ):
        return f"No host offers PCI devices ({asked})."
    return _most_common(view, demand, _lacking)


def _lacking(row: HostRow, demand: Demand) -> str:
    try:
        choose(demand.shape.pci_requests, read_topology(row.topology) or NOTHING, read_layouts(row.layouts), None)
    except DoesNotFit as error:
        return error.reason
    return ""


def missing_memory(view: HostView, demand: Demand) -> Mask | None:
    """No host offers persistent memory."""
    return np.zeros(len(view.alive), np.bool_) if MEMORY in demand.spec.flavor.extra_specs else None


def why_no_memory(_view: HostView, demand: Demand) -> str:
    return f"No host offers persistent memory ({MEMORY} = {demand.spec.flavor.extra_specs[MEMORY]})."
