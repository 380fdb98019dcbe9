"""What a port asks for, added to what a server holds, and taken from it again."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.placement.claims import (
    add_use,
    drop_consumer_without_allocations,
    held_by,
    lock_existing_consumers,
    lock_providers,
)
from kilonova.db.placement.in_place import hold, root_of
from kilonova.db.placement.tables import allocation_groups, providers
from kilonova.db.placement.trees import groups_held, lock_tree
from kilonova.shapes.trees import Branch, ResourceGroup, assign


def add_group(connection: sa.Connection, consumer: str, host: str, group: ResourceGroup) -> str | None:
    """Make a consumer hold a group more of a host that it holds something of; repeating it adds nothing.

    Returns:
        The uuid of the provider that serves it; None if there is none, or the consumer holds nothing there.

    Spec: IFC-02, IFC-04, IFC-07.
    """
    lock_existing_consumers(connection, consumer)
    known = groups_held(connection, consumer).get(group.suffix)
    if known is not None:
        return known.provider
    root = root_of(connection, consumer, host)
    if root is None:
        return None
    tree = lock_tree(connection, consumer, root)
    full = [_with_own(branch, tree.held.get(branch.provider, {})) for branch in tree.branches]
    found = assign({}, [group], full, isolate=False)
    if found is None:
        return None
    provider = found.groups[group.suffix]
    number, before = tree.ids[provider], tree.held.get(provider, {})
    add_use(connection, number, group.resources)
    hold(connection, consumer, number, {
        name: before.get(name, 0) + group.resources.get(name, 0) for name in before.keys() | group.resources.keys()
    })
    connection.execute(allocation_groups.insert().values(
        consumer=consumer, suffix=group.suffix, provider_id=number, resources=group.resources
    ))
    return provider


def drop_group(connection: sa.Connection, consumer: str, suffix: str) -> None:
    """Take from what a consumer holds what a group of it is; nothing if there is no such group. Spec: IFC-09."""
    lock_existing_consumers(connection, consumer)
    held = groups_held(connection, consumer).get(suffix)
    if held is None:
        return
    number = connection.execute(sa.select(providers.c.id).where(providers.c.uuid == held.provider)).scalar_one()
    lock_providers(connection, {number})
    before = held_by(connection, consumer).get(number, {})
    less = {name: min(amount, before.get(name, 0)) for name, amount in held.resources.items()}
    add_use(connection, number, {name: -amount for name, amount in less.items()})
    hold(connection, consumer, number, {name: amount - less.get(name, 0) for name, amount in before.items()})
    connection.execute(allocation_groups.delete().where(
        allocation_groups.c.consumer == consumer, allocation_groups.c.suffix == suffix
    ))
    drop_consumer_without_allocations(connection, consumer)


def _with_own(branch: Branch, held: dict[str, int]) -> Branch:
    """A provider as others see it: what the consumer holds counts as used."""
    offers = {
        name: (capacity, used + held.get(name, 0), smallest, largest, step)
        for name, (capacity, used, smallest, largest, step) in branch.offers.items()
    }
    return Branch(provider=branch.provider, offers=offers, traits=branch.traits)
