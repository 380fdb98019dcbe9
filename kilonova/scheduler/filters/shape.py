"""Filters by the shape that a guest is to have: a place for its CPUs, NUMA cells and pages; groups; devices."""

from __future__ import annotations

from collections import Counter

import numpy as np

from kilonova.db.placement.changes import HostRow
from kilonova.db.placement.layouts import read_layouts, read_topology
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters.resources import room
from kilonova.scheduler.view import HostView, Mask
from kilonova.shapes.fitting import DoesNotFit, fit
from kilonova.shapes.resources import granular_groups

DEVICES = {"pci_passthrough:alias": "PCI devices", "hw:pmem": "persistent memory"}
ISOLATE = "isolate"


def place(view: HostView, demand: Demand) -> Mask | None:
    """Hosts with a place for the guest. The claim decides with the host locked; this is a forecast."""
    if not demand.shape.cells:
        return None
    enough = room(view, demand)
    mask = view.alive if enough is None else view.alive & enough
    answers: dict[tuple[str, str | None], bool] = {}
    found = np.zeros(len(mask), np.bool_)
    for index in np.flatnonzero(mask):
        row = view.row(int(index))
        key = (row.topology, row.layouts)
        if key not in answers:
            answers[key] = not _refusal(row, demand)
        found[index] = answers[key]
    return found


def why_no_place(view: HostView, demand: Demand) -> str:
    """What most hosts lack."""
    lacking = [name for name in sorted(demand.resources) if name not in view.offers]
    if lacking:
        return f"No host offers {', '.join(lacking)}."
    reasons = Counter(_refusal(row, demand) for row in view.rows if row is not None)
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
    """A host is one resource provider, so groups that must not share a provider find none."""
    specs = demand.spec.flavor.extra_specs
    apart = specs.get("group_policy") == ISOLATE and len(granular_groups(specs)) > 1
    return np.zeros(len(view.alive), np.bool_) if apart else None


def why_no_groups(_view: HostView, _demand: Demand) -> str:
    return "group_policy = isolate needs hosts whose devices are resource providers of their own; there are none."


def missing_devices(view: HostView, demand: Demand) -> Mask | None:
    """No host offers devices of these kinds, so a flavor that asks for one finds none."""
    asked = DEVICES.keys() & demand.spec.flavor.extra_specs.keys()
    return np.zeros(len(view.alive), np.bool_) if asked else None


def why_no_devices(_view: HostView, demand: Demand) -> str:
    specs = demand.spec.flavor.extra_specs
    return " ".join(f"No host offers {what} ({key} = {specs[key]})." for key, what in DEVICES.items() if key in specs)
