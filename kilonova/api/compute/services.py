"""Services: list, disable, force down, delete. Spec: API-240 to API-243, API-455."""

from __future__ import annotations

from functools import partial
from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.field_types import HOST
from kilonova.api.compute.service_hosts import KnownService, check_complete, known_hosts
from kilonova.api.compute.uuids import checked_uuid
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Enum, Object, Text, optional, required
from kilonova.db import aggregates, host_records
from kilonova.db import services as records
from kilonova.db.placement import hosts as placement
from kilonova.db.services import COMPUTE, Service
from kilonova.domain.clock import iso_microseconds
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.notifications.changes import tell_service
from kilonova.operations.acceptance import asked_by

LIST = Rule("os-services:list", Audience.ADMIN)
UPDATE = Rule("os-services:update", Audience.ADMIN)
DELETE = Rule("os-services:delete", Audience.ADMIN)

REASON = Text(1, 255)
UPDATE_BY_HOST = Object({
    "host": required(HOST),
    "binary": required(Text(1, 255)),
    "disabled_reason": optional(REASON),
    "forced_down": optional(Boolean(), since=11),
})
UPDATE_BY_UUID = Object({
    "status": optional(Enum("enabled", "disabled")),
    "disabled_reason": optional(REASON),
    "forced_down": optional(Boolean()),
})


def view(known: KnownService, version: int) -> dict[str, Any]:
    """Spec: API-455."""
    record = known.record
    shown: dict[str, Any] = {
        "id": record.uuid if version >= 53 else record.id,
        "binary": record.binary,
        "host": record.host,
        "zone": known.zone,
        "status": "disabled" if record.disabled else "enabled",
        "state": "up" if known.up else "down",
        "updated_at": iso_microseconds(record.seen_at),
        "disabled_reason": record.disabled_reason,
    }
    if version >= 11:
        shown["forced_down"] = record.forced_down
    return shown


async def index(call: Call) -> Any:
    host, binary = call.query.last("host"), call.query.last("binary")
    found, silent = await known_hosts(call).services(binary=binary, host=host)
    entries = [view(known, call.version) for known in found]
    if call.version < 69:
        check_complete(call, silent)
        return {"services": entries}
    for cell in silent:
        names = await call.cloud.cells.api.read(partial(host_records.hosts_of_cell, cell=cell.uuid))
        entries += [
            {"binary": COMPUTE, "host": name, "status": "UNKNOWN"}
            for name in names
            if host in (None, name) and binary in (None, COMPUTE)
        ]
    return {"services": entries}


async def update_by_host(call: Call) -> Any:
    action, body = call.path["id"], call.body
    if action not in ("enable", "disable", "disable-log-reason", "force-down") or (
        action == "force-down" and call.version < 11
    ):
        raise NotFound("Unknown action")
    wanted = {"disable-log-reason": "disabled_reason", "force-down": "forced_down"}.get(action)
    if wanted is not None and wanted not in body:
        raise InvalidInput(f"Missing field {wanted}.")
    reason = body["disabled_reason"].strip() if action == "disable-log-reason" else None
    if reason == "":
        raise InvalidInput("disabled_reason contains only white space.")
    host, binary = body["host"], body["binary"]
    _check_binary(binary)
    found, _ = await known_hosts(call).services(binary=COMPUTE, host=host)
    if not found:
        raise NotFound(f"Compute host {host} could not be found.")
    answer: dict[str, Any] = {"host": host, "binary": binary}
    if action == "force-down":
        await change_service(call, found[0], forced_down=body["forced_down"])
        return {"service": {**answer, "forced_down": body["forced_down"]}}
    disabled = action != "enable"
    await change_service(call, found[0], disabled=disabled, disabled_reason=reason)
    answer["status"] = "disabled" if disabled else "enabled"
    if reason is not None:
        answer["disabled_reason"] = reason
    return {"service": answer}


async def update_by_uuid(call: Call) -> Any:
    known = await _find(call)
    _check_binary(known.record.binary)
    body = call.body
    status, reason = body.get("status"), body.get("disabled_reason")
    if reason is not None and status != "disabled":
        raise InvalidInput("Specifying disabled_reason requires that status is disabled.")
    changes: dict[str, object] = {}
    if status is not None:
        changes = {"disabled": status == "disabled", "disabled_reason": reason}
    if "forced_down" in body:
        changes["forced_down"] = body["forced_down"]
    if not changes:
        raise InvalidInput("No updates were requested. Fields 'status' or 'forced_down' should be specified.")
    await change_service(call, known, **changes)
    return {"service": view(await _find(call), call.version)}


def _check_binary(binary: str) -> None:
    if binary != COMPUTE:
        raise InvalidInput(
            f"Updating a {binary} service is not supported. Only {COMPUTE} services can be updated."
        )


async def change_service(call: Call, known: KnownService, **changes: object) -> None:
    """Change the record, then tell placement until it knows what the record says.

    The two are in different databases: somebody else may change the record in between, and a request that was
    cut off there is mended by its repetition.
    """
    now, uuid = call.cloud.clock.now(), known.record.uuid

    def change(conn: sa.Connection) -> Service:
        changed = records.change_service(conn, uuid, now=now, **changes)
        tell_service(conn, "update", changed, now=now, asker=asked_by(call.context))
        return changed

    record = await known.cell.database.write(change)
    told: Service | None = None
    while told is None or record.kept_off != told.kept_off:
        await call.cloud.cells.api.write(partial(_publish, record=record))
        told = record
        found = await known.cell.database.read(
            lambda conn: records.all_services(conn, binary=COMPUTE, host=known.record.host)
        )
        record = found[0] if found else told


def _publish(conn: sa.Connection, record: Service) -> None:
    placement.publish_status(conn, record.host, disabled=record.kept_off)
    if record.forced_down:
        placement.mark_down(conn, record.host)


async def delete(call: Call) -> Any:
    known = await _find(call)
    record = known.record
    if record.binary == COMPUTE:
        await _forget_host(call, known, record)

    def remove(conn: sa.Connection) -> None:
        records.remove_service(conn, record.uuid)
        tell_service(conn, "delete", record, now=call.cloud.clock.now(), asker=asked_by(call.context))

    await known.cell.database.write(remove)
    return None


async def _forget_host(call: Call, known: KnownService, record: Service) -> None:
    """Remove the host from placement and aggregates. Raises Conflict: it has servers. Spec: API-243."""
    host = record.host
    if await known.cell.database.read(lambda conn: host_records.servers_on(conn, [host])):
        raise Conflict(
            "Unable to delete compute service that is hosting instances.", hint="migrate or delete the instances first"
        )

    def forget(conn: sa.Connection) -> None:
        placement.forget_host(conn, host)
        aggregates.forget_host(conn, host)

    await call.cloud.cells.api.write(forget)


async def _find(call: Call) -> KnownService:
    """The service that the path names. Raises InvalidInput: not an id, or one of several; NotFound."""
    wanted = call.path["id"]
    if call.version >= 53:
        wanted = checked_uuid(wanted)
    elif not (wanted.isascii() and wanted.isdecimal()):
        raise InvalidInput(f"Invalid service id {wanted}: it must be an integer.")
    found, _ = await known_hosts(call).services()
    named = [one for one in found if wanted == (one.record.uuid if call.version >= 53 else str(one.record.id))]
    if not named:
        raise NotFound(f"Service {wanted} could not be found.")
    if len(named) > 1:
        raise InvalidInput(f"Service id {wanted} refers to multiple services.", hint="use microversion 2.53")
    return named[0]


ROUTES = [
    Route(method="GET", path="/os-services", handler=index, rule=LIST,
          query=Query({"host": Param(Text()), "binary": Param(Text())}, strict_since=75),
          answer=answers.SERVICES),
    Route(method="PUT", path="/os-services/{id}", handler=update_by_host, rule=UPDATE, body=UPDATE_BY_HOST, until=52,
          answer=answers.CHANGED_SERVICE),
    Route(method="PUT", path="/os-services/{id}", handler=update_by_uuid, rule=UPDATE, body=UPDATE_BY_UUID, since=53,
          answer=answers.SERVICE),
    Route(method="DELETE", path="/os-services/{id}", handler=delete, rule=DELETE, status=204),
]
