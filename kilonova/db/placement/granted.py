"""Which providers a server has its devices of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sqlalchemy as sa

from kilonova.db.placement.tables import allocations, provider_traits, providers
from kilonova.domain.errors import KilonovaError
from kilonova.shapes.accelerators import DeviceGroup

Held = dict[str, dict[str, int]]


def providers_of_groups(connection: sa.Connection, server: str, groups: Mapping[int, DeviceGroup]) -> dict[int, str]:
    """The provider of each group, read from what the server holds: it has all that the group asks for.

    Raises:
        KilonovaError: the server does not hold what the groups ask for.
    """
    held: Held = {}
    query = (
        sa.select(providers.c.uuid, allocations.c.resource_class, allocations.c.used)
        .join(providers, providers.c.id == allocations.c.provider_id)
        .where(allocations.c.consumer == server).order_by(providers.c.uuid)
    )
    for row in connection.execute(query):
        held.setdefault(row.uuid, {})[row.resource_class] = row.used
    traits: dict[str, set[str]] = {uuid: set() for uuid in held}
    of_held = (
        sa.select(providers.c.uuid, provider_traits.c.trait)
        .join(providers, providers.c.id == provider_traits.c.provider_id).where(providers.c.uuid.in_(held))
    )
    for uuid, trait in connection.execute(of_held):
        traits[uuid].add(trait)
    found = next(_share_out(held, traits, sorted(groups.items())), None)
    if found is None:
        raise KilonovaError(f"Server {server} does not hold the devices that it asks for.")
    return found


def _share_out(
    left: Held, traits: Mapping[str, set[str]], groups: list[tuple[int, DeviceGroup]]
) -> Iterator[dict[int, str]]:
    """All ways to give each group a provider that has enough left for it."""
    if not groups:
        yield {}
        return
    (number, group), *rest = groups
    for uuid, amounts in left.items():
        enough = all(amounts.get(name, 0) >= amount for name, amount in group.resources.items())
        if not enough or not traits[uuid].issuperset(group.required):
            continue
        after = {name: amount - group.resources.get(name, 0) for name, amount in amounts.items()}
        for others in _share_out({**left, uuid: after}, traits, rest):
            yield {number: uuid, **others}
