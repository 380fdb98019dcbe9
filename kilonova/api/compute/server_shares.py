"""Shared file systems of servers, in a cloud without a share service: no server has any.

Requests are checked as far as they can be: body, server, policy, lock and state. Spec: API-184 to API-187, API-597.
"""

from __future__ import annotations

from typing import Any, NoReturn

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.api.compute.answers.shares import SHARES
from kilonova.api.compute.field_types import UUID
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Query
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, optional, required
from kilonova.domain.errors import NotFound
from kilonova.domain.states import VmState

ATTACH = Object({"share": required(Object({
    "share_id": required(UUID), "tag": optional(Text(1, 255, r"[a-zA-Z0-9-]*")),
}))})


async def index(call: Call) -> Any:
    return {"shares": []}


async def attach(call: Call) -> NoReturn:
    """A share is found by asking for it, and nobody can be asked."""
    _check(call, "create share", (VmState.STOPPED,))
    raise NotFound(f"Share {call.body['share']['share_id']} could not be found: this cloud has no share service.")


async def show(call: Call) -> NoReturn:
    raise _not_attached(call)


async def detach(call: Call) -> NoReturn:
    _check(call, "delete share", (VmState.STOPPED, VmState.ERROR))
    raise _not_attached(call)


def _check(call: Call, action: str, states: tuple[VmState, ...]) -> None:
    """Raises InstanceLocked, InstanceInvalidState."""
    server_records.check_lock(call, call.server.instance)
    server_records.check_state(call.server.instance, action, states)


def _not_attached(call: Call) -> NotFound:
    return NotFound(f"Share {call.path['id']} is not attached to instance {call.server.instance.uuid}.")


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-server-shares:{name}", audience)


_ALL = "/servers/{server_id}/shares"
_ONE = f"{_ALL}/{{id}}"
ROUTES = [
    Route(method="GET", path=_ALL, handler=index, look_up=find_server, rule=_rule("index", Audience.READER), since=97,
          query=Query(), answer=SHARES),
    Route(method="POST", path=_ALL, handler=attach, look_up=find_server, rule=_rule("create", Audience.MEMBER),
          since=97, body=ATTACH, status=201),
    Route(method="GET", path=_ONE, handler=show, look_up=find_server, rule=_rule("show", Audience.READER), since=97,
          query=Query()),
    Route(method="DELETE", path=_ONE, handler=detach, look_up=find_server, rule=_rule("delete", Audience.MEMBER),
          since=97),
]
