"""Fixed addresses of a server, until 2.43. Spec: API-151, API-152, API-544."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.field_types import ADDRESS
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Object, Text, required
from kilonova.operations.fixed_ip import ADD_FIXED_IP, REMOVE_FIXED_IP, AddFixedIp, RemoveFixedIp


async def add(call: Call) -> None:
    request = AddFixedIp(call.body["addFixedIp"]["networkId"])
    await call.cloud.compute.ask_and_wait(call.context, call.server, ADD_FIXED_IP, request)


async def remove(call: Call) -> None:
    request = RemoveFixedIp(call.body["removeFixedIp"]["address"])
    await call.cloud.compute.ask_and_wait(call.context, call.server, REMOVE_FIXED_IP, request)


ROUTES = [
    server_action("addFixedIp", add, Rule("os-multinic:add", Audience.MEMBER),
                  Object({"networkId": required(Text(1, 255))}), until=43),
    server_action("removeFixedIp", remove, Rule("os-multinic:remove", Audience.MEMBER),
                  Object({"address": required(ADDRESS)}), until=43),
]
