"""The NUMA topology of a server, from 2.78. Servers have none so far. Spec: API-194, API-473."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route

INDEX = Rule("compute:server:topology:index", Audience.READER)
HOST = Rule("compute:server:topology:host:index", Audience.ADMIN)


async def show(call: Call) -> Any:
    return {"nodes": [], "pagesize_kb": None}


ROUTES = [
    Route(method="GET", path="/servers/{server_id}/topology", handler=show, look_up=find_server, rule=INDEX,
          rules=(HOST,), since=78, answer=answers.TOPOLOGY),
]
