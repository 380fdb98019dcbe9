"""Hypervisors: list, detail, one, and routes that newer clients no longer need. Spec: API-233 to API-239, API-454."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.hypervisor_view import (
    EMPTY,
    Facts,
    brief,
    facts_of,
    full,
    servers_entry,
    statistics_of,
)
from kilonova.api.compute.service_hosts import KnownNode, check_complete, known_hosts
from kilonova.api.compute.uuids import checked_uuid
from kilonova.api.paging import effective_limit, next_page
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Integer, Text
from kilonova.domain.errors import InvalidInput, NotFound, NotSupported

LIST = Rule("os-hypervisors:list", Audience.ADMIN)
DETAIL = Rule("os-hypervisors:list-detail", Audience.ADMIN)
STATISTICS = Rule("os-hypervisors:statistics", Audience.ADMIN)
SHOW = Rule("os-hypervisors:show", Audience.ADMIN)
SEARCH = Rule("os-hypervisors:search", Audience.ADMIN)
SERVERS = Rule("os-hypervisors:servers", Audience.ADMIN)
UPTIME = Rule("os-hypervisors:uptime", Audience.ADMIN)

LIST_QUERY = Query({
    "limit": Param(Integer(0), since=33),
    "marker": Param(Text(), since=33),
    "hypervisor_hostname_pattern": Param(Text(), since=53),
    "with_servers": Param(Boolean(), since=53),
}, strict_since=53)
SHOW_QUERY = Query({"with_servers": Param(Boolean(), since=53)}, strict_since=53)


async def index(call: Call) -> Any:
    nodes = _page(call, await _nodes(call))
    facts = await facts_of(call, nodes, servers=_with_servers(call))
    entries = [
        {**brief(node, call.version), **_servers(call, facts, node)} for node in nodes
    ]
    return {"hypervisors": entries, **_next(call, "/os-hypervisors", nodes)}


async def detail(call: Call) -> Any:
    nodes = _page(call, await _nodes(call))
    facts = await facts_of(call, nodes, servers=_with_servers(call) or call.version <= 87)
    entries = [{**full(node, facts, call.version), **_servers(call, facts, node)} for node in nodes]
    return {"hypervisors": entries, **_next(call, "/os-hypervisors/detail", nodes)}


async def statistics(call: Call) -> Any:
    nodes = [node for node in await _nodes(call) if not node.service.record.disabled]
    facts = await facts_of(call, nodes, servers=True)
    return {"hypervisor_statistics": statistics_of(nodes, facts)}


async def show(call: Call) -> Any:
    node = await _find(call)
    facts = await facts_of(call, [node], servers=_with_servers(call) or call.version <= 87)
    return {"hypervisor": {**full(node, facts, call.version), **_servers(call, facts, node)}}


async def search(call: Call) -> Any:
    return {"hypervisors": [brief(node, call.version) for node in await _named(call, call.path["id"])]}


async def servers(call: Call) -> Any:
    nodes = await _named(call, call.path["id"])
    facts = await facts_of(call, nodes, servers=True)
    return {"hypervisors": [
        {**brief(node, call.version), **servers_entry(facts, node, empty=False)} for node in nodes
    ]}


async def uptime(call: Call) -> Any:
    node = await _find(call)
    if not node.service.up:
        raise InvalidInput(f"The service of host {node.record.host} is unavailable.")
    found = node.record.inventory.uptime
    if found is None:
        raise NotSupported("The driver of this host does not tell its uptime.")
    return {"hypervisor": {**brief(node, call.version), "uptime": found}}


async def _nodes(call: Call) -> list[KnownNode]:
    nodes, silent = await known_hosts(call).nodes()
    check_complete(call, silent)
    return nodes


async def _named(call: Call, part: str) -> list[KnownNode]:
    """The nodes with this text in their name. Raises NotFound: none has it."""
    found = [node for node in await _nodes(call) if part.lower() in node.record.node.lower()]
    if not found:
        raise NotFound(f"No hypervisor matching '{part}' could be found.")
    return found


async def _find(call: Call) -> KnownNode:
    """The node that the path names. Raises InvalidInput: not a uuid (2.53 and later), NotFound."""
    wanted = call.path["id"]
    if call.version >= 53:
        wanted = checked_uuid(wanted)
    for node in await _nodes(call):
        if _id(call, node) == wanted:
            return node
    raise NotFound(f"Hypervisor with ID '{wanted}' could not be found.")


def _id(call: Call, node: KnownNode) -> str:
    return node.record.uuid if call.version >= 53 else str(node.record.id)


def _page(call: Call, nodes: list[KnownNode]) -> list[KnownNode]:
    """Those that the query asks for. Spec: API-048, API-233."""
    pattern, marker = call.query.last("hypervisor_hostname_pattern"), call.query.last("marker")
    if pattern is not None:
        if marker is not None or "limit" in call.query:
            raise InvalidInput(
                "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported."
            )
        nodes = [node for node in nodes if pattern.lower() in node.record.node.lower()]
        if not nodes:
            raise NotFound(f"No hypervisor matching '{pattern}' could be found.")
        return nodes
    if marker is not None:
        ids = [_id(call, node) for node in nodes]
        if marker not in ids:
            raise InvalidInput(f"marker [{marker}] not found")
        nodes = nodes[ids.index(marker) + 1:]
    return nodes[: effective_limit(call)] if call.version >= 33 else nodes


def _next(call: Call, path: str, nodes: Sequence[KnownNode]) -> dict[str, Any]:
    if call.version < 33 or "hypervisor_hostname_pattern" in call.query:
        return {}
    return next_page(call, path, [_id(call, node) for node in nodes], effective_limit(call), "hypervisors_links")


def _with_servers(call: Call) -> bool:
    return bool(call.query.last("with_servers", False))


def _servers(call: Call, facts: Facts, node: KnownNode) -> dict[str, Any]:
    return servers_entry(facts, node, empty=call.version >= 75) if _with_servers(call) else EMPTY


ROUTES = [
    Route(method="GET", path="/os-hypervisors", handler=index, rule=LIST, query=LIST_QUERY,
          answer=answers.HYPERVISORS),
    Route(method="GET", path="/os-hypervisors/detail", handler=detail, rule=DETAIL, query=LIST_QUERY,
          answer=answers.HYPERVISORS_DETAIL),
    Route(method="GET", path="/os-hypervisors/statistics", handler=statistics, rule=STATISTICS, until=87,
          answer=answers.HYPERVISOR_STATISTICS),
    Route(method="GET", path="/os-hypervisors/{id}", handler=show, rule=SHOW, query=SHOW_QUERY,
          answer=answers.HYPERVISOR),
    Route(method="GET", path="/os-hypervisors/{id}/search", handler=search, rule=SEARCH, until=52,
          answer=answers.HYPERVISORS),
    Route(method="GET", path="/os-hypervisors/{id}/servers", handler=servers, rule=SERVERS, until=52,
          answer=answers.HYPERVISORS),
    Route(method="GET", path="/os-hypervisors/{id}/uptime", handler=uptime, rule=UPTIME, until=87,
          answer=answers.HYPERVISOR_UPTIME, errors=(501,)),
]
