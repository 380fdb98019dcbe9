"""Actions that make a server stand still and go on. Spec: API-117, API-118."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer, UnpauseServer


async def pause(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, PAUSE_SERVER, PauseServer())


async def unpause(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, UNPAUSE_SERVER, UnpauseServer())


ROUTES = [
    server_action("pause", pause, Rule("os-pause-server:pause", Audience.MEMBER)),
    server_action("unpause", unpause, Rule("os-pause-server:unpause", Audience.MEMBER)),
]
