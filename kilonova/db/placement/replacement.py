"""Replacing the allocations of consumers as a whole, several at once: what the placement API's writes do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.claims import (
    add_use,
    drop_consumer_without_allocations,
    held_by,
    lock_consumer,
    lock_existing_consumers,
    lock_providers,
    raise_consumer_generation,
)
from kilonova.db.placement.errors import ConcurrentUpdate, PlacementConflict
from kilonova.db.placement.layouts import forget_layouts_elsewhere
from kilonova.db.placement.names import check_classes
from kilonova.db.placement.tables import allocations, inventories, providers, touch
from kilonova.db.placement.trees import forget_groups_elsewhere
from kilonova.domain.errors import InvalidInput


class ConsumerWrite(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer is to hold from now on.

    Args:
        holds: amounts by provider uuid and resource class; empty gives everything back.
        generation: what the caller read, None for a consumer that must not exist, UNSET for no check.
    """

    uuid: str
    project_id: str
    user_id: str
    type: str
    holds: dict[str, dict[str, int]]
    generation: int | msgspec.UnsetType | None = msgspec.UNSET


def replace_allocations(connection: sa.Connection, writes: Sequence[ConsumerWrite]) -> None:
    """Make each consumer hold exactly what is written. All of it happens or nothing.

    Raises:
        ConcurrentUpdate: a consumer's generation is another. InvalidInput: no such provider or class.
        PlacementConflict: there is not enough, or not in such portions.

    Spec: API-736, API-738, API-745 to API-747.
    """
    present = lock_existing_consumers(connection, *(write.uuid for write in writes))
    for write in writes:
        _check_generation(write, present.get(write.uuid))
    check_classes(connection, {name for write in writes for amounts in write.holds.values() for name in amounts})
    ids = _provider_ids(connection, {uuid for write in writes for uuid in write.holds})
    before = {write.uuid: held_by(connection, write.uuid) for write in writes}
    after = {write.uuid: {ids[uuid]: amounts for uuid, amounts in write.holds.items()} for write in writes}
    touched = {provider for held in (*before.values(), *after.values()) for provider in held}
    lock_providers(connection, touched)
    change: dict[int, Counter[str]] = {provider: Counter() for provider in touched}
    for held, sign in [*((held, -1) for held in before.values()), *((held, 1) for held in after.values())]:
        for provider, amounts in held.items():
            for name, amount in amounts.items():
                change[provider][name] += sign * amount
    _check_room(connection, change, after)
    uuids = [write.uuid for write in writes]
    connection.execute(allocations.delete().where(allocations.c.consumer.in_(uuids)))
    for provider in sorted(touched):
        add_use(connection, provider, change[provider])
    for write in writes:
        _store(connection, write, after[write.uuid])
    touch(connection, touched)


def _store(connection: sa.Connection, write: ConsumerWrite, holds: dict[int, dict[str, int]]) -> None:
    if holds:
        lock_consumer(connection, write.uuid, write.project_id, write.user_id, write.type, write.uuid)
        connection.execute(
            allocations.insert(),
            [
                {"consumer": write.uuid, "provider_id": provider, "resource_class": name, "used": amount}
                for provider, amounts in holds.items()
                for name, amount in amounts.items()
            ],
        )
        raise_consumer_generation(connection, write.uuid)
    forget_layouts_elsewhere(connection, write.uuid, list(holds))
    forget_groups_elsewhere(connection, write.uuid, list(holds))
    drop_consumer_without_allocations(connection, write.uuid)


def _check_generation(write: ConsumerWrite, row: Any) -> None:
    stored = None if row is None else row.generation
    if write.generation is not msgspec.UNSET and write.generation != stored:
        raise ConcurrentUpdate(
            f"consumer generation conflict - expected {stored} but got {write.generation} for {write.uuid}",
            hint="read the allocations again and repeat the change",
        )


def _provider_ids(connection: sa.Connection, uuids: set[str]) -> dict[str, int]:
    found = connection.execute(sa.select(providers.c.uuid, providers.c.id).where(providers.c.uuid.in_(uuids)))
    ids = {row.uuid: row.id for row in found}
    if uuids - ids.keys():
        missing = ", ".join(sorted(uuids - ids.keys()))
        raise InvalidInput(f"Allocation for resource provider '{missing}' that does not exist.")
    return ids


def _check_room(
    connection: sa.Connection, change: dict[int, Counter[str]], after: dict[str, dict[int, dict[str, int]]]
) -> None:
    rows = connection.execute(sa.select(inventories).where(inventories.c.provider_id.in_(sorted(change))))
    offers = {(row.provider_id, row.resource_class): row for row in rows}
    for holds in after.values():
        for provider, amounts in holds.items():
            for name, amount in amounts.items():
                offer = offers.get((provider, name))
                if offer is None:
                    raise PlacementConflict(f"There is no inventory of {name} on one of the resource providers.")
                if not offer.min_unit <= amount <= offer.max_unit or amount % offer.step_size:
                    raise PlacementConflict(
                        f"{amount} of {name} violates min_unit, max_unit or step_size of the resource provider."
                    )
    for provider, amounts in change.items():
        for name, amount in amounts.items():
            offer = offers[provider, name]
            if amount > 0 and offer.used + amount > offer.capacity:
                raise PlacementConflict(f"Unable to allocate {name}: the requested amount exceeds the capacity.")
