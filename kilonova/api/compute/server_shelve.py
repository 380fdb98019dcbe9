"""Shelving servers. Spec: API-133 to API-135."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.feature_blocks import refuse_with_encrypted_disks, refuse_with_shares, refuse_with_tpm
from kilonova.api.compute.field_types import HOST
from kilonova.api.compute.server_actions import server_action
from kilonova.api.policy import Audience, Rule
from kilonova.api.schema import Object, Text, nullable, optional, required
from kilonova.db import build_requests
from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.domain.states import VmState
from kilonova.operations.shelve_offload import SHELVE_OFFLOAD, OffloadServer
from kilonova.services.placement import Pin

UNSHELVE_RULE = Rule("os-shelve:unshelve", Audience.MEMBER)
TO_HOST = Rule("os-shelve:unshelve_to_host", Audience.ADMIN)


async def shelve(call: Call) -> None:
    refuse_with_tpm(call.server.instance, "shelve")
    refuse_with_encrypted_disks(call.server.instance)
    refuse_with_shares(call.server.instance, "shelve")
    await call.cloud.compute.shelve(call.context, call.server)


async def offload(call: Call) -> None:
    await call.cloud.compute.ask(call.context, call.server, SHELVE_OFFLOAD, OffloadServer())


async def unshelve(call: Call) -> None:
    """A server that is still on its host goes nowhere else. Spec: API-135, API-577, API-591."""
    asked = (call.body["unshelve"] if call.version >= 77 else None) or {}
    if "host" in asked:
        call.require(TO_HOST)
    instance = call.server.instance
    if asked and instance.vm_state is not VmState.SHELVED_OFFLOADED:
        raise Conflict(f"Server {instance.uuid} is not offloaded, so no zone or host can be chosen for it.")
    host = asked.get("host")
    await _check_place(call, asked, host)
    pin = Pin(asked["availability_zone"]) if "availability_zone" in asked else None
    await call.cloud.compute.unshelve(call.context, call.server, host=host, pin=pin)


async def _check_place(call: Call, asked: dict[str, Any], host: str | None) -> None:
    """Raises InvalidInput: no such zone or host. Conflict: the host is in another zone than the server is tied to."""
    zone, hosts = asked.get("availability_zone"), call.cloud.hosts
    if zone is not None and not await hosts.zone_available(zone):
        raise InvalidInput("The requested availability zone is not available")
    if host is None:
        return
    if not await hosts.exists(host=host, node=None):
        raise InvalidInput(f"Compute host {host} could not be found.")
    if "availability_zone" not in asked:
        uuid = call.server.instance.uuid
        spec = await call.cloud.cells.api.read(lambda conn: build_requests.spec_of(conn, uuid))
        zone = spec.availability_zone if spec is not None else None
    if zone is not None and await hosts.zone_of(host) not in (zone, None):
        raise Conflict(f"Host {host} is not in availability zone {zone}.")


_ZONE = nullable(Object({"availability_zone": required(Text(1, 255))}))
_PLACE = nullable(Object({"availability_zone": optional(nullable(Text(1, 255))), "host": optional(HOST)}))

ROUTES = [
    server_action("shelve", shelve, Rule("os-shelve:shelve", Audience.MEMBER)),
    server_action("shelveOffload", offload, Rule("os-shelve:shelve_offload", Audience.ADMIN)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, until=76, rules=(TO_HOST,)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, _ZONE, since=77, until=90, rules=(TO_HOST,)),
    server_action("unshelve", unshelve, UNSHELVE_RULE, _PLACE, since=91, rules=(TO_HOST,)),
]
