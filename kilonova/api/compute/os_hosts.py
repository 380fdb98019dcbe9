"""Hosts in the oldest form, up to 2.42. Nothing here powers a machine or empties it. Spec: API-244 to API-249."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import hosts as answers
from kilonova.api.compute.service_hosts import KnownNode, KnownService, check_complete, known_hosts
from kilonova.api.compute.services import change_service
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Handler, Route
from kilonova.api.schema import Enum, Object, Text, optional
from kilonova.db import instances
from kilonova.db.services import COMPUTE
from kilonova.domain.errors import InvalidInput, NotFound, NotSupported
from kilonova.domain.instance import Instance

LAST = 42
PREFIX = "nova-"
_SWITCH = Enum("enable", "disable", "Enable", "Disable", "ENABLE", "DISABLE")
UPDATE = Object({"status": optional(_SWITCH), "maintenance_mode": optional(_SWITCH)})


async def index(call: Call) -> Any:
    zone = call.query.last("zone")
    found, silent = await known_hosts(call).services()
    check_complete(call, silent)
    return {"hosts": [
        {"host_name": known.record.host, "service": known.record.binary.removeprefix(PREFIX), "zone": known.zone}
        for known in found if not known.record.disabled and zone in (None, "", known.zone)
    ]}


async def show(call: Call) -> Any:
    """What the first node of the host has, and what its servers take, of all projects and of each."""
    host = call.path["id"]
    nodes, _ = await known_hosts(call).nodes()
    here = [node for node in nodes if node.record.host == host]
    if not here:
        raise _unknown(host)
    servers = await here[0].service.cell.database.read(partial(instances.on_host, host=host))
    by_project: dict[str, list[Instance]] = {}
    for server in servers:
        by_project.setdefault(server.project_id, []).append(server)
    rows = [_total(host, here[0]), _used(host, "(used_now)", servers), _used(host, "(used_max)", servers)]
    rows += [_used(host, project, of_project) for project, of_project in sorted(by_project.items())]
    return {"host": [{"resource": row} for row in rows]}


def _total(host: str, node: KnownNode) -> dict[str, Any]:
    has = node.record.inventory
    return {
        "host": host, "project": "(total)", "cpu": has.vcpus, "memory_mb": has.memory_mib, "disk_gb": has.local_gib,
    }


def _used(host: str, project: str, servers: Iterable[Instance]) -> dict[str, Any]:
    flavors = [server.flavor for server in servers]
    return {
        "host": host,
        "project": project,
        "cpu": sum(flavor.vcpus for flavor in flavors),
        "memory_mb": sum(flavor.memory_mib for flavor in flavors),
        "disk_gb": sum(flavor.root_gib + flavor.ephemeral_gib for flavor in flavors),
    }


async def update(call: Call) -> Any:
    status, maintenance = call.body.get("status"), call.body.get("maintenance_mode")
    if status is None and maintenance is None:
        raise InvalidInput("Neither status nor maintenance_mode was given.")
    agent = await _agent_that_answers(call)
    if maintenance is not None:
        raise NotSupported("No driver moves the guests of its host away.", hint="disable the host and migrate them")
    disabled = status.lower() == "disable"
    await change_service(call, agent, disabled=disabled, disabled_reason=None)
    return {"host": agent.record.host, "status": "disabled" if disabled else "enabled"}


async def _power(call: Call) -> Any:
    await _agent_that_answers(call)
    raise NotSupported("No driver powers the machine it runs on.")


async def _agent_that_answers(call: Call) -> KnownService:
    """The agent of the host in the path. Raises NotFound; InvalidInput: it is down."""
    host = call.path["id"]
    found, _ = await known_hosts(call).services(binary=COMPUTE, host=host)
    if not found:
        raise _unknown(host)
    if not found[0].up:
        raise InvalidInput(f"Compute service of {host} is unavailable at this time.")
    return found[0]


def _unknown(host: str) -> NotFound:
    return NotFound(f"Compute host {host} could not be found.")


def _get(path: str, handler: Handler, rule: str, **more: Any) -> Route:
    return Route(
        method="GET", path=f"/os-hosts{path}", handler=handler, rule=Rule(f"os-hosts:{rule}", Audience.ADMIN),
        until=LAST, **more,
    )


ROUTES = [
    _get("", index, "list", query=Query({"zone": Param(Text())}), answer=answers.OS_HOSTS),
    _get("/{id}", show, "show", answer=answers.OS_HOST),
    Route(method="PUT", path="/os-hosts/{id}", handler=update, rule=Rule("os-hosts:update", Audience.ADMIN),
          body=UPDATE, until=LAST, answer=answers.CHANGED_OS_HOST, errors=(501,)),
    _get("/{id}/reboot", _power, "reboot", errors=(501,)),
    _get("/{id}/shutdown", _power, "shutdown", errors=(501,)),
    _get("/{id}/startup", _power, "start", errors=(501,)),
]
