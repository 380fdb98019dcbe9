"""Reading placement: providers by what they offer, usages, and who holds what."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.providers import PROVIDERS, Inventory, Provider
from kilonova.db.placement.tables import (
    allocations,
    consumers,
    inventories,
    provider_aggregates,
    provider_traits,
    providers,
)


class ProviderQuery(msgspec.Struct, kw_only=True):
    """What providers are looked for; all conditions hold together.

    Args:
        member_of: of each set, one aggregate at least. not_member_of: none of these.
        required: of each set, one trait at least. forbidden: none of these.
        resources: with that much left, in portions that they give.
        in_tree: uuid of any provider of the tree.
    """

    name: str | None = None
    uuid: str | None = None
    member_of: list[frozenset[str]] = []
    not_member_of: frozenset[str] = frozenset()
    resources: dict[str, int] = {}
    in_tree: str | None = None
    required: list[frozenset[str]] = []
    forbidden: frozenset[str] = frozenset()


class Consumer(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds allocations."""

    uuid: str
    project_id: str
    user_id: str
    type: str
    generation: int


def find_providers(connection: sa.Connection, query: ProviderQuery) -> list[Provider]:
    """Providers that meet the query, by id."""
    statement = PROVIDERS.order_by(providers.c.id)
    if query.name is not None:
        statement = statement.where(providers.c.name == query.name)
    if query.uuid is not None:
        statement = statement.where(providers.c.uuid == query.uuid)
    if query.in_tree is not None:
        root = sa.select(providers.c.root_id).where(providers.c.uuid == query.in_tree)
        statement = statement.where(providers.c.root_id.in_(root))
    for column, any_of, none_of in (
        (provider_aggregates.c.aggregate, query.member_of, query.not_member_of),
        (provider_traits.c.trait, query.required, query.forbidden),
    ):
        for names in any_of:
            statement = statement.where(_has(column, names))
        if none_of:
            statement = statement.where(~_has(column, none_of))
    for name, amount in query.resources.items():
        statement = statement.where(has_room(providers.c.id, name, amount))
    return [Provider(**row._mapping) for row in connection.execute(statement)]


def _has(column: sa.Column[str], names: frozenset[str]) -> sa.Exists:
    return sa.exists().where(column.table.c.provider_id == providers.c.id, column.in_(sorted(names)))


def has_room(provider: sa.ColumnElement[int], name: str, amount: int) -> sa.Exists:
    """Whether a provider has that much left of a class. Spec: API-746, API-750."""
    return sa.exists().where(
        inventories.c.provider_id == provider,
        inventories.c.resource_class == name,
        inventories.c.used + amount <= inventories.c.capacity,
        inventories.c.min_unit <= amount,
        inventories.c.max_unit >= amount,
        amount % inventories.c.step_size == 0,
    )


def inventories_of(connection: sa.Connection, provider_id: int) -> dict[str, Inventory]:
    """What a provider offers, by resource class."""
    rows = connection.execute(
        sa.select(inventories).where(inventories.c.provider_id == provider_id).order_by(inventories.c.resource_class)
    )
    return {
        row.resource_class: Inventory(**{name: getattr(row, name) for name in Inventory.__struct_fields__})
        for row in rows
    }


def usages_of(connection: sa.Connection, provider_id: int) -> dict[str, int]:
    """What is used of each resource class that a provider offers."""
    rows = connection.execute(
        sa.select(inventories.c.resource_class, inventories.c.used)
        .where(inventories.c.provider_id == provider_id)
        .order_by(inventories.c.resource_class)
    )
    return {row.resource_class: row.used for row in rows}


def traits_of_provider(connection: sa.Connection, provider_id: int) -> list[str]:
    """Names in order."""
    return _names(connection, provider_traits.c.trait, provider_id)


def aggregates_of_provider(connection: sa.Connection, provider_id: int) -> list[str]:
    """Uuids in order."""
    return _names(connection, provider_aggregates.c.aggregate, provider_id)


def _names(connection: sa.Connection, column: sa.Column[str], provider_id: int) -> list[str]:
    owner = column.table.c.provider_id
    return list(connection.execute(sa.select(column).where(owner == provider_id).order_by(column)).scalars())


def allocations_on(connection: sa.Connection, provider_id: int) -> dict[str, tuple[int, dict[str, int]]]:
    """For each consumer with something of this provider: its generation and the amounts."""
    rows = connection.execute(
        sa.select(consumers.c.uuid, consumers.c.generation, allocations.c.resource_class, allocations.c.used)
        .join(allocations, allocations.c.consumer == consumers.c.uuid)
        .where(allocations.c.provider_id == provider_id)
        .order_by(consumers.c.uuid, allocations.c.resource_class)
    )
    found: dict[str, tuple[int, dict[str, int]]] = {}
    for row in rows:
        found.setdefault(row.uuid, (row.generation, {}))[1][row.resource_class] = row.used
    return found


def consumer_with_holds(
    connection: sa.Connection, uuid: str
) -> tuple[Consumer | None, dict[str, tuple[int, dict[str, int]]]]:
    """A consumer, and for each provider it holds something of: the provider's generation and the amounts."""
    row = connection.execute(sa.select(consumers).where(consumers.c.uuid == uuid)).one_or_none()
    if row is None:
        return None, {}
    consumer = Consumer(**{name: getattr(row, name) for name in Consumer.__struct_fields__})
    held: dict[str, tuple[int, dict[str, int]]] = {}
    rows = connection.execute(
        sa.select(providers.c.uuid, providers.c.generation, allocations.c.resource_class, allocations.c.used)
        .join(allocations, allocations.c.provider_id == providers.c.id)
        .where(allocations.c.consumer == uuid)
        .order_by(providers.c.uuid, allocations.c.resource_class)
    )
    for row in rows:
        held.setdefault(row.uuid, (row.generation, {}))[1][row.resource_class] = row.used
    return consumer, held


def usages_by_type(
    connection: sa.Connection, project_id: str, user_id: str | None, types: Sequence[str] | None
) -> dict[str, tuple[int, dict[str, int]]]:
    """For each consumer type of a project: how many consumers, and what they use of each class."""
    mine = [consumers.c.project_id == project_id]
    if user_id is not None:
        mine.append(consumers.c.user_id == user_id)
    if types is not None:
        mine.append(consumers.c.type.in_(types))
    counts = connection.execute(
        sa.select(consumers.c.type, sa.func.count()).where(*mine).group_by(consumers.c.type).order_by(consumers.c.type)
    )
    found: dict[str, tuple[int, dict[str, int]]] = {name: (count, {}) for name, count in counts}
    amounts = connection.execute(
        sa.select(consumers.c.type, allocations.c.resource_class, sa.func.sum(allocations.c.used))
        .join(allocations, allocations.c.consumer == consumers.c.uuid)
        .where(*mine)
        .group_by(consumers.c.type, allocations.c.resource_class)
        .order_by(consumers.c.type, allocations.c.resource_class)
    )
    for type_, name, amount in amounts:
        found[type_][1][name] = int(amount)
    return found
