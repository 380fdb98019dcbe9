"""Asking a host what its hypervisor counts for a guest. It changes nothing and leaves no fault. Spec: DIA-06."""

from __future__ import annotations

from kilonova.agent.reports import DiagnosticsQuery, OwnDiagnosticsQuery
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Located
from kilonova.domain.errors import InstanceNotReady
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.operations.host_query import ask_host


async def own(bus: Bus, server: Located) -> OwnDiagnostics:
    """In the driver's own form."""
    return (await ask_host(bus, _host(server), OwnDiagnosticsQuery(uuid=server.instance.uuid))).own_diagnostics


async def common(bus: Bus, server: Located) -> Diagnostics:
    """In the form of all drivers."""
    answer = await ask_host(bus, _host(server), DiagnosticsQuery(uuid=server.instance.uuid))
    assert answer.diagnostics is not None
    return answer.diagnostics


def _host(server: Located) -> str:
    if server.instance.host is None:
        raise InstanceNotReady(server.instance.uuid)
    return server.instance.host
