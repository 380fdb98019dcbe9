"""Gathering what views of servers show beside the records. One look-up each, however many servers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.server_status import WITH_FAULT, status_of
from kilonova.api.compute.server_view import HOST_STATUS, HOST_STATUS_UNKNOWN, Extras, ServerView
from kilonova.cells.registry import Cell
from kilonova.db import block_devices, instance_list, instances, server_groups
from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.instance import Fault, Instance

Placed = tuple[Instance, Cell | None]
"""A server and its cell, None while it has none."""


async def extras_for(
    call: Call, servers: Sequence[Placed], groups: tuple[str, ...] | None = None, *, alone: bool = False
) -> Extras:
    """What the views of these servers need at this microversion. alone: it is one that is shown by itself."""
    faults: dict[str, Fault] = {}
    volumes: dict[str, list[tuple[str, bool]]] = {}
    for cell, placed in _by_cell(servers):
        stored = await cell.database.read(partial(_beside, placed))
        faults |= stored[0]
        volumes |= stored[1]
    asked = {}
    if call.version >= 96 and servers:
        chosen = [instance.uuid for instance, _ in servers]
        asked = await call.cloud.cells.api.read(lambda conn: instance_list.asked_of(conn, chosen))
    statuses: dict[str, str] = {}
    if call.version >= 16 and (call.allows(HOST_STATUS) or call.allows(HOST_STATUS_UNKNOWN)):
        statuses = await call.cloud.hosts.statuses({i.host for i, _ in servers if i.host})
    member_of: tuple[str, ...] = ()
    if alone and call.version >= 71:
        uuid = servers[0][0].uuid
        group = await call.cloud.cells.api.read(lambda conn: server_groups.of_server(conn, uuid))
        member_of = (group,) if group is not None else ()
    return Extras(faults, asked, statuses, groups, member_of, volumes)


def _by_cell(servers: Sequence[Placed]) -> list[tuple[Cell, list[Instance]]]:
    found: dict[str, tuple[Cell, list[Instance]]] = {}
    for instance, cell in servers:
        if cell is not None:
            found.setdefault(cell.name, (cell, []))[1].append(instance)
    return list(found.values())


def _beside(
    servers: Sequence[Instance], conn: sa.Connection
) -> tuple[dict[str, Fault], dict[str, list[tuple[str, bool]]]]:
    """What a cell has beside the records of its servers: faults of those that show them, and volumes."""
    failed = [
        one.uuid for one in servers
        if status_of(one.vm_state, one.task_state, one.deleted_at is not None) in WITH_FAULT
    ]
    faults = instances.latest_faults(conn, failed) if failed else {}
    return faults, block_devices.shown_of(conn, [one.uuid for one in servers])


async def show_full(call: Call, instance: Instance, cell: Cell | None) -> dict[str, object]:
    """One server with every field the caller may see."""
    return (await view_of(call, instance, cell)).full(instance, groups=True)


async def view_of(call: Call, instance: Instance, cell: Cell | None) -> ServerView:
    """What shows one server."""
    groups: tuple[str, ...] | None = None
    if instance.network_info:
        ports = tuple(vif.id for vif in instance.network_info)
        try:
            groups = await call.cloud.networks.security_groups_of(ports)
        except ServiceUnavailable:
            groups = None  # the record still names them; a server is shown also when networking is down
    return ServerView(call, await extras_for(call, [(instance, cell)], groups, alone=True))
