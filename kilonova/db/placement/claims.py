"""Claims: taking, giving back and handing over what a provider offers.

Each function changes allocations and the `used` counters of the inventories together. Nothing is held in
memory; whether there is room is decided on rows that the transaction has locked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kilonova.db.placement.errors import ConcurrentUpdate
from kilonova.db.placement.group_policies import group_allows, lock_group
from kilonova.db.placement.layouts import find_place, forget_layout, hand_over_layouts, held_place, take_place
from kilonova.db.placement.tables import allocations, consumers, hosts, inventories, providers, touch
from kilonova.db.placement.trees import (
    assign_in,
    changes_below,
    forget_groups,
    hand_over_groups,
    in_tree_of,
    lock_tree,
    store_groups,
)
from kilonova.db.prepared import Prepared
from kilonova.domain.grouping import ServerGroup
from kilonova.shapes.host import Layout
from kilonova.shapes.pci import with_devices
from kilonova.shapes.shape import Shape
from kilonova.shapes.trees import ResourceGroup

INSTANCE = "INSTANCE"
MIGRATION = "MIGRATION"
"""Types of consumers: a server, or the migration that holds what the server has where it is leaving."""


class Claim(Enum):
    """How a claim ended. True in a condition only if the consumer now holds the resources."""

    HELD = "the resources are held"
    FULL = "the host has not enough left"
    GROUP = "the policy of the server group does not allow this host"
    UNFIT = "its NUMA cells, CPUs, memory pages or PCI devices do not fit"
    GONE = "the host no longer exists"

    def __bool__(self) -> bool:
        return self is Claim.HELD


class Holding(msgspec.Struct, frozen=True):
    """What a consumer holds of one provider. host, node: None for a provider that is not a compute host."""

    provider: str
    resources: dict[str, int]
    host: str | None = None
    node: str | None = None


def claim(
    connection: sa.Connection,
    consumer: str,
    provider: str,
    resources: Mapping[str, int],
    project_id: str,
    user_id: str,
    *,
    group: ServerGroup | None = None,
    shape: Shape | None = None,
    groups: Sequence[ResourceGroup] = (),
    isolate: bool = False,
) -> Claim:
    """Make the consumer hold exactly these resources of the provider and those below it, if there is room.

    Repeating a claim changes nothing. A claim that is refused leaves no trace. With other resources than
    before it changes what is held of this provider; what is held of other trees stays.

    Args:
        consumer: uuid of the instance. provider: uuid. resources: amounts by resource class.
        group: checked here too, because parallel decisions cannot see each other: whoever claims first
            stays. Spec: BLD-11 to BLD-14, BLD-17, BLD-18.
        shape: of a guest that may need a place of its own on the host, which is decided here; None for none.
        groups: what is to come of one provider each; which one is decided here. Without any, what is
            held below the provider stays. isolate: of different ones.
    """
    if group is not None:
        lock_group(connection, group)
    lock_consumer(connection, consumer, project_id, user_id, INSTANCE, consumer)
    provider_id = _LOCK_PROVIDER.scalar(connection, uuid=provider)
    if provider_id is None:
        outcome = Claim.GONE
    elif group is not None and not group_allows(connection, group, consumer, provider_id):
        outcome = Claim.GROUP
    else:
        outcome = Claim.FULL if groups else _take(connection, consumer, provider_id, resources, shape)
        if outcome is Claim.FULL:
            outcome = _take_of_tree(connection, consumer, provider_id, resources, shape, groups, isolate)
    if not outcome or not any(resources.values()):
        drop_consumer_without_allocations(connection, consumer)
    return outcome


def release(connection: sa.Connection, consumer: str, provider: str | None = None) -> bool:
    """Give back what the consumer holds.

    Args:
        provider: only what it holds of this provider and of its tree, so that a late release cannot take the claim made
            elsewhere since. Spec: BLD-70.

    Returns:
        Whether anything was held.
    """
    lock_existing_consumers(connection, consumer)
    held = held_by(connection, consumer)
    if provider is not None:
        wanted = in_tree_of(connection, provider)
        held = {provider_id: amounts for provider_id, amounts in held.items() if provider_id in wanted}
    if not held:
        return False
    lock_providers(connection, held.keys())
    _give_back(connection, consumer, held)
    raise_consumer_generation(connection, consumer)
    drop_consumer_without_allocations(connection, consumer)
    return True


def release_all_of(connection: sa.Connection, instance: str) -> None:
    """Give back what a server holds, by itself and by its migrations."""
    query = sa.select(consumers.c.uuid).where(consumers.c.instance == instance).order_by(consumers.c.uuid)
    for consumer in connection.execute(query).scalars().all():
        release(connection, consumer)


def move(connection: sa.Connection, source: str, target: str, *, target_type: str = INSTANCE) -> bool:
    """Hand all that one consumer holds to another, replacing what that one holds.

    A cold move calls this with the instance as source and the migration (type `MIGRATION`) as target, claims
    the destination for the instance, and to revert calls it the other way round.
    Spec: API-752, MIG-10, RSZ-28.

    Returns:
        False if the source holds nothing (the move was done before, or never begun); then nothing changes.
        Spec: MIG-16.
    """
    found = lock_existing_consumers(connection, source, target)
    held = held_by(connection, source)
    if source == target or not held:
        return False
    replaced = held_by(connection, target)
    lock_providers(connection, held.keys() | replaced.keys())
    if replaced:
        _give_back(connection, target, replaced)
    origin = found[source]
    lock_consumer(connection, target, origin.project_id, origin.user_id, target_type, origin.instance)
    connection.execute(allocations.update().where(allocations.c.consumer == source).values(consumer=target))
    hand_over_layouts(connection, source, target)
    hand_over_groups(connection, source, target)
    raise_consumer_generation(connection, target)
    drop_consumer_without_allocations(connection, source)
    touch(connection, list(held))
    return True


def holdings(connection: sa.Connection, consumer: str) -> list[Holding]:
    """What a consumer holds, one entry for each provider; empty for an unknown consumer."""
    found: dict[str, Holding] = {}
    for row in _HOLDINGS.all(connection, consumer=consumer):
        holding = found.setdefault(row.uuid, Holding(row.uuid, {}, row.host, row.node))
        holding.resources[row.resource_class] = row.used
    return list(found.values())


def _take(
    connection: sa.Connection, consumer: str, provider_id: int, resources: Mapping[str, int], shape: Shape | None
) -> Claim:
    """The provider is locked: what is read here stays true until the transaction ends."""
    offers = {
        row.resource_class: row for row in _OFFERS.all(connection, consumer=consumer, provider=provider_id)
    }
    held = {name: row.held for name, row in offers.items() if row.held}
    wanted = {name: amount for name, amount in resources.items() if amount > 0}
    placed = shape if shape is not None and shape.needs_place else None
    place = held_place(connection, consumer, provider_id, placed) if placed is not None else None
    if held == _taken(wanted, place) and (placed is None or place is not None):
        return Claim.HELD
    if _lacks(offers, wanted, held):
        return Claim.FULL
    if placed is not None and place is None:
        place = find_place(connection, consumer, provider_id, placed)
        if place is None:
            return Claim.UNFIT
        if _lacks(offers, _taken(wanted, place), held):
            return Claim.FULL
        take_place(connection, consumer, provider_id, place)
    wanted = _taken(wanted, place)
    change = {name: wanted.get(name, 0) - held.get(name, 0) for name in sorted(wanted.keys() | held.keys())}
    add_use(connection, provider_id, change)
    if held:
        _DEALLOCATE.run(connection, consumer=consumer, provider=provider_id)
    for name, amount in wanted.items():
        _ALLOCATE.run(connection, consumer=consumer, provider_id=provider_id, resource_class=name, used=amount)
    raise_consumer_generation(connection, consumer)
    touch(connection, [provider_id])
    return Claim.HELD


def _taken(resources: Mapping[str, int], place: Layout | None) -> dict[str, int]:
    return with_devices(resources, place.devices if place is not None else ())


def _lacks(offers: Mapping[str, Any], wanted: Mapping[str, int], held: Mapping[str, int]) -> bool:
    return any(
        name not in offers or not fits(offers[name], amount, held.get(name, 0)) for name, amount in wanted.items()
    )


def _take_of_tree(
    connection: sa.Connection, consumer: str, root_id: int, resources: Mapping[str, int], shape: Shape | None,
    groups: Sequence[ResourceGroup], isolate: bool,
) -> Claim:
    """The root is locked. Providers below it give what they are asked for, and what the root does not have."""
    tree = lock_tree(connection, consumer, root_id)
    wanted = {name: amount for name, amount in resources.items() if amount > 0}
    found = assign_in(connection, consumer, tree, wanted, groups, isolate=isolate)
    if found is None:
        return Claim.FULL
    root, *_ = tree.ids
    outcome = _take(connection, consumer, root_id, found.holds.get(root, {}), shape)
    if not outcome:
        return outcome
    changed = changes_below(tree, found)
    for provider_id, (held, share) in sorted(changed.items()):
        change = {name: share.get(name, 0) - held.get(name, 0) for name in sorted(share.keys() | held.keys())}
        add_use(connection, provider_id, change)
        _DEALLOCATE.run(connection, consumer=consumer, provider=provider_id)
        for name, amount in share.items():
            _ALLOCATE.run(connection, consumer=consumer, provider_id=provider_id, resource_class=name, used=amount)
    if changed:
        raise_consumer_generation(connection, consumer)
        touch(connection, sorted(changed))
    store_groups(connection, consumer, tree, groups, found)
    return Claim.HELD


def fits(offer: Any, amount: int, held: int) -> bool:
    """Whether an inventory row has room for an amount of which `held` is already counted. Spec: API-746."""
    allowed = offer.min_unit <= amount <= offer.max_unit and amount % offer.step_size == 0
    return allowed and (amount <= held or offer.used - held + amount <= offer.capacity)


def add_use(connection: sa.Connection, provider_id: int, change: Mapping[str, int]) -> None:
    """Add to the `used` counters of a locked provider. What would exceed the capacity is refused by the row.

    Raises:
        ConcurrentUpdate: a counter did not allow it, although the caller had looked.
    """
    change = {name: amount for name, amount in change.items() if amount}
    if not change:
        return
    amounts = {f"amount{position}": amount for position, amount in enumerate(change.values())}
    if _adding(tuple(change)).run(connection, provider=provider_id, **amounts) != len(change):
        raise ConcurrentUpdate("A host changed while it was being claimed.", hint="repeat the claim")


def _give_back(connection: sa.Connection, consumer: str, held: Mapping[int, Mapping[str, int]]) -> None:
    for provider_id in sorted(held):
        add_use(connection, provider_id, {name: -amount for name, amount in held[provider_id].items()})
    for provider_id in held:
        _DEALLOCATE.run(connection, consumer=consumer, provider=provider_id)
        forget_layout(connection, consumer, provider_id)
        forget_groups(connection, consumer, provider_id)
    touch(connection, list(held))


def held_by(connection: sa.Connection, consumer: str) -> dict[int, dict[str, int]]:
    """What a consumer holds, by provider id and resource class."""
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for row in _HELD.all(connection, consumer=consumer):
        found[row.provider_id][row.resource_class] = row.used
    return found


def lock_providers(connection: sa.Connection, provider_ids: Set[int]) -> None:
    """Lock the rows of several providers in the order that everyone takes."""
    for provider_id in sorted(provider_ids):
        _LOCK_PROVIDER_ID.first(connection, id=provider_id)


def lock_existing_consumers(connection: sa.Connection, *uuids: str) -> dict[str, Any]:
    """Lock the consumers that exist and return their rows by uuid."""
    rows = [_LOCK_CONSUMER.first(connection, consumer=uuid) for uuid in sorted(uuids)]
    return {row.uuid: row for row in rows if row is not None}


def lock_consumer(
    connection: sa.Connection, uuid: str, project_id: str, user_id: str, type_: str, instance: str
) -> None:
    """Make the consumer if need be; either way its row is locked and no one else claims for it meanwhile."""
    _upsert_consumer(connection.dialect.name).run(
        connection, uuid=uuid, project_id=project_id, user_id=user_id, type=type_, generation=0, instance=instance
    )


def raise_consumer_generation(connection: sa.Connection, uuid: str) -> None:
    """What the consumer holds has changed. Spec: API-745."""
    _RAISE_GENERATION.run(connection, consumer=uuid)


def drop_consumer_without_allocations(connection: sa.Connection, uuid: str) -> None:
    """Forget a consumer that holds nothing. Spec: API-751."""
    _DROP_EMPTY.run(connection, consumer=uuid)


# Statements of the hot path, built once.

_LOCK_PROVIDER = Prepared(
    sa.select(providers.c.id).where(providers.c.uuid == sa.bindparam("uuid")).with_for_update()
)
_LOCK_PROVIDER_ID = Prepared(
    sa.select(providers.c.id).where(providers.c.id == sa.bindparam("id")).with_for_update()
)
_LOCK_CONSUMER = Prepared(sa.select(consumers).where(consumers.c.uuid == sa.bindparam("consumer")).with_for_update())
_HELD = Prepared(sa.select(allocations).where(allocations.c.consumer == sa.bindparam("consumer")))
_HOLDINGS = Prepared(
    sa.select(providers.c.uuid, hosts.c.host, hosts.c.node, allocations.c.resource_class, allocations.c.used)
    .join_from(allocations, providers, providers.c.id == allocations.c.provider_id)
    .outerjoin(hosts, hosts.c.provider_id == providers.c.id)
    .where(allocations.c.consumer == sa.bindparam("consumer"))
    .order_by(providers.c.uuid, allocations.c.resource_class)
)
_ALLOCATE = Prepared(allocations.insert().values({c.name: sa.bindparam(c.name) for c in allocations.columns}))
_DEALLOCATE = Prepared(
    allocations.delete().where(
        allocations.c.consumer == sa.bindparam("consumer"), allocations.c.provider_id == sa.bindparam("provider")
    )
)

_OFFERS = Prepared(
    sa.select(inventories, allocations.c.used.label("held"))
    .outerjoin(
        allocations,
        sa.and_(
            allocations.c.consumer == sa.bindparam("consumer"),
            allocations.c.provider_id == inventories.c.provider_id,
            allocations.c.resource_class == inventories.c.resource_class,
        ),
    )
    .where(inventories.c.provider_id == sa.bindparam("provider"))
)

_RAISE_GENERATION = Prepared(
    consumers.update().where(consumers.c.uuid == sa.bindparam("consumer")).values(generation=consumers.c.generation + 1)
)

_DROP_EMPTY = Prepared(consumers.delete().where(
    consumers.c.uuid == sa.bindparam("consumer"),
    ~sa.exists().where(allocations.c.consumer == consumers.c.uuid),
))


@cache
def _adding(names: tuple[str, ...]) -> Prepared:
    """Adds `amount0`, `amount1`, ... to the counters of these classes, where there is room for it."""
    amounts = {name: sa.bindparam(f"amount{n}", type_=sa.BigInteger) for n, name in enumerate(names)}
    amount = sa.case(amounts, value=inventories.c.resource_class, else_=0)
    return Prepared(
        inventories.update()
        .where(
            inventories.c.provider_id == sa.bindparam("provider"),
            sa.or_(*(inventories.c.resource_class == name for name in names)),
            sa.or_(amount < 0, inventories.c.used + amount <= inventories.c.capacity),
        )
        .values(used=inventories.c.used + amount)
    )


@cache
def _upsert_consumer(dialect: str) -> Prepared:
    statement = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(consumers)
    statement = statement.values({c.name: sa.bindparam(c.name) for c in consumers.columns})
    return Prepared(statement.on_conflict_do_update(
        index_elements=[consumers.c.uuid], set_={"instance": statement.excluded.instance}
    ))
