"""Actions on a server that only change its power, its lock or its recorded state.

Spec: API-114 to API-116, API-138, API-139, API-141.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.microversions import FIRST, LATEST
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Handler, Route
from kilonova.api.schema import Enum, Field, Object, Schema, Text, nullable, required
from kilonova.operations.start import START, StartServer

UNLOCK_OVERRIDE = Rule("os-lock-server:unlock:unlock_override", Audience.ADMIN)


def server_action(
    name: str,
    handler: Handler,
    rule: Rule | None,
    value: Schema | None = None,
    *,
    since: int = FIRST,
    until: int = LATEST,
    status: int = 202,
    rules: Sequence[Rule] = (),
    answer: Schema | None = None,
) -> Route:
    """Declare an action of servers.

    Args:
        name: the key of the body. value: schema of what stands under it; None takes anything.
        answer: schema of what is answered, None for nothing.
    """
    fields: dict[str, Field] = {} if value is None else {name: required(value)}
    return Route(
        method="POST", path="/servers/{server_id}/action", action=name, handler=handler, look_up=find_server,
        rule=rule, rules=tuple(rules), body=Object(fields) if fields else None, since=since, until=until,
        status=status, answer=answer,
    )


async def start(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, START, StartServer())


async def stop(call: Call) -> None:
    await call.cloud.compute.stop(call.context, call.server)


async def reboot(call: Call) -> None:
    hard = call.body["reboot"]["type"].upper() == "HARD"
    await call.cloud.compute.reboot(call.context, call.server, hard=hard)


async def lock(call: Call) -> None:
    asked: Any = call.body["lock"] if call.version >= 73 else None
    await call.cloud.compute.lock(call.context, call.server, asked["locked_reason"] if asked else None)


async def unlock(call: Call) -> None:
    instance = call.server.instance
    own_kind = "owner" if call.context.project_id == instance.project_id else "admin"
    if instance.locked_by is not None and instance.locked_by != own_kind:
        call.require(UNLOCK_OVERRIDE)
    await call.cloud.compute.unlock(call.context, call.server)


async def reset_state(call: Call) -> None:
    active = call.body["os-resetState"]["state"] == "active"
    await call.cloud.compute.reset_state(call.context, call.server, active=active)


_REBOOT = Object({"type": required(Enum("HARD", "Hard", "hard", "SOFT", "Soft", "soft"))})
_STATE = Object({"state": required(Enum("active", "error"))})
_LOCK = nullable(Object({"locked_reason": required(Text(1, 255))}))
_LOCK_RULE = Rule("os-lock-server:lock", Audience.MEMBER)

ROUTES = [
    server_action("os-start", start, Rule("servers:start", Audience.MEMBER)),
    server_action("os-stop", stop, Rule("servers:stop", Audience.MEMBER)),
    server_action("reboot", reboot, Rule("servers:reboot", Audience.MEMBER), _REBOOT),
    server_action("lock", lock, _LOCK_RULE, until=72),
    server_action("lock", lock, _LOCK_RULE, _LOCK, since=73),
    server_action("unlock", unlock, Rule("os-lock-server:unlock", Audience.MEMBER), rules=(UNLOCK_OVERRIDE,)),
    server_action("os-resetState", reset_state, Rule("os-admin-actions:reset_state", Audience.ADMIN), _STATE),
]
