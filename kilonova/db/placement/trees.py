"""Claims on the providers below a host: which of them serves each group of a request, and what it gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.tables import allocation_groups, allocations, inventories, provider_traits, providers
from kilonova.db.prepared import Prepared
from kilonova.shapes.trees import Assignment, Branch, Offer, ResourceGroup, assign


class GroupHolding(msgspec.Struct, frozen=True):
    """What a group of a consumer holds. provider: uuid of who serves it."""

    provider: str
    resources: dict[str, int]


class Tree(msgspec.Struct, frozen=True):
    """A locked tree as a consumer finds it.

    Args:
        ids: of its providers by uuid, the root first. branches: what it could have, what it has included.
        held: what it has, by provider and class.
    """

    ids: dict[str, int]
    branches: tuple[Branch, ...]
    held: dict[str, dict[str, int]]


def lock_tree(connection: sa.Connection, consumer: str, root_id: int) -> Tree:
    """Lock the providers below a locked root and read all that they offer to this consumer."""
    rows = connection.execute(
        sa.select(providers.c.id, providers.c.uuid).where(providers.c.root_id == root_id)
        .order_by(providers.c.id != root_id, providers.c.id).with_for_update()
    ).all()
    ids = {row.uuid: row.id for row in rows}
    offers: dict[int, dict[str, Offer]] = defaultdict(dict)
    held: dict[int, dict[str, int]] = defaultdict(dict)
    traits: dict[int, set[str]] = defaultdict(set)
    for row in connection.execute(sa.select(allocations).where(
        allocations.c.consumer == consumer, allocations.c.provider_id.in_(ids.values())
    )):
        held[row.provider_id][row.resource_class] = row.used
    for row in connection.execute(sa.select(inventories).where(inventories.c.provider_id.in_(ids.values()))):
        own = held[row.provider_id].get(row.resource_class, 0)
        offers[row.provider_id][row.resource_class] = (
            row.capacity, row.used - own, row.min_unit, row.max_unit, row.step_size
        )
    for row in connection.execute(sa.select(provider_traits).where(provider_traits.c.provider_id.in_(ids.values()))):
        traits[row.provider_id].add(row.trait)
    return Tree(
        ids,
        tuple(Branch(provider=uuid, offers=offers[n], traits=frozenset(traits[n])) for uuid, n in ids.items()),
        {uuid: held[n] for uuid, n in ids.items() if held[n]},
    )


def assign_in(
    connection: sa.Connection, consumer: str, tree: Tree, resources: Mapping[str, int],
    groups: Sequence[ResourceGroup], *, isolate: bool,
) -> Assignment | None:
    """Find a provider for everything. What the consumer holds already stays where it is if that can be."""
    preferred = {suffix: held.provider for suffix, held in groups_held(connection, consumer).items()}
    return assign(resources, groups, tree.branches, isolate=isolate, preferred=preferred)


def changes_below(tree: Tree, assignment: Assignment) -> dict[int, tuple[dict[str, int], dict[str, int]]]:
    """For each provider below the root whose share differs: what is held of it and what is to be held."""
    _, *below = tree.ids.items()
    return {
        number: (tree.held.get(uuid, {}), assignment.holds.get(uuid, {}))
        for uuid, number in below if tree.held.get(uuid, {}) != assignment.holds.get(uuid, {})
    }


def store_groups(
    connection: sa.Connection, consumer: str, tree: Tree, groups: Sequence[ResourceGroup], assignment: Assignment
) -> None:
    """Note who serves each group, in place of what was noted of this tree."""
    connection.execute(allocation_groups.delete().where(
        allocation_groups.c.consumer == consumer, allocation_groups.c.provider_id.in_(tree.ids.values())
    ))
    rows = [
        {"consumer": consumer, "suffix": group.suffix, "provider_id": tree.ids[assignment.groups[group.suffix]],
         "resources": group.resources}
        for group in groups
    ]
    if rows:
        connection.execute(allocation_groups.insert(), rows)


def groups_held(connection: sa.Connection, consumer: str) -> dict[str, GroupHolding]:
    """What each group of a consumer holds, by suffix."""
    rows = _GROUPS.all(connection, consumer=consumer)
    return {row.suffix: GroupHolding(row.uuid, row.resources) for row in rows}


def in_tree_of(connection: sa.Connection, provider: str) -> set[int]:
    """The providers of the tree that one of them (its uuid) is in."""
    root = sa.select(providers.c.root_id).where(providers.c.uuid == provider).scalar_subquery()
    return set(connection.execute(sa.select(providers.c.id).where(providers.c.root_id == root)).scalars())


def forget_groups(connection: sa.Connection, consumer: str, provider_id: int) -> None:
    _FORGET.run(connection, consumer=consumer, provider=provider_id)


def forget_groups_elsewhere(connection: sa.Connection, consumer: str, provider_ids: Sequence[int]) -> None:
    """Drop what is noted of other providers than these."""
    connection.execute(allocation_groups.delete().where(
        allocation_groups.c.consumer == consumer, allocation_groups.c.provider_id.not_in(provider_ids)
    ))


def hand_over_groups(connection: sa.Connection, source: str, target: str) -> None:
    _HAND_OVER.run(connection, source=source, target=target)


_GROUPS = Prepared(
    sa.select(allocation_groups.c.suffix, allocation_groups.c.resources, providers.c.uuid)
    .join(providers, providers.c.id == allocation_groups.c.provider_id)
    .where(allocation_groups.c.consumer == sa.bindparam("consumer"))
    .order_by(allocation_groups.c.suffix)
)
_FORGET = Prepared(allocation_groups.delete().where(
    allocation_groups.c.consumer == sa.bindparam("consumer"),
    allocation_groups.c.provider_id == sa.bindparam("provider"),
))
_HAND_OVER = Prepared(
    allocation_groups.update().where(allocation_groups.c.consumer == sa.bindparam("source"))
    .values(consumer=sa.bindparam("target"))
)
