"""What a port asks for, added to what a server holds, and taken from it again."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.placement.claims import (
    add_use,
    drop_consumer_without_allocations,
    lock_existing_consumers,
    lock_providers,
    raise_consumer_generation,
)
from kilonova.db.placement.tables import allocation_groups, allocations, hosts, providers, touch
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
    root = connection.execute(
        sa.select(hosts.c.provider_id).join(allocations, allocations.c.provider_id == hosts.c.provider_id)
        .where(hosts.c.host == host, allocations.c.consumer == consumer).limit(1)
    ).scalar()
    if root is None:
        return None
    lock_providers(connection, {root})
    tree = lock_tree(connection, consumer, root)
    full = [_with_own(branch, tree.held.get(branch.provider, {})) for branch in tree.branches]
    found = assign({}, [group], full, isolate=False)
    if found is None:
        return None
    provider = found.groups[group.suffix]
    number, before = tree.ids[provider], tree.held.get(provider, {})
    add_use(connection, number, group.resources)
    _hold(connection, consumer, number, {
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
    rows = connection.execute(sa.select(allocations).where(
        allocations.c.consumer == consumer, allocations.c.provider_id == number
    ))
    before = {row.resource_class: row.used for row in rows}
    less = {name: min(amount, before.get(name, 0)) for name, amount in held.resources.items()}
    add_use(connection, number, {name: -amount for name, amount in less.items()})
    _hold(connection, consumer, number, {name: amount - less.get(name, 0) for name, amount in before.items()})
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


def _hold(connection: sa.Connection, consumer: str, provider_id: int, amounts: dict[str, int]) -> None:
    connection.execute(allocations.delete().where(
        allocations.c.consumer == consumer, allocations.c.provider_id == provider_id
    ))
    rows = [
        {"consumer": consumer, "provider_id": provider_id, "resource_class": name, "used": amount}
        for name, amount in sorted(amounts.items()) if amount
    ]
    if rows:
        connection.execute(allocations.insert(), rows)
    raise_consumer_generation(connection, consumer)
    touch(connection, [provider_id])
