"""What is on the hosts, in few columns: servers of a cell, and what placement says is used of a node."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.instances import instances
from kilonova.db.placement.tables import hosts, inventories, providers

_CHUNK = 500


class HostServer(msgspec.Struct, frozen=True):
    """A server on a host, as far as the host is concerned. busy: something is being done to it."""

    uuid: str
    name: str
    host: str
    node: str | None
    busy: bool


class Portion(msgspec.Struct, frozen=True):
    """How much of a resource class is taken, and kept back for the host."""

    used: int
    reserved: int


def servers_on(conn: sa.Connection, names: Collection[str]) -> list[HostServer]:
    """The servers on these hosts that are not deleted, oldest first. In the cell database."""
    table = instances.c
    found: list[HostServer] = []
    for chunk in _chunks(sorted(names)):
        query = sa.select(table.uuid, table.display_name, table.host, table.node, table.task_state.is_not(None))
        query = query.where(table.host.in_(chunk), table.deleted_at.is_(None))
        rows = conn.execute(query.order_by(table.created_at, table.uuid))
        found += [HostServer(uuid, name, host, node, bool(busy)) for uuid, name, host, node, busy in rows]
    return found


def portions(conn: sa.Connection, nodes: Collection[str]) -> dict[str, dict[str, Portion]]:
    """Of each node (uuid of its provider), by resource class. In the API database."""
    found: dict[str, dict[str, Portion]] = {}
    table = inventories.c
    for chunk in _chunks(sorted(nodes)):
        query = (
            sa.select(providers.c.uuid, table.resource_class, table.used, table.reserved)
            .join(providers, providers.c.id == table.provider_id)
            .where(providers.c.uuid.in_(chunk))
        )
        for uuid, name, used, reserved in conn.execute(query):
            found.setdefault(uuid, {})[name] = Portion(used, reserved)
    return found


def hosts_of_cell(conn: sa.Connection, cell: str) -> list[str]:
    """The hosts of a cell (its uuid), as the API database knows them without asking the cell."""
    query = sa.select(hosts.c.host).where(hosts.c.cell == cell).distinct().order_by(hosts.c.host)
    return list(conn.execute(query).scalars())


def _chunks(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
