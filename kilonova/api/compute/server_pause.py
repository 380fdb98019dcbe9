"""Actions that make a server stand still and go on. Spec: API-117 to API-120."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.feature_blocks import refuse_saving_memory, refuse_with_devices, refuse_with_shares
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.operations.pause import PAUSE_SERVER, UNPAUSE_SERVER, PauseServer, UnpauseServer
from kilonova.operations.suspend import RESUME_SERVER, SUSPEND_SERVER, ResumeServer, SuspendServer


async def pause(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, PAUSE_SERVER, PauseServer())


async def unpause(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, UNPAUSE_SERVER, UnpauseServer())


async def suspend(call: Call) -> None:
    refuse_saving_memory(call.server.instance)
    refuse_with_shares(call.server.instance, "suspend")
    refuse_with_devices(call.server.instance, "suspend")
    await call.cloud.compute.ask(call.context, call.server, SUSPEND_SERVER, SuspendServer())


async def resume(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, RESUME_SERVER, ResumeServer())


ROUTES = [
    server_action("pause", pause, Rule("os-pause-server:pause", Audience.MEMBER)),
    server_action("unpause", unpause, Rule("os-pause-server:unpause", Audience.MEMBER)),
    server_action("suspend", suspend, Rule("os-suspend-server:suspend", Audience.MEMBER)),
    server_action("resume", resume, Rule("os-suspend-server:resume", Audience.MEMBER)),
]
