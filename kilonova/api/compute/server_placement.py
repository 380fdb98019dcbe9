"""Where a new server wants to run: zone, host, hints. Spec: API-109, API-610, API-611."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.policy import Audience, Rule
from kilonova.domain.errors import InvalidInput

FORCED_HOST = Rule("servers:create:forced_host", Audience.ADMIN)
REQUESTED_DESTINATION = Rule("compute:servers:create:requested_destination", Audience.ADMIN)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """zone: None for any. force_host, force_node: filters do not run. host, node: filters run."""

    zone: str | None = None
    force_host: str | None = None
    force_node: str | None = None
    host: str | None = None
    node: str | None = None


async def wanted_place(call: Call, body: dict[str, Any]) -> Wanted:
    """Read and check availability_zone, host and hypervisor_hostname.

    Raises:
        InvalidInput, PolicyNotAuthorized.
    """
    zone, force_host, force_node = _zone(body.get("availability_zone"))
    forced = force_host is not None or force_node is not None
    if forced:
        call.require(FORCED_HOST)
    host, node = body.get("host"), body.get("hypervisor_hostname")
    if host or node:
        call.require(REQUESTED_DESTINATION)
        if forced:
            raise InvalidInput("host and hypervisor_hostname cannot be given with a host in availability_zone.")
    hosts = call.cloud.hosts
    if host or node:
        if not await hosts.exists(host=host, node=node):
            raise InvalidInput(f"Compute host {host or node} could not be found.")
    elif forced and not await hosts.exists(host=force_host, node=force_node):
        raise InvalidInput(f"Compute host {force_host or force_node} could not be found.")
    zone = zone or call.cloud.options.default_schedule_zone or None
    if zone and not forced and not await hosts.zone_available(zone):
        raise InvalidInput("The requested availability zone is not available")
    return Wanted(zone=zone, force_host=force_host, force_node=force_node, host=host, node=node)


def _zone(text: str | None) -> tuple[str | None, str | None, str | None]:
    """Split `zone[:host[:node]]`."""
    if text is None:
        return None, None, None
    parts = text.split(":")
    if len(parts) > 3:
        raise InvalidInput("Unable to parse availability_zone")
    zone, host, node = (part or None for part in (*parts, "", "")[:3])
    return zone, host, node


def scheduler_hints(body: dict[str, Any]) -> dict[str, list[str]]:
    """The hints as lists of texts."""
    asked = body.get("os:scheduler_hints", body.get("OS-SCH-HNT:scheduler_hints")) or {}
    return {key: _texts(value) for key, value in asked.items()}


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item if isinstance(item, str) else msgspec.json.encode(item).decode() for item in items]
