"""Host aggregates. Spec: API-222 to API-229, API-464."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Answer, Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.field_types import HOST, METADATA_KEY, METADATA_VALUE, NAME
from kilonova.api.compute.service_hosts import known_hosts
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import MapOf, Object, Text, nullable, optional, required
from kilonova.api.telling import PAIR, aggregate_told, tell_change
from kilonova.cells.registry import Cell
from kilonova.db import aggregates as records
from kilonova.db import host_records, instance_list
from kilonova.db.aggregates import ZONE, HostAggregate
from kilonova.db.host_records import HostServer
from kilonova.domain.clock import iso_microseconds
from kilonova.domain.errors import Conflict, InvalidInput, NotFound, ServiceUnavailable

RULES = {
    name: Rule(f"os-aggregates:{name}", Audience.ADMIN)
    for name in ("index", "create", "show", "update", "delete", "add_host", "remove_host", "set_metadata")
}

ZONE_NAME = nullable(Text(1, 255, r"[^:]*", NAME.format))
CREATE = Object({"aggregate": required(Object({
    "name": required(NAME), "availability_zone": optional(ZONE_NAME),
}))})
UPDATE = Object({"aggregate": required(Object({
    "name": optional(NAME), "availability_zone": optional(ZONE_NAME),
}, fewest=1))})
SET_METADATA = Object({"set_metadata": required(Object({
    "metadata": required(MapOf(METADATA_KEY, nullable(METADATA_VALUE))),
}))})


def _host_body(action: str) -> Object:
    return Object({action: required(Object({"host": required(HOST)}))})


def view(aggregate: HostAggregate, version: int, *, brief: bool = False) -> dict[str, Any]:
    """brief: without hosts and metadata, as the answer to create. Spec: API-464."""
    shown: dict[str, Any] = {
        "id": aggregate.id,
        "name": aggregate.name,
        "availability_zone": aggregate.zone,
        "created_at": iso_microseconds(aggregate.created_at),
        "updated_at": None if aggregate.updated_at is None else iso_microseconds(aggregate.updated_at),
        "deleted_at": None,
        "deleted": False,
    }
    if version >= 41:
        shown["uuid"] = aggregate.uuid
    if not brief:
        shown["hosts"] = list(aggregate.hosts)
        shown["metadata"] = aggregate.metadata
    return shown


def _answer(call: Call, aggregate: HostAggregate) -> dict[str, Any]:
    return {"aggregate": view(aggregate, call.version)}


async def index(call: Call) -> Any:
    found = await call.cloud.cells.api.read(records.all_aggregates)
    return {"aggregates": [view(aggregate, call.version) for aggregate in found]}


async def create(call: Call) -> Any:
    body, now = call.body["aggregate"], call.cloud.clock.now()

    def make(conn: sa.Connection) -> HostAggregate:
        made = records.create(conn, body["name"], body.get("availability_zone"), now=now)
        _tell(call, conn, "create", made, *PAIR)
        return made

    made = await call.cloud.cells.api.write(make)
    return {"aggregate": view(made, call.version, brief=True)}


async def show(call: Call) -> Any:
    return _answer(call, await find_aggregate(call))


async def update(call: Call) -> Any:
    body = call.body["aggregate"]
    metadata = {ZONE: body[ZONE]} if ZONE in body else None
    return await _change(call, name=body.get("name"), metadata=metadata)


async def set_metadata(call: Call) -> Any:
    return await _change(call, metadata=call.body["set_metadata"]["metadata"])


async def _change(call: Call, *, name: str | None = None, metadata: dict[str, str | None] | None = None) -> Any:
    aggregate = await find_aggregate(call)
    if metadata is not None and ZONE in metadata:
        zone = metadata[ZONE]
        if zone is not None and (not zone.strip() or ":" in zone):
            raise InvalidInput(f"Cannot update aggregate {aggregate.id}. Reason: {zone!r} is no name of a zone.")
        if zone != aggregate.zone and await _servers(call, aggregate.hosts):
            raise InvalidInput(
                f"Cannot update aggregate {aggregate.id}. Reason: One or more hosts contain instances in this zone.",
                hint="move the instances to hosts outside of the aggregate first",
            )
    now = call.cloud.clock.now()
    what = "update_metadata" if name is None else "update_prop"
    return _answer(call, await call.cloud.cells.api.write(_told(
        call, what, aggregate, lambda conn: records.change(conn, aggregate.id, name=name, metadata=metadata, now=now)
    )))


async def delete(call: Call) -> Any:
    number = _id(call)

    def remove(conn: sa.Connection) -> None:
        going = records.get(conn, number)
        records.delete(conn, number)
        _tell(call, conn, "delete", going, *PAIR)

    await call.cloud.cells.api.write(remove)
    return Answer()


async def add_host(call: Call) -> Any:
    aggregate, host = await find_aggregate(call), call.body["add_host"]["host"]
    await _check_host(call, host)
    if aggregate.zone is not None and host not in aggregate.hosts:
        await _check_pins(call, aggregate, host, aggregate.zone, "add host to")
    now = call.cloud.clock.now()
    return _answer(call, await call.cloud.cells.api.write(_told(
        call, "add_host", aggregate, lambda conn: records.add_host(conn, aggregate.id, host, now=now)
    )))


async def remove_host(call: Call) -> Any:
    aggregate, host = await find_aggregate(call), call.body["remove_host"]["host"]
    if aggregate.zone is not None and host in aggregate.hosts:
        everything = await call.cloud.cells.api.read(records.all_aggregates)
        left = [a.zone for a in everything if a.id != aggregate.id and a.zone is not None and host in a.hosts]
        zone = left[0] if left else known_hosts(call).default_zone
        await _check_pins(call, aggregate, host, zone, "remove host from")
    now = call.cloud.clock.now()
    return _answer(call, await call.cloud.cells.api.write(_told(
        call, "remove_host", aggregate, lambda conn: records.remove_host(conn, aggregate.id, host, now=now)
    )))


def _told(
    call: Call, action: str, before: HostAggregate, change: Callable[[sa.Connection], HostAggregate]
) -> Callable[[sa.Connection], HostAggregate]:
    """The same change, of which others are told."""
    def write(conn: sa.Connection) -> HostAggregate:
        _tell(call, conn, action, before, "start")
        changed = change(conn)
        _tell(call, conn, action, changed, "end")
        return changed

    return write


def _tell(call: Call, conn: sa.Connection, action: str, of: HostAggregate, *phases: str) -> None:
    told = aggregate_told(number=of.id, uuid=of.uuid, name=of.name, hosts=of.hosts, metadata=of.metadata)
    tell_change(call, conn, f"aggregate.{action}", of.uuid, told, phases=phases)


async def _check_host(call: Call, host: str) -> None:
    if not await known_hosts(call).exists(host=host, node=None):
        raise NotFound(f"Compute host {host} could not be found.")


async def _check_pins(call: Call, aggregate: HostAggregate, host: str, zone: str, what: str) -> None:
    """Refuse when a server on the host asked for another zone than the host will be in. Spec: API-228."""
    servers = [server.uuid for server in await _servers(call, (host,))]

    def pinned_elsewhere(conn: sa.Connection) -> bool:
        asked = instance_list.asked_of(conn, servers).values()
        return any(one.availability_zone not in (None, zone) for one in asked)

    if not servers:
        return
    if await call.cloud.cells.api.read(pinned_elsewhere):
        raise Conflict(
            f"Cannot {what} aggregate {aggregate.id}. Reason: Instances on host {host} would leave the "
            f"availability zone that they asked for.",
            hint="move them to another host first",
        )


async def _servers(call: Call, hosts: Collection[str]) -> list[HostServer]:
    """The servers on these hosts. Raises ServiceUnavailable: a cell does not answer."""
    answers: list[tuple[Cell, list[HostServer] | ServiceUnavailable]] = await known_hosts(call).ask(
        lambda conn: host_records.servers_on(conn, hosts)
    )
    found: list[HostServer] = []
    for _, answer in answers:
        if isinstance(answer, ServiceUnavailable):
            raise answer
        found += answer
    return found


async def find_aggregate(call: Call) -> HostAggregate:
    number = _id(call)
    return await call.cloud.cells.api.read(lambda conn: records.get(conn, number))


def _id(call: Call) -> int:
    """Raises InvalidInput: not an integer. Spec: API-224."""
    text = call.path["id"]
    if not re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII):
        raise InvalidInput(f"Invalid aggregate id {text}: it must be an integer.")
    return int(text)


_ONE = "/os-aggregates/{id}"
ROUTES = [
    Route(method="GET", path="/os-aggregates", handler=index, rule=RULES["index"], answer=answers.AGGREGATES),
    Route(method="POST", path="/os-aggregates", handler=create, rule=RULES["create"], body=CREATE,
          answer=answers.NEW_AGGREGATE),
    Route(method="GET", path=_ONE, handler=show, rule=RULES["show"], answer=answers.AGGREGATE),
    Route(method="PUT", path=_ONE, handler=update, rule=RULES["update"], body=UPDATE, answer=answers.AGGREGATE),
    Route(method="DELETE", path=_ONE, handler=delete, rule=RULES["delete"]),
    *(
        Route(method="POST", path=f"{_ONE}/action", action=action, handler=handler, rule=RULES[action], body=body,
              answer=answers.AGGREGATE)
        for action, handler, body in (
            ("add_host", add_host, _host_body("add_host")),
            ("remove_host", remove_host, _host_body("remove_host")),
            ("set_metadata", set_metadata, SET_METADATA),
        )
    ),
]
