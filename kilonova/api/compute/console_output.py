"""What a guest wrote to its console. Spec: API-144."""

from __future__ import annotations

import re
from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import servers as answers
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Integer, Object, nullable, optional

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]")
_LENGTH = Object({"length": optional(nullable(Integer(-1)))})


async def console_output(call: Call) -> Any:
    length = call.body["os-getConsoleOutput"].get("length")
    lines = None if length is None or length < 0 else int(length)
    text = await call.cloud.compute.console_output(call.context, call.server, lines)
    return {"output": _CONTROL.sub("", text)}


_RULE = Rule("os-console-output", Audience.MEMBER)

ROUTES = [server_action("os-getConsoleOutput", console_output, _RULE, _LENGTH, status=200,
                        answer=answers.CONSOLE_OUTPUT)]
