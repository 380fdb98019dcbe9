"""What servers of projects used in a span of time. Spec: API-258, API-259, API-467."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.server_lookup import is_uuid, locate_deleted
from kilonova.api.compute.server_view import microseconds
from kilonova.api.compute.service_hosts import check_complete
from kilonova.api.paging import effective_limit, next_page
from kilonova.api.policy import Audience, Rule, Target
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Integer, Text
from kilonova.cells.registry import Cell
from kilonova.db import instance_list
from kilonova.db.instance_list import Filter, ListQuery, Order
from kilonova.db.instances import instances
from kilonova.domain.errors import InstanceNotFound, InvalidInput, ServiceUnavailable
from kilonova.domain.instance import Instance

LIST = Rule("os-simple-tenant-usage:list", Audience.ADMIN)
SHOW = Rule("os-simple-tenant-usage:show", Audience.READER)

_ORDER = (Order("created_at", False), Order("uuid", False))
_HOUR = 3600.0
_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%d %H:%M:%S.%f")
_PAGES = {"limit": Param(Integer(0), since=40), "marker": Param(Text(), since=40)}
_SPAN = {"start": Param(Text()), "end": Param(Text())}
LIST_QUERY = Query({**_SPAN, "detailed": Param(Text()), **_PAGES}, strict_since=75)
SHOW_QUERY = Query({**_SPAN, **_PAGES}, strict_since=75)


class Span(msgspec.Struct, frozen=True):
    """A span of time, in seconds since the epoch."""

    start: float
    stop: float

    def hours(self, instance: Instance) -> float:
        """How long a server was there within the span."""
        begun = max(_started(instance), self.start)
        ended = self.stop if instance.terminated_at is None else min(instance.terminated_at, self.stop)
        return max(ended - begun, 0.0) / _HOUR


async def index(call: Call) -> Any:
    span = _span(call)
    found = await _used(call, span, None)
    detailed = call.query.last("detailed") == "1"
    projects = dict.fromkeys(instance.project_id for instance in found)
    usages = [
        _usage(call, span, project, [i for i in found if i.project_id == project], detailed=detailed)
        for project in projects
    ]
    return {"tenant_usages": usages, **_next(call, "", found, "tenant_usages_links")}


async def show(call: Call) -> Any:
    project = call.path["id"]
    call.require(SHOW, Target(project, call.context.user_id))
    span = _span(call)
    found = await _used(call, span, project)
    usage = _usage(call, span, project, found, detailed=True) if found else {}
    return {"tenant_usage": usage, **_next(call, f"/{project}", found, "tenant_usage_links")}


def _span(call: Call) -> Span:
    """The span that the query names; what is left out is now. Raises InvalidInput."""
    now = call.cloud.clock.now()
    start, stop = (_time(call.query.last(name), now) for name in ("start", "end"))
    if start >= stop and ("start" in call.query or "end" in call.query):
        raise InvalidInput("Invalid start time. The start time cannot occur after the end time.")
    return Span(start, min(stop, now))


def _time(text: str | None, default: float) -> float:
    """Spec: API-056."""
    if not text:
        return default
    for form in _FORMS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            continue
    raise InvalidInput(f"Datetime is in invalid format: {text}")


async def _used(call: Call, span: Span, project: str | None) -> list[Instance]:
    """The servers that were there within the span, in the order of their creation."""
    columns = instances.c
    filters = [
        Filter(lambda i: i.launched_at is not None and i.launched_at < span.stop, columns.launched_at < span.stop),
        Filter(lambda i: i.terminated_at is None or i.terminated_at > span.start),
        Filter(
            lambda i: i.deleted_at is None or i.deleted_at > span.start,
            columns.deleted_at.is_(None) | (columns.deleted_at > span.start),
        ),
    ]
    if project is not None:
        filters.append(Filter(lambda i: i.project_id == project, columns.project_id == project))
    limit = effective_limit(call)
    query = ListQuery(filters=filters, order=_ORDER, limit=limit, marker=await _marker(call, project))
    pages = await asyncio.gather(*(_page(cell, query) for cell in call.cloud.cells.all))
    check_complete(call, [page for page in pages if isinstance(page, Cell)])
    found = [instance for page in pages if not isinstance(page, Cell) for instance in page]
    return instance_list.in_order(_ORDER, found)[:limit]


async def _page(cell: Cell, query: ListQuery) -> list[Instance] | Cell:
    """The page, or the cell if it does not answer."""
    try:
        return await cell.database.read(lambda conn: instance_list.page(conn, query))
    except ServiceUnavailable:
        return cell


async def _marker(call: Call, project: str | None) -> Instance | None:
    """Raises InvalidInput: there is no such server, or it is of another project. Spec: API-048."""
    uuid = call.query.last("marker")
    if uuid is None:
        return None
    refusal = InvalidInput(f"marker [{uuid}] not found")
    if not is_uuid(uuid):
        raise refusal
    try:
        found = (await locate_deleted(call.cloud.cells, uuid)).instance
    except InstanceNotFound as error:
        raise refusal from error
    if project not in (None, found.project_id):
        raise refusal
    return found


def _next(call: Call, path: str, found: list[Instance], key: str) -> dict[str, Any]:
    if call.version < 40:
        return {}
    markers = [instance.uuid for instance in found]
    return next_page(call, f"/os-simple-tenant-usage{path}", markers, effective_limit(call), key)


def _usage(call: Call, span: Span, project: str, found: Iterable[Instance], *, detailed: bool) -> dict[str, Any]:
    now = call.cloud.clock.now()
    servers = [_server(instance, span, now) for instance in found]
    shown: dict[str, Any] = {
        "tenant_id": project, "start": microseconds(span.start), "stop": microseconds(span.stop),
        "total_hours": sum(one["hours"] for one in servers),
    }
    for name in ("vcpus", "memory_mb", "local_gb"):
        shown[f"total_{name}_usage"] = sum(one[name] * one["hours"] for one in servers)
    if detailed:
        shown["server_usages"] = servers
    return shown


def _server(instance: Instance, span: Span, now: float) -> dict[str, Any]:
    flavor, ended = instance.flavor, instance.terminated_at
    return {
        "instance_id": instance.uuid,
        "name": instance.display_name,
        "tenant_id": instance.project_id,
        "flavor": flavor.name,
        "hours": span.hours(instance),
        "memory_mb": flavor.memory_mib,
        "vcpus": flavor.vcpus,
        "local_gb": flavor.root_gib + flavor.ephemeral_gib,
        "started_at": microseconds(instance.launched_at),
        "ended_at": microseconds(ended),
        "state": instance.vm_state.value if ended is None else "terminated",
        "uptime": int((now if ended is None else ended) - _started(instance)),
    }


def _started(instance: Instance) -> float:
    assert instance.launched_at is not None, "servers that never ran use nothing"
    return instance.launched_at


ROUTES = [
    Route(method="GET", path="/os-simple-tenant-usage", handler=index, rule=LIST, query=LIST_QUERY,
          answer=answers.TENANTS),
    Route(method="GET", path="/os-simple-tenant-usage/{id}", handler=show, rules=(SHOW,), query=SHOW_QUERY,
          answer=answers.TENANT),
]
