"""The NUMA topology of a server, from 2.78. Spec: API-194, API-473."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import usage as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.db.placement.layouts import layout_of
from kilonova.domain.instance import Instance
from kilonova.shapes.host import Place
from kilonova.shapes.shape import shape_of

INDEX = Rule("compute:server:topology:index", Audience.READER)
HOST = Rule("compute:server:topology:host:index", Audience.ADMIN)


async def show(call: Call) -> Any:
    """What the claim of the server's host has decided."""
    server, api = call.server.instance, call.cloud.cells.api
    layout = await api.read(lambda conn: layout_of(conn, server.uuid, server.host)) if server.host else None
    if layout is None:
        return {"nodes": [], "pagesize_kb": None}
    of_host = call.allows(HOST)
    return {
        "nodes": [_node(server, place, of_host) for place in layout.places],
        "pagesize_kb": layout.places[0].page_kib,
    }


def _node(server: Instance, place: Place, of_host: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "memory_mb": place.memory_mib, "vcpu_set": list(place.cpus), "siblings": _siblings(server, place),
    }
    if of_host:
        shown["host_node"] = place.host_cell
        shown["cpu_pinning"] = {str(vcpu): cpu for vcpu, cpu in sorted(place.pins.items())}
    return shown


def _siblings(server: Instance, place: Place) -> list[list[int]]:
    """The guest's CPUs that are threads of one core of the guest."""
    threads = shape_of(server.flavor, server.image).cpu.topology.threads
    if threads == 1:
        return []
    cores: dict[int, list[int]] = {}
    for vcpu in place.cpus:
        cores.setdefault(vcpu // threads, []).append(vcpu)
    return list(cores.values())


ROUTES = [
    Route(method="GET", path="/servers/{server_id}/topology", handler=show, look_up=find_server, rule=INDEX,
          rules=(HOST,), since=78, answer=answers.TOPOLOGY),
]
