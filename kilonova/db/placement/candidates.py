"""Allocation candidates: combinations of providers of one tree that together meet a request."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.providers import PROVIDERS, Provider
from kilonova.db.placement.search import ProviderQuery, find_providers
from kilonova.db.placement.tables import inventories, provider_traits, providers

ROOTS_AT_ONCE = 200
"""Trees whose details are read in one go."""


class CandidateQuery(msgspec.Struct, kw_only=True):
    """What is asked for.

    Args:
        groups: what each group asks, by suffix. The one with suffix "" may be met by several providers of a
            tree, each other one by a single provider.
        isolate: no two suffixed groups share a provider.
        root_required, root_forbidden: traits of the root. subtrees: suffixes whose providers have one of them as
            their common ancestor. limit: candidates at most.
        nested: whether providers below the root may serve.
    """

    groups: dict[str, ProviderQuery]
    isolate: bool = False
    root_required: list[frozenset[str]] = []
    root_forbidden: frozenset[str] = frozenset()
    subtrees: list[frozenset[str]] = []
    limit: int | None = None
    nested: bool = True


class Candidate(msgspec.Struct, frozen=True):
    """One way to meet the request: amounts by provider id, and the providers that serve each group."""

    holds: dict[int, dict[str, int]]
    mappings: dict[str, list[int]]


class Summary(msgspec.Struct, kw_only=True):
    """A provider as candidates show it. resources: (capacity, used) by class."""

    provider: Provider
    resources: dict[str, tuple[int, int]]
    traits: set[str]


def find_candidates(connection: sa.Connection, query: CandidateQuery) -> tuple[list[Candidate], dict[int, Summary]]:
    """Candidates, by root, and the providers of their trees. Spec: API-739, EMP-07."""
    choices = {suffix: _choices(connection, suffix, group, query.nested) for suffix, group in query.groups.items()}
    roots: set[int] | None = None
    for options in (some for by_class in choices.values() for some in by_class.values()):
        here = {provider.root_id for provider in options}
        roots = here if roots is None else roots & here
    found: list[Candidate] = []
    summaries: dict[int, Summary] = {}
    ordered = sorted(roots or ())
    for start in range(0, len(ordered), ROOTS_AT_ONCE):
        some = ordered[start : start + ROOTS_AT_ONCE]
        trees = _read_trees(connection, some)
        for root in some:
            tree = {number: one for number, one in trees.items() if one.provider.root_id == root}
            for candidate in _in_tree(query, choices, tree, root):
                found.append(candidate)
                summaries |= tree if query.nested else {number: tree[number] for number in candidate.holds}
                if len(found) == query.limit:
                    return found, summaries
    return found, summaries


def _choices(connection: sa.Connection, suffix: str, group: ProviderQuery, nested: bool) -> dict[str, list[Provider]]:
    """For each part of a group that one provider serves, the providers that can."""
    parts = {name: {name: amount} for name, amount in group.resources.items()} if suffix == "" else {
        "": group.resources
    }
    found: dict[str, list[Provider]] = {}
    for name, resources in parts.items():
        query = msgspec.structs.replace(group, resources=resources, required=group.required if suffix else [])
        able = find_providers(connection, query)
        found[name] = able if nested else [provider for provider in able if provider.parent is None]
    return found


def _read_trees(connection: sa.Connection, roots: Sequence[int]) -> dict[int, Summary]:
    trees = {
        row.id: Summary(provider=Provider(**row._mapping), resources={}, traits=set())
        for row in connection.execute(PROVIDERS.where(providers.c.root_id.in_(roots)))
    }
    for table in (inventories, provider_traits):
        of_trees = sa.select(table).join(providers, providers.c.id == table.c.provider_id)
        for row in connection.execute(of_trees.where(providers.c.root_id.in_(roots))):
            if table is inventories:
                trees[row.provider_id].resources[row.resource_class] = (row.capacity, row.used)
            else:
                trees[row.provider_id].traits.add(row.trait)
    return trees


def _in_tree(query: CandidateQuery, choices: dict[str, dict[str, list[Provider]]], tree: dict[int, Summary],
             root: int) -> Iterator[Candidate]:
    if not _has(tree[root].traits, query.root_required) or tree[root].traits & query.root_forbidden:
        return
    slots = [(suffix, name) for suffix, parts in choices.items() for name in parts]
    options = [[provider.id for provider in choices[suffix][name] if provider.id in tree] for suffix, name in slots]
    seen: set[tuple[tuple[str, int, str], ...]] = set()
    for picked in product(*options):
        candidate = _combine(query, slots, picked)
        key = tuple(sorted((suffix, number, name) for (suffix, name), number in zip(slots, picked, strict=True)))
        if key not in seen and _holds_together(query, candidate, tree):
            seen.add(key)
            yield candidate


def _combine(query: CandidateQuery, slots: list[tuple[str, str]], picked: Iterable[int]) -> Candidate:
    holds: dict[int, Counter[str]] = {}
    mappings: dict[str, list[int]] = {}
    for (suffix, name), number in zip(slots, picked, strict=True):
        wanted = query.groups[suffix].resources
        amounts = {name: wanted[name]} if suffix == "" else wanted
        if amounts:
            holds.setdefault(number, Counter()).update(amounts)
        mapping = mappings.setdefault(suffix, [])
        if number not in mapping:
            mapping.append(number)
    return Candidate({number: dict(amounts) for number, amounts in holds.items()}, mappings)


def _holds_together(query: CandidateQuery, candidate: Candidate, tree: dict[int, Summary]) -> bool:
    for number, amounts in candidate.holds.items():
        for name, amount in amounts.items():
            capacity, used = tree[number].resources[name]
            if used + amount > capacity:
                return False
    if "" in candidate.mappings:
        together = set[str]().union(*(tree[number].traits for number in candidate.mappings[""]))
        if not _has(together, query.groups[""].required):
            return False
    if query.isolate:
        single = [number for suffix, numbers in candidate.mappings.items() if suffix for number in numbers]
        if len(set(single)) < len(single):
            return False
    return all(_one_above_all(subtree, candidate, tree) for subtree in query.subtrees)


def _one_above_all(suffixes: frozenset[str], candidate: Candidate, tree: dict[int, Summary]) -> bool:
    members = {number for suffix in suffixes for number in candidate.mappings[suffix]}
    ids = {summary.provider.uuid: number for number, summary in tree.items()}

    def ancestors(number: int) -> set[int]:
        line = {number}
        while (parent := tree[number].provider.parent) is not None:
            number = ids[parent]
            line.add(number)
        return line

    return bool(members & set[int].intersection(*(ancestors(number) for number in members)))


def _has(traits: set[str], wanted: list[frozenset[str]]) -> bool:
    return all(traits & names for names in wanted)
