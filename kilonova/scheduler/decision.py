"""A decision: which hosts take the servers of a request. Works on the view alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

import msgspec
import numpy as np
from numpy.typing import NDArray

from kilonova.domain.errors import NoValidHost
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters import FILTERS, Filter
from kilonova.scheduler.view import HostView, Mask
from kilonova.scheduler.weighers import weigh


class HostChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A host that could take a server.

    Args:
        cell: uuid of its cell. provider: uuid of its resource provider.
        resources: what to claim there. limits: the capacity the decision was based on, by resource class.
        failed_builds: builds that failed there since the last one that did not.
    """

    host: str
    node: str
    cell: str
    provider: str
    resources: dict[str, int]
    limits: dict[str, int]
    failed_builds: int = 0


class Selection(HostChoice, frozen=True, kw_only=True):
    """The host chosen for one server, and others of the same cell to try if it fails there, best first.

    Args:
        considered: hosts that there are. candidates: hosts that could take it.
    """

    alternates: tuple[HostChoice, ...] = ()
    considered: int = 0
    candidates: int = 0


class NoHostLeft(NoValidHost):
    """No host can take the server, or not all servers of the request.

    Args:
        left: for each filter that had a say, its name and how many hosts it left.
        why: what the hosts lack, "" if that cannot be told.

    `refused_by` is the first filter that left none, "start" if there was none before any filter.
    """

    def __init__(self, left: list[tuple[str, int]], why: str = "") -> None:
        super().__init__(*([why] if why else []))
        self.left = tuple(left)
        self.refused_by = next((name for name, count in left if count == 0), "")
        self.hint = "hosts left: " + ", ".join(f"{count} after {name}" for name, count in left)


@dataclass(frozen=True)
class Preferences:
    """How to choose among hosts that can take a server.

    Args:
        host_subset_size: choose at random among that many of the best.
        multipliers: weights of weighers by name, in place of the usual ones.
    """

    host_subset_size: int = 1
    multipliers: Mapping[str, float] = field(default_factory=dict)


def decide(
    view: HostView, demand: Demand, *, count: int, alternates: int, random: Random, preferences: Preferences
) -> list[Selection]:
    """Choose a host for each of `count` equal servers and note in the view what they will take.

    Each choice takes the earlier ones into account, so that servers spread.

    Raises:
        NoHostLeft: there is no host for one of them; then nothing is noted.
    """
    left: list[tuple[str, int]] = [("start", int(np.count_nonzero(view.alive)))]
    fixed = _pass(view, demand, view.alive.copy(), [f for f in FILTERS if not f.each], left)
    chosen: list[int] = []
    selections: list[Selection] = []
    try:
        for _ in range(count):
            mine = list(left)
            rows = np.flatnonzero(_pass(view, demand, fixed, [f for f in FILTERS if f.each], mine))
            if not len(rows):
                raise NoHostLeft(mine, _why(view, demand, mine))
            ranked = _rank(view, demand, rows, 1 + alternates, random, preferences)
            selections.append(_selection(view, demand, ranked, alternates, (left[0][1], len(rows))))
            chosen.append(ranked[0])
            view.hold(ranked[0], demand.resources, demand.now)
            host = view.row(ranked[0]).host
            if demand.group is not None:
                demand.members_on[host] = demand.members_on.get(host, 0) + 1
    except NoHostLeft:
        for row in chosen:
            view.unhold(row, demand.resources)
        raise
    return selections


def _why(view: HostView, demand: Demand, left: list[tuple[str, int]]) -> str:
    """What the filter that left none has to say."""
    last = next((name for name, count in left if count == 0), None)
    return next((each.why(view, demand) for each in FILTERS if each.name == last and each.why is not None), "")


def refusals(view: HostView, demand: Demand, host: str) -> list[str]:
    """The filters that forbid a host to run the server from the image of the request, by name."""
    there = view.on([host]) & view.alive
    found = []
    for each in FILTERS:
        passed = each.passes(view, demand) if each.image else None
        if passed is not None and not np.any(there & passed):
            found.append(each.name)
    return found


def _pass(view: HostView, demand: Demand, mask: Mask, filters: list[Filter], left: list[tuple[str, int]]) -> Mask:
    for each in filters:
        if demand.forced and not each.forced:
            continue
        passed = each.passes(view, demand)
        if passed is not None:
            mask = mask & passed
            left.append((each.name, int(np.count_nonzero(mask))))
    return mask


def _rank(
    view: HostView, demand: Demand, rows: NDArray[np.intp], wanted: int, random: Random, preferences: Preferences
) -> list[int]:
    """Rows from best to worst, as many as can be needed; the first one drawn from the best few."""
    weights = weigh(view, demand, rows, preferences.multipliers)
    if wanted == 1 and preferences.host_subset_size <= 1:
        return [int(rows[np.argmax(weights)])]
    order = [int(row) for row in rows[np.argsort(-weights, kind="stable")]]
    first = random.randrange(min(max(preferences.host_subset_size, 1), len(order)))
    order.insert(0, order.pop(first))
    return order


def _selection(
    view: HostView, demand: Demand, ranked: list[int], alternates: int, counts: tuple[int, int]
) -> Selection:
    best = view.row(ranked[0])
    others: list[HostChoice] = []
    for index in ranked[1:]:
        if len(others) == alternates:
            break
        if view.row(index).cell == best.cell:
            others.append(HostChoice(**_facts(view, demand, index)))  # type: ignore[arg-type]
    return Selection(
        **_facts(view, demand, ranked[0]),  # type: ignore[arg-type]
        alternates=tuple(others), considered=counts[0], candidates=counts[1],
    )


def _facts(view: HostView, demand: Demand, index: int) -> dict[str, object]:
    row = view.row(index)
    limits = {name: row.offers[name][0] for name in demand.resources if name in row.offers}
    return {
        "host": row.host,
        "node": row.node,
        "cell": row.cell,
        "provider": row.provider,
        "resources": dict(demand.resources),
        "limits": limits,
        "failed_builds": int(view.failed_builds[index]),
    }
