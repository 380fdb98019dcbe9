"""What the hypervisor counts for a guest. Spec: API-155, API-471, API-548."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route


async def show_own(call: Call) -> Any:
    return await call.cloud.compute.own_diagnostics(call.server)


async def show(call: Call) -> Any:
    instance = call.server.instance
    found = await call.cloud.compute.diagnostics(call.server)
    up_since = instance.launched_at
    return {
        "state": found.state,
        "driver": found.driver,
        "hypervisor": found.hypervisor,
        "hypervisor_os": found.hypervisor_os,
        "uptime": None if up_since is None else int(call.cloud.clock.now() - up_since),
        "config_drive": bool(instance.config_drive),
        "num_cpus": len(found.cpus),
        "num_nics": len(found.nics),
        "num_disks": len(found.disks),
        "memory_details": msgspec.to_builtins(found.memory),
        "cpu_details": msgspec.to_builtins(found.cpus),
        "nic_details": msgspec.to_builtins(found.nics),
        "disk_details": msgspec.to_builtins(found.disks),
    }


_PATH = "/servers/{server_id}/diagnostics"
_RULE = Rule("os-server-diagnostics", Audience.ADMIN)

ROUTES = [
    Route(method="GET", path=_PATH, handler=show_own, look_up=find_server, rule=_RULE, until=47,
          answer=answers.OWN_DIAGNOSTICS),
    Route(method="GET", path=_PATH, handler=show, look_up=find_server, rule=_RULE, since=48,
          answer=answers.DIAGNOSTICS),
]
