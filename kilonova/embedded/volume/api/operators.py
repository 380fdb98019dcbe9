"""What operators ask: parts of the service, hosts, pools and what they can do. Spec: section 5.1, EMV-11."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import json_object, json_response
from kilonova.embedded.volume import schema, service_records, volume_types
from kilonova.embedded.volume.api.call import Access, Call, Method, check, text
from kilonova.embedded.volume.api.volume_views import time
from kilonova.embedded.volume.backends import description, fits
from kilonova.embedded.volume.new_volumes import ZONE
from kilonova.embedded.volume.records import GIB, Service

POOL_FILTERS = ["name", "volume_type"]


class ServiceBody(msgspec.Struct):
    """Clients of old name the part by `service`."""

    host: str
    binary: str | None = None
    service: str | None = None
    disabled_reason: str | None = None


def methods() -> list[Method]:
    services = "/os-services"
    return [
        Method("GET", services, _list_services, Access.ADMIN),
        Method("PUT", f"{services}/{{action}}", _change_service, Access.ADMIN),
        Method("GET", "/os-hosts", _list_hosts, Access.ADMIN),
        Method("GET", "/os-hosts/{id}", _show_host, Access.ADMIN),
        Method("GET", "/scheduler-stats/get_pools", _list_pools, Access.ADMIN),
        Method("GET", "/capabilities/{id}", _show_capabilities, Access.ADMIN),
    ]


# --- services and hosts --------------------------------------------------------------------------


async def _list_services(call: Call) -> Response:
    """All are up: they are this process."""
    asked = call.request.query_params
    wanted_binary, wanted_host = asked.get("binary") or asked.get("service"), asked.get("host")
    now = time(call.now())
    shown = []
    for one in await call.read(service_records.every):
        if wanted_binary not in (None, one.binary) or wanted_host not in (None, one.host, one.host.partition("@")[0]):
            continue
        view: dict[str, Any] = {
            "binary": one.binary, "host": one.host, "zone": ZONE, "status": _status(one), "state": "up",
            "updated_at": now, "disabled_reason": one.disabled_reason,
        }
        if call.version >= 7:
            view["cluster"] = None
        if one.binary == service_records.VOLUME:
            view |= {"replication_status": "disabled", "active_backend_id": None, "frozen": False}
            if call.version >= 49:
                view["backend_state"] = "up"
        shown.append(view)
    return json_response({"services": shown})


def _status(service: Service) -> str:
    return "disabled" if service.disabled else "enabled"


async def _change_service(call: Call) -> Response:
    action = call.path("action")
    if action not in ("enable", "disable", "disable-log-reason"):
        raise NotFound("The resource could not be found.")
    body, now = check(ServiceBody, await json_object(call.request), "body"), call.now()
    binary = body.binary or body.service
    if binary is None:
        raise InvalidInput("Missing required element 'binary' in request body.")
    reason = text("disabled_reason", body.disabled_reason) if action == "disable-log-reason" else None
    if action == "disable-log-reason" and not reason:
        raise InvalidInput("Disabled reason contains invalid characters or is too long")
    enabled = action == "enable"
    changed = await call.write(
        lambda conn: service_records.enable(conn, binary, body.host, now, enabled=enabled, reason=reason)
    )
    view: dict[str, Any] = {"host": changed.host, "service": binary, "binary": binary, "status": _status(changed),
            "disabled": changed.disabled}
    return json_response(view if action == "disable" else view | {"disabled_reason": changed.disabled_reason})


async def _list_hosts(call: Call) -> Response:
    now = time(call.now())
    return json_response({"hosts": [
        {"service-status": "available", "service": one.binary, "zone": ZONE, "service-state": _status(one),
         "host_name": one.host, "last-update": now}
        for one in await call.read(service_records.every)
    ]})


async def _show_host(call: Call) -> Response:
    """What a host has, in all and for each project. Raises NotFound."""
    host, v, s = call.path(), schema.volumes, schema.snapshots
    here = sa.or_(v.c.host == host, v.c.host.like(f"{_escaped(host)}#%", escape="\\"))

    def unit(conn: sa.Connection) -> tuple[list[Any], list[Any]]:
        if all(one.host != host for one in service_records.every(conn)):
            raise NotFound(f"Host {host} could not be found.")
        of_volumes = sa.select(v.c.project_id, sa.func.count(), sa.func.sum(v.c.size)).where(here)
        of_snapshots = sa.select(v.c.project_id, sa.func.count(), sa.func.sum(s.c.size)).select_from(
            s.join(v, s.c.volume_id == v.c.id)
        ).where(here)
        return (list(conn.execute(of_volumes.group_by(v.c.project_id))),
                list(conn.execute(of_snapshots.group_by(v.c.project_id))))

    in_volumes, in_snapshots = await call.read(unit)
    found = {project: [number, size, 0, 0] for project, number, size in in_volumes}
    for project, number, size in in_snapshots:
        found[project][2:] = [number, size]
    totals = [sum(column) for column in zip(*found.values(), strict=True)] or [0, 0, 0, 0]
    return json_response({"host": [
        {"resource": {
            "host": host, "project": project, "volume_count": str(numbers[0]), "total_volume_gb": str(numbers[1]),
            "snapshot_count": str(numbers[2]), "total_snapshot_gb": str(numbers[3]),
        }}
        for project, numbers in [("(total)", totals), *sorted(found.items())]
    ]})


def _escaped(part: str) -> str:
    return part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


# --- pools ---------------------------------------------------------------------------------------


async def _list_pools(call: Call) -> Response:
    asked = call.request.query_params
    extra_specs, name = {}, asked.get("name")
    if (type_ := asked.get("volume_type")) is not None and call.version >= 35:
        found = await call.read(lambda conn: volume_types.named(conn, call.who, type_))
        extra_specs = found.extra_specs
    pools = []
    for host, pool in sorted(call.volumes.environment.pools.items()):
        if name not in (None, host) or not fits(host, extra_specs):
            continue
        view: dict[str, Any] = {"name": host}
        if call.asks("detail"):
            capacity = await pool.capacity()
            view["capabilities"] = {
                **description(host),
                "total_capacity_gb": round(capacity.total / GIB, 2), "free_capacity_gb": round(capacity.free / GIB, 2),
                "provisioned_capacity_gb": capacity.provisioned, "reserved_percentage": 0, "QoS_support": False,
                "thin_provisioning_support": True, "thick_provisioning_support": False, "multiattach": True,
                "timestamp": time(call.now()),
            }
        pools.append(view)
    return json_response({"pools": pools})


async def _show_capabilities(call: Call) -> Response:
    """What volume types can ask of a host, which here is no more than that it is the one."""
    host = call.path()
    if all(one.partition("#")[0] != host for one in call.volumes.environment.pools):
        raise NotFound(f"Host {host} could not be found.")
    return json_response({
        **description(host),
        "namespace": f"OS::Storage::Capabilities::{host}", "pool_name": None, "description": None, "visibility": None,
        "display_name": None, "replication_targets": [], "properties": {},
    })
