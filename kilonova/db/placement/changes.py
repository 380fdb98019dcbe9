"""What has changed since a reader last looked: how the scheduler's view of the hosts is kept up to date."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.tables import (
    allocations,
    changes_before,
    consumers,
    deleted_providers,
    hosts,
    inventories,
    provider_aggregates,
    provider_traits,
    providers,
)


class HostRow(msgspec.Struct, kw_only=True):
    """One compute host (a node of it) as it is now.

    Args:
        id: row number of its provider. offers: by resource class, the numbers (capacity, used, min_unit,
            max_unit, step_size). supported: (architecture, hypervisor type, vm mode) each.
        instances: how many consumers hold something here.
        seen_at: last sign of life, seconds since the epoch.
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
    instances: int = 0
    offers: dict[str, tuple[int, int, int, int, int]] = {}
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()


class Changes(msgspec.Struct, kw_only=True):
    """What a reader has to apply.

    Args:
        before: pass it as `since` next time. hosts: new or changed ones, whole. gone: ids to forget.
        seen: (id, time) of the hosts that gave a sign of life after `seen_since`.
    """

    before: int
    hosts: list[HostRow]
    gone: list[int]
    seen: list[tuple[int, float]]


def read_changes(
    connection: sa.Connection, since: int, seen_since: float, also: Collection[int] = ()
) -> Changes:
    """Read the hosts that changed at or after the change number `since` (0: all), and those in `also`."""
    before = changes_before(connection)
    wanted = sa.and_(hosts.c.provider_id == providers.c.id, providers.c.changed >= since)
    if also:
        wanted = sa.and_(
            hosts.c.provider_id == providers.c.id,
            sa.or_(providers.c.changed >= since, providers.c.id.in_(sorted(also))),
        )
    rows = {
        row.id: _host_row(row)
        for row in connection.execute(
            sa.select(hosts, providers.c.id, providers.c.uuid).join(providers, wanted)
        )
    }
    if rows:
        for some in _portions(list(rows), everything=since == 0):
            _read_details(connection, rows, some)
    gone = (
        connection.execute(sa.select(deleted_providers.c.id).where(deleted_providers.c.changed >= since))
        .scalars()
        .all()
        if since
        else []
    )
    seen = connection.execute(
        sa.select(hosts.c.provider_id, hosts.c.seen_at).where(hosts.c.seen_at > seen_since)
    ).all()
    return Changes(
        before=before,
        hosts=list(rows.values()),
        gone=list(gone),
        seen=[(row.provider_id, row.seen_at) for row in seen],
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


PORTION = 500


def _portions(ids: list[int], *, everything: bool) -> list[list[int] | None]:
    """Ids in lists short enough for one statement; [None] for no restriction at all."""
    if everything:
        return [None]
    return [ids[start : start + PORTION] for start in range(0, len(ids), PORTION)]


def _host_row(row: sa.Row[Any]) -> HostRow:
    fields = row._mapping
    return HostRow(
        id=fields["id"],
        provider=fields["uuid"],
        host=fields["host"],
        node=fields["node"],
        cell=fields["cell"],
        hypervisor_type=fields["hypervisor_type"],
        hypervisor_version=fields["hypervisor_version"],
        host_ip=fields["host_ip"],
        cpu_info=fields["cpu_info"],
        supported=tuple(fields["supported"]),
        io_ops=fields["num_io_ops"],
        failed_builds=fields["failed_builds"],
        seen_at=fields["seen_at"],
        offers={},
    )


def _read_details(connection: sa.Connection, rows: dict[int, HostRow], ids: list[int] | None) -> None:
    """Fill in what has rows of its own. Names come as one string: those of most hosts are equal."""

    def restrict(statement: sa.Select[Any], column: sa.Column[int]) -> sa.Select[Any]:
        return statement if ids is None else statement.where(column.in_(ids))

    for row in connection.execute(restrict(sa.select(inventories), inventories.c.provider_id)):
        if row.provider_id in rows:
            rows[row.provider_id].offers[row.resource_class] = (
                row.capacity,
                row.used,
                row.min_unit,
                row.max_unit,
                row.step_size,
            )
    for attribute, column in (
        ("traits", provider_traits.c.trait),
        ("aggregates", provider_aggregates.c.aggregate),
    ):
        owner = column.table.c.provider_id
        parsed: dict[str, frozenset[str]] = {}
        for provider_id, names in connection.execute(
            restrict(sa.select(owner, sa.func.aggregate_strings(column, ",")).group_by(owner), owner)
        ):
            if provider_id in rows:
                if names not in parsed:
                    parsed[names] = frozenset(names.split(","))
                setattr(rows[provider_id], attribute, parsed[names])
    owner = allocations.c.provider_id
    counts = sa.select(owner, sa.func.count(allocations.c.consumer.distinct())).group_by(owner)
    for provider_id, count in connection.execute(restrict(counts, owner)):
        if provider_id in rows:
            rows[provider_id].instances = count
