"""What is put into a guest from outside: an interrupt, network information. Spec: API-140, API-142."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Null
from kilonova.operations.crash_dump import TRIGGER_CRASH_DUMP, TriggerCrashDump
from kilonova.operations.inject_network_info import INJECT_NETWORK_INFO, InjectNetworkInfo


async def trigger_crash_dump(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, TRIGGER_CRASH_DUMP, TriggerCrashDump())


async def inject_network_info(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, INJECT_NETWORK_INFO, InjectNetworkInfo())


ROUTES = [
    server_action("trigger_crash_dump", trigger_crash_dump, Rule("servers:trigger_crash_dump", Audience.MEMBER),
                  Null(), since=17),
    server_action("injectNetworkInfo", inject_network_info,
                  Rule("os-admin-actions:inject_network_info", Audience.ADMIN)),
]
