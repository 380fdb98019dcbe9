"""Lists of servers: those in cells and those still waiting for one, in pages. Spec: API-106, API-107."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_extras import Placed, extras_for
from kilonova.api.compute.server_filters import (
    ALLOW_ALL,
    EXISTS_SINCE,
    FILTERS,
    JOINS,
    SPECIAL,
    Selection,
    read_filters,
)
from kilonova.api.compute.server_lookup import locate_deleted
from kilonova.api.compute.server_view import VIEW_RULES, ServerView, seconds
from kilonova.api.paging import LIMIT, effective_limit, next_page
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Enum, Text
from kilonova.cells.registry import Cell
from kilonova.db import build_requests, instance_list
from kilonova.db.instance_list import SORT_KEYS, ListQuery, Mapped, Order, comes_after, in_order
from kilonova.domain.errors import Forbidden, InstanceNotFound, InvalidInput, KilonovaError, ServiceUnavailable
from kilonova.domain.instance import Instance

_encoder = msgspec.json.Encoder()

INDEX = Rule("servers:index", Audience.READER)
INDEX_ALL = Rule("servers:index:get_all_tenants", Audience.ADMIN)
DETAIL = Rule("servers:detail", Audience.READER)
DETAIL_ALL = Rule("servers:detail:get_all_tenants", Audience.ADMIN)

IGNORED_SORT_KEYS = (
    "architecture", "cell_name", "cleaned", "default_ephemeral_device", "default_swap_device", "deleted",
    "deleted_at", "disable_terminate", "ephemeral_gb", "ephemeral_key_uuid", "id", "key_data", "launched_on",
    "memory_mb", "os_type", "reservation_id", "root_gb", "shutdown_terminate", "user_data", "vcpus", "vm_mode",
    "locked",
)
"""Taken and without effect up to 2.74; `locked` becomes real in 2.73. Spec: API-630."""

ADMIN_SORT_KEYS = frozenset({"host", "node"})


def _refused(name: str) -> bool:
    """Spec: API-621."""
    return name.startswith("_") or name in JOINS



QUERY = Query(
    {
        **{name: Param(Text(), since=EXISTS_SINCE.get(name, 1)) for name in (*FILTERS, *SPECIAL)},
        "limit": LIMIT,
        "marker": Param(Text()),
        "sort_key": Param(Enum(*SORT_KEYS, *IGNORED_SORT_KEYS)),
        "sort_dir": Param(Enum("asc", "desc")),
    },
    strict_since=75,
    refused=_refused,
)


class Found(msgspec.Struct, frozen=True):
    """A page of servers in order, and those of cells that did not answer."""

    servers: list[Placed]
    unreachable: list[Mapped]


def read_order(call: Call) -> list[Order]:
    """The sort keys a caller asks for, with what makes them unique. Spec: API-051, API-628 to API-630."""
    keys, directions = list(call.query.all("sort_key")), list(call.query.all("sort_dir"))
    if len(directions) > max(len(keys), 1):
        raise InvalidInput("There are more sort directions than sort keys.")
    first = directions[0] if directions else "desc"
    order = []
    for index, key in enumerate(keys):
        if key in ADMIN_SORT_KEYS and not call.allows(ALLOW_ALL):
            raise Forbidden(f"Only administrators can sort servers by {key}")
        if key not in SORT_KEYS or (key == "locked" and call.version < 73):
            if call.version >= 75:
                raise InvalidInput(f"Invalid input for query parameters sort_key. Value: {key}. "
                                   f"{key!r} is not one of {sorted(SORT_KEYS)!r}")
            continue
        order.append(Order(key, (directions[index] if index < len(directions) else first) == "desc"))
    given = {entry.key for entry in order}
    return order + [Order(key, first == "desc") for key in ("created_at", "uuid") if key not in given]


async def find_page(call: Call, all_projects_rule: Rule) -> Found:
    """The servers a list request asks for. Raises the caller's errors, ServiceUnavailable."""
    selection = read_filters(call, all_projects_rule)
    order = read_order(call)
    limit = effective_limit(call)
    marker = await _marker(call, selection)
    query = ListQuery(filters=selection.filters, order=order, limit=limit, marker=marker)
    cells = call.cloud.cells
    # Waiting servers are read before the cells: one handed over in between is then seen twice, never not at all.
    waiting = await cells.api.read(lambda conn: build_requests.of_project(conn, selection.project_id))
    pages = await asyncio.gather(*(_cell_page(cell, query) for cell in cells.all))
    found: dict[str, Placed] = {}
    for request in waiting:
        instance = request.instance
        past_marker = marker is None or comes_after(order, instance, marker)
        if past_marker and all(f.matches(instance) for f in selection.filters):
            found[instance.uuid] = (instance, None)
    unordered = bool(found)
    unreachable: list[Mapped] = []
    for cell, page in zip(cells.all, pages, strict=True):
        if isinstance(page, KilonovaError):
            unreachable += await _reduced(call, cell, selection, page)
        else:
            found.update((instance.uuid, (instance, cell)) for instance in page)
            unordered = unordered or (bool(page) and len(found) > len(page))
    servers = list(found.values())
    if unordered:  # a single cell's page comes in order
        servers = [found[i.uuid] for i in in_order(order, (instance for instance, _ in servers))]
    return Found(servers[:limit], unreachable[: max(0, limit - len(servers))])


async def _cell_page(cell: Cell, query: ListQuery) -> list[Instance] | KilonovaError:
    try:
        return await cell.database.read(lambda conn: instance_list.page(conn, query))
    except ServiceUnavailable as error:
        return error


async def _reduced(call: Call, cell: Cell, selection: Selection, failure: KilonovaError) -> list[Mapped]:
    """What can be told of servers whose cell does not answer. Spec: API-054, API-451."""
    plain = not selection.narrowed and not {"limit", "marker", "sort_key", "sort_dir"} & call.query.values.keys()
    if call.version >= 69 and plain:
        most = call.cloud.options.max_limit
        return await call.cloud.cells.api.read(
            lambda conn: instance_list.mapped_to(conn, cell.name, selection.project_id, most))
    if not call.cloud.options.list_records_by_skipping_down_cells:
        raise KilonovaError("A part of the cloud does not answer; the list would not be complete.") from failure
    return []


async def _marker(call: Call, selection: Selection) -> Instance | None:
    """The record of the marker. Spec: API-048."""
    uuid = call.query.last("marker")
    if uuid is None:
        return None
    try:
        found = await locate_deleted(call.cloud.cells, uuid)
    except InstanceNotFound as error:
        raise InvalidInput(f"marker [{uuid}] not found") from error
    if selection.project_id is not None and found.instance.project_id != selection.project_id:
        raise InvalidInput(f"marker [{uuid}] not found")
    return found.instance


async def index(call: Call) -> Any:
    found = await find_page(call, INDEX_ALL)
    view = ServerView(call)
    entries = [_encode(view.brief(instance)) for instance, _ in found.servers]
    return _page(call, "/servers", found, entries, detail=False)


async def detail(call: Call) -> Any:
    found = await find_page(call, DETAIL_ALL)
    view = ServerView(call, await extras_for(call, found.servers))
    entries = [_encode(view.full(instance, groups=False)) for instance, _ in found.servers]
    return _page(call, "/servers/detail", found, entries, detail=True)


def _encode(entry: dict[str, Any]) -> msgspec.Raw:
    """Encoded at once: a thousand entries kept as dictionaries would wake the garbage collector again and again."""
    return msgspec.Raw(_encoder.encode(entry))


def _page(call: Call, path: str, found: Found, entries: list[msgspec.Raw], *, detail: bool) -> dict[str, Any]:
    entries += [_encode(_unreachable(call, mapped, detail=detail)) for mapped in found.unreachable]
    markers = [instance.uuid for instance, _ in found.servers] + [mapped.uuid for mapped in found.unreachable]
    links = next_page(call, path, markers, effective_limit(call), "servers_links")
    return {"servers": entries, **links}


def _unreachable(call: Call, mapped: Mapped, *, detail: bool) -> dict[str, Any]:
    """Spec: API-451."""
    entry: dict[str, Any] = {
        "id": mapped.uuid, "status": "UNKNOWN", "links": call.links.pair(f"/servers/{mapped.uuid}")
    }
    if detail:
        entry["tenant_id"] = mapped.project_id
        entry["created"] = seconds(mapped.created_at)
    return entry


ROUTES = [
    Route(method="GET", path="/servers", handler=index, rule=INDEX, rules=(INDEX_ALL, ALLOW_ALL), query=QUERY,
          answer=answers.LIST),
    Route(method="GET", path="/servers/detail", handler=detail, rule=DETAIL,
          rules=(DETAIL_ALL, ALLOW_ALL, *VIEW_RULES), query=QUERY, answer=answers.DETAIL),
]
