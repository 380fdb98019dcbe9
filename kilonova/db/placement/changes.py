"""What has changed since a reader last looked: how the scheduler's view of the hosts is kept up to date."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.tables import (
    allocations,
    changes_before,
    consumers,
    deleted_providers,
    highest,
    hosts,
    inventories,
    layouts,
    provider_aggregates,
    provider_traits,
    providers,
)
from kilonova.db.prepared import Prepared
from kilonova.shapes.trees import Branch


class HostRow(msgspec.Struct, kw_only=True):
    """One compute host (a node of it) as it is now.

    Args:
        id: row number of its provider. offers: by resource class, the numbers (capacity, used, min_unit,
            max_unit, step_size). supported: (architecture, hypervisor type, vm mode) each.
        instances: how many consumers hold something here.
        seen_at: last sign of life, seconds since the epoch.
        topology: JSON of a `HostTopology`, "" for none. layouts: a line of JSON for each guest that has a place of its
            own (`layouts.py` reads both). below: the providers below the host's own.
    """

    id: int
    provider: str
    host: str
    node: str
    cell: str
    hypervisor_type: str
    hypervisor_version: int
    host_ip: str
    cpu_info: str
    supported: tuple[tuple[str, str, str], ...]
    io_ops: int
    failed_builds: int
    seen_at: float
    topology: str = ""
    layouts: str | None = None
    below: tuple[Branch, ...] = ()
    instances: int = 0
    offers: dict[str, tuple[int, int, int, int, int]] = {}
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()


class Changes(msgspec.Struct, kw_only=True):
    """What a reader has to apply.

    Args:
        before: pass it as `since` next time. hosts: new or changed ones, whole. gone: ids to forget.
        seen: (id, time) of the hosts that gave a sign of life.
    """

    before: int
    hosts: list[HostRow]
    gone: list[int]
    seen: list[tuple[int, float]]


def read_changes(connection: sa.Connection, since: int) -> Changes:
    """Read the hosts that changed at or after the change number `since` (0: all)."""
    before, changed, deleted, seen = _newest(connection.dialect.name).first(connection)
    return Changes(
        before=before,
        hosts=_read_hosts(connection, since) if changed >= since else [],
        gone=_GONE.scalars(connection, since=since) if deleted >= since > 0 else [],
        seen=[(row.provider_id, row.seen_at) for row in _SEEN.all(connection, since=since)] if seen >= since else [],
    )


def locate(connection: sa.Connection, instances: Sequence[str]) -> list[tuple[str, str]]:
    """(host, instance) of everything these instances hold, what their migrations hold included."""
    rows = connection.execute(
        sa.select(hosts.c.host, consumers.c.instance)
        .distinct()
        .join_from(consumers, allocations, allocations.c.consumer == consumers.c.uuid)
        .join(hosts, hosts.c.provider_id == allocations.c.provider_id)
        .where(consumers.c.instance.in_(instances))
    )
    return [(row.host, row.instance) for row in rows]


@cache
def _newest(dialect: str) -> Prepared:
    """One statement tells whether anything is new, so that a quiet moment costs no more."""
    return Prepared(sa.select(
        changes_before(dialect),
        highest(providers.c.changed),
        highest(deleted_providers.c.changed),
        highest(hosts.c.seen_changed),
    ))


_SINCE = sa.bindparam("since", type_=sa.BigInteger)
_GONE = Prepared(sa.select(deleted_providers.c.id).where(deleted_providers.c.changed >= _SINCE))
_SEEN = Prepared(sa.select(hosts.c.provider_id, hosts.c.seen_at).where(hosts.c.seen_changed >= _SINCE))


def _names(column: sa.Column[str]) -> sa.ScalarSelect[str]:
    """The names that a host has in such a column, as one string: those of most hosts are equal."""
    owner = column.table.c.provider_id
    comma: Any = sa.literal_column("','")
    return sa.select(sa.func.aggregate_strings(column, comma)).where(owner == providers.c.id).scalar_subquery()


_OF_TREE = providers.alias("of_tree")
_CHANGED = sa.select(_OF_TREE.c.root_id).where(_OF_TREE.c.changed >= _SINCE)
"""The roots of the trees of which something has changed."""
_LINE_END: Any = sa.literal_column("'\n'")
_HOSTS = Prepared(
    sa.select(
        hosts,
        providers.c.id,
        providers.c.uuid,
        _names(provider_traits.c.trait).label("traits"),
        _names(provider_aggregates.c.aggregate).label("aggregates"),
        sa.select(sa.func.count(allocations.c.consumer.distinct()))
        .where(allocations.c.provider_id == providers.c.id)
        .scalar_subquery()
        .label("instances"),
        sa.select(sa.func.aggregate_strings(layouts.c.layout, _LINE_END))
        .where(layouts.c.provider_id == providers.c.id)
        .scalar_subquery()
        .label("layouts"),
    )
    .join(providers, hosts.c.provider_id == providers.c.id)
    .where(providers.c.id.in_(_CHANGED))
)
_OFFERS = Prepared(
    sa.select(
        inventories.c.provider_id,
        inventories.c.resource_class,
        inventories.c.capacity,
        inventories.c.used,
        inventories.c.min_unit,
        inventories.c.max_unit,
        inventories.c.step_size,
    )
    .join(providers, inventories.c.provider_id == providers.c.id)
    .where(providers.c.root_id.in_(_CHANGED))
)
_BELOW = Prepared(
    sa.select(
        providers.c.id, providers.c.uuid, providers.c.root_id, _names(provider_traits.c.trait).label("traits")
    )
    .where(providers.c.root_id.in_(_CHANGED), providers.c.root_id != providers.c.id)
    .order_by(providers.c.id)
)


def _read_hosts(connection: sa.Connection, since: int) -> list[HostRow]:
    offers: dict[int, dict[str, tuple[int, int, int, int, int]]] = {}
    for provider_id, name, *numbers in _OFFERS.all(connection, since=since):
        offers.setdefault(provider_id, {})[name] = tuple(numbers)
    sets: dict[str | None, frozenset[str]] = {None: frozenset()}

    def parse(names: str | None) -> frozenset[str]:
        if names not in sets:
            sets[names] = frozenset(names.split(",")) if names else frozenset()
        return sets[names]

    below: dict[int, list[Branch]] = {}
    for row in _BELOW.all(connection, since=since):
        branch = Branch(provider=row.uuid, offers=offers.get(row.id, {}), traits=parse(row.traits))
        below.setdefault(row.root_id, []).append(branch)
    return [
        HostRow(
            id=row.id,
            provider=row.uuid,
            host=row.host,
            node=row.node,
            cell=row.cell,
            hypervisor_type=row.hypervisor_type,
            hypervisor_version=row.hypervisor_version,
            host_ip=row.host_ip,
            cpu_info=row.cpu_info,
            supported=tuple(row.supported),
            io_ops=row.num_io_ops,
            failed_builds=row.failed_builds,
            seen_at=row.seen_at,
            topology=row.topology,
            layouts=row.layouts,
            below=tuple(below.get(row.id, ())),
            instances=row.instances,
            offers=offers.get(row.id, {}),
            traits=parse(row.traits),
            aggregates=parse(row.aggregates),
        )
        for row in _HOSTS.all(connection, since=since)
    ]
