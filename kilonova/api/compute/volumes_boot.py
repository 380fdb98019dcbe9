"""The old alias of `/servers`, up to 2.102. Spec: API-195 to API-199."""

from __future__ import annotations

from kilonova.api.compute import (
    server_actions,
    server_backups,
    server_create,
    server_injections,
    server_list,
    server_resize,
    servers,
)
from kilonova.api.routes import also_at

_ACTIONS = frozenset({
    "confirmResize", "createImage", "os-start", "os-stop", "reboot", "rebuild", "resize", "revertResize",
    "trigger_crash_dump",
})

_SAME = [*server_list.ROUTES, *server_create.ROUTES, *servers.ROUTES]
_SAME += [
    route
    for module in (server_actions, server_backups, server_injections, server_resize)
    for route in module.ROUTES
    if route.action in _ACTIONS
]

ROUTES = also_at(_SAME, "/servers", "/os-volumes_boot", until=102)
