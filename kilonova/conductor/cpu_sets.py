"""Whether a host that starts still has the CPUs that its servers were built for. Spec: INI-024 to INI-030, INI-033."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import structlog

from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import Instance
from kilonova.shapes.cpu import Policy
from kilonova.shapes.host import HostTopology, Layout
from kilonova.shapes.shape import shape_of

log = structlog.get_logger(__name__)

DEDICATED, SHARED = "agent.cpu_dedicated_set", "agent.cpu_shared_set"


def policies(servers: Iterable[Instance]) -> dict[str, Policy]:
    """By server. One whose flavor contradicts itself counts as unpinned: it is not started anyway."""
    found: dict[str, Policy] = {}
    for server in servers:
        try:
            found[server.uuid] = shape_of(server.flavor, server.image).cpu.policy
        except InvalidInput:
            found[server.uuid] = "shared"
    return found


def objection(topology: HostTopology, servers: Mapping[str, Policy]) -> str:
    """Why the host cannot serve with its sets of CPUs, "" if it can.

    Args:
        servers: policies of the servers that are there and not deleted.
    """
    has_dedicated = any(cell.dedicated for cell in topology.cells)
    has_shared = any(cell.shared for cell in topology.cells)
    for uuid, policy in sorted(servers.items()):
        if policy != "shared" and not has_dedicated:
            return f"Server {uuid} has CPUs of its own, but no CPU of the host is dedicated; set {DEDICATED}."
        if policy != "dedicated" and not has_shared:
            return f"Server {uuid} runs on shared CPUs, but the host has none; set {SHARED}."
    return ""


def warn_of_strays(host: str, topology: HostTopology, layouts: Mapping[str, Layout]) -> None:
    """Servers keep the CPUs that they have, also those that are no longer meant for them; but that is told."""
    allowed = {cpu for cell in topology.cells for cpu in cell.dedicated}
    for uuid, layout in sorted(layouts.items()):
        strays = sorted({cpu for place in layout.places for cpu in place.pins.values()} - allowed)
        if strays:
            log.warning("server is pinned to CPUs that are not dedicated", host=host, instance=uuid, cpus=strays)
