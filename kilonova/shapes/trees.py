"""Which providers of a host's tree serve what is asked for: the host itself, or one below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

Offer = tuple[int, int, int, int, int]
"""Capacity, used, min_unit, max_unit, step_size."""


class ResourceGroup(msgspec.Struct, frozen=True, kw_only=True):
    """What one provider is to give: as a flavor asks (`resources1:...`), or a port.

    Args:
        suffix: its name, unique among the groups of a server. resources: amounts by class, none of them 0.
        required, forbidden: traits of the provider.
    """

    suffix: str
    resources: dict[str, int]
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()


class Branch(msgspec.Struct, frozen=True, kw_only=True):
    """A provider of a tree. provider: its uuid."""

    provider: str
    offers: Mapping[str, Offer]
    traits: frozenset[str] = frozenset()


class Assignment(msgspec.Struct, frozen=True):
    """holds: amounts by provider and class. groups: the provider that serves each, by suffix."""

    holds: dict[str, dict[str, int]]
    groups: dict[str, str]


def assign(
    resources: Mapping[str, int], groups: Sequence[ResourceGroup], tree: Sequence[Branch], *, isolate: bool,
    preferred: Mapping[str, str] | None = None,
) -> Assignment | None:
    """Find a provider for everything, None if there is none.

    Args:
        resources: what no group asks for; each class is taken of the root if that has it, else of any.
        tree: the root first. isolate: no two groups share a provider. preferred: tried first, by suffix.
    """
    root = tree[0]
    loose = [ResourceGroup(suffix="", resources={name: amount}) for name, amount in sorted(resources.items())]
    wanted = [(group, [root] if group.resources.keys() & root.offers.keys() else list(tree)) for group in loose]
    for group in groups:
        first = (preferred or {}).get(group.suffix)
        able = [branch for branch in tree if _serves(branch, group)]
        wanted.append((group, sorted(able, key=lambda branch: branch.provider != first)))
    holds: dict[str, dict[str, int]] = {branch.provider: {} for branch in tree}
    chosen: dict[str, str] = {}
    if not _fill(wanted, 0, holds, chosen, isolate):
        return None
    return Assignment({provider: amounts for provider, amounts in holds.items() if amounts}, chosen)


def _serves(branch: Branch, group: ResourceGroup) -> bool:
    return group.required <= branch.traits and not group.forbidden & branch.traits


def _fill(
    wanted: Sequence[tuple[ResourceGroup, list[Branch]]], position: int, holds: dict[str, dict[str, int]],
    chosen: dict[str, str], isolate: bool,
) -> bool:
    if position == len(wanted):
        return True
    group, able = wanted[position]
    for branch in _distinct(able, holds, chosen):
        held = holds[branch.provider]
        if (isolate and group.suffix and branch.provider in chosen.values()) or not _has_room(branch, group, held):
            continue
        holds[branch.provider] = held | {name: held.get(name, 0) + n for name, n in group.resources.items()}
        if group.suffix:
            chosen[group.suffix] = branch.provider
        if _fill(wanted, position + 1, holds, chosen, isolate):
            return True
        chosen.pop(group.suffix, None)
        holds[branch.provider] = held
    return False


def _distinct(
    able: Sequence[Branch], holds: Mapping[str, Mapping[str, int]], chosen: Mapping[str, str]
) -> Iterator[Branch]:
    """Of providers that are alike so far only the first: where one does not help, the others do not either."""
    seen: list[tuple[object, ...]] = []
    for branch in able:
        like = (branch.offers, branch.traits, holds[branch.provider], branch.provider in chosen.values())
        if like not in seen:
            seen.append(like)
            yield branch


def _has_room(branch: Branch, group: ResourceGroup, held: Mapping[str, int]) -> bool:
    for name, amount in group.resources.items():
        capacity, used, smallest, largest, step = branch.offers.get(name, (0, 0, 1, 0, 1))
        total = held.get(name, 0) + amount
        if not smallest <= total <= largest or total % step or used + total > capacity:
            return False
    return True
