"""Shelving servers. Spec: API-133, API-135."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.compute.feature_blocks import refuse_with_encrypted_disks, refuse_with_tpm
from kilonova.api.compute.field_types import HOST
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Object, Text, nullable, optional, required
from kilonova.domain.errors import Conflict
from kilonova.operations.shelve import UNSHELVE, UnshelveServer

UNSHELVE_RULE = Rule("os-shelve:unshelve", Audience.MEMBER)
TO_HOST = Rule("os-shelve:unshelve_to_host", Audience.ADMIN)


async def shelve(call: Call) -> None:
    refuse_with_tpm(call.server.instance, "shelve")
    refuse_with_encrypted_disks(call.server.instance)
    await call.cloud.compute.shelve(call.context, call.server)


async def unshelve(call: Call) -> None:
    """A server that is still on its host goes nowhere else."""
    asked = call.body["unshelve"] if call.version >= 77 else None
    if asked is not None:
        if asked.get("host") is not None:
            call.require(TO_HOST)
        raise Conflict(f"Server {call.server.instance.uuid} is not offloaded, so no zone or host can be chosen for it.")
    await call.cloud.compute.ask(call.context, call.server, UNSHELVE, UnshelveServer())


_ZONE = nullable(Object({"availability_zone": required(Text(1, 255))}))
_PLACE = nullable(Object({"availability_zone": optional(nullable(Text(1, 255))), "host": optional(HOST)}))

ROUTES = [
    server_action("shelve", shelve, Rule("os-shelve:shelve", Audience.MEMBER)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, until=76, rules=(TO_HOST,)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, _ZONE, since=77, until=90, rules=(TO_HOST,)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, _PLACE, since=91, rules=(TO_HOST,)),
]
