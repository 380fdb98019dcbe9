"""How a flavor is shown, and which ones a caller sees. Spec: API-453."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from kilonova.api.call import Call
from kilonova.api.policy import Audience, Rule
from kilonova.db import flavors
from kilonova.domain.flavor import Flavor

SHOW_EXTRA_SPECS = Rule("os-flavor-extra-specs:index", Audience.READER)


async def find_visible(call: Call, flavor_id: str) -> Flavor:
    """The flavor, if the caller may see it. Raises FlavorNotFound. Spec: API-203."""
    viewer = seen_as(call)
    return await call.cloud.cells.api.read(lambda conn: flavors.visible(conn, flavor_id, viewer))


def seen_as(call: Call) -> str | None:
    """The project whose private flavors the caller sees; None for all."""
    return None if call.context.is_admin else call.context.project_id or ""


def brief(call: Call, flavor: Flavor) -> dict[str, Any]:
    """The entry of a list."""
    shown: dict[str, Any] = {
        "id": flavor.flavor_id, "name": flavor.name,
        "links": call.links.pair(f"/flavors/{quote(flavor.flavor_id, safe='')}"),
    }
    if call.version >= 55:
        shown["description"] = flavor.description
    return shown


def full(call: Call, flavor: Flavor) -> dict[str, Any]:
    """Everything that the microversion knows and the caller may see."""
    version = call.version
    shown = {
        **brief(call, flavor),
        "ram": flavor.memory_mib,
        "disk": flavor.root_gib,
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral_gib,
        "swap": flavor.swap_mib or (0 if version >= 75 else ""),
        "vcpus": flavor.vcpus,
        "os-flavor-access:is_public": flavor.is_public,
    }
    if version <= 101:
        shown["OS-FLV-DISABLED:disabled"] = flavor.disabled
        shown["rxtx_factor"] = flavor.rxtx_factor or ""
    if version >= 61 and call.allows(SHOW_EXTRA_SPECS):
        shown["extra_specs"] = flavor.extra_specs
    return shown
