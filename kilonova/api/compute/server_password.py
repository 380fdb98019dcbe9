"""The password of a guest's administrator: setting it, and what the guest has told of it.

What a guest tells is encrypted by it with the key of the server, and kept as it came. Spec: API-123, API-174,
API-175.
"""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute import server_records
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, required
from kilonova.domain.instance import GUEST_PASSWORD


async def change(call: Call) -> None:
    await call.cloud.compute.change_password(call.context, call.server, call.body["changePassword"]["adminPass"])


async def show(call: Call) -> Any:
    return {"password": call.server.instance.system_metadata.get(GUEST_PASSWORD, "")}


async def clear(call: Call) -> None:
    await server_records.change(call, call.server, lambda stored: {"system_metadata": {
        name: value for name, value in stored.system_metadata.items() if name != GUEST_PASSWORD
    }})


_PATH = "/servers/{server_id}/os-server-password"
_PASSWORD = Object({"adminPass": required(Text())})

ROUTES = [
    server_action("changePassword", change, Rule("os-admin-password", Audience.MEMBER), _PASSWORD),
    Route(method="GET", path=_PATH, handler=show, look_up=find_server,
          rule=Rule("os-server-password:show", Audience.READER), answer=answers.GUEST_PASSWORD),
    Route(method="DELETE", path=_PATH, handler=clear, look_up=find_server, status=204,
          rule=Rule("os-server-password:clear", Audience.MEMBER)),
]
