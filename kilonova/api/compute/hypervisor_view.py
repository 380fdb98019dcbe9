"""How a hypervisor is shown. Spec: API-454."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.service_hosts import KnownNode
from kilonova.cells.registry import Cell
from kilonova.db import host_records
from kilonova.db.host_records import HostServer, Portion

EMPTY: dict[str, Any] = {}
_NOTHING = Portion(0, 0)


class Facts(msgspec.Struct, frozen=True):
    """What is known of the nodes of an answer beside their records, by uuid of the node."""

    servers: Mapping[str, Sequence[HostServer]]
    portions: Mapping[str, Mapping[str, Portion]]


async def facts_of(call: Call, nodes: Sequence[KnownNode], *, servers: bool) -> Facts:
    """Read what the views of these nodes need. servers: the servers on them, too."""
    on_nodes: dict[str, list[HostServer]] = {node.record.uuid: [] for node in nodes}
    if servers:
        for cell in dict.fromkeys(node.service.cell.name for node in nodes):
            there = [node for node in nodes if node.service.cell.name == cell]
            for found, uuid in await _servers_on(there[0].service.cell, there):
                on_nodes[uuid].append(found)
    portions: dict[str, dict[str, Portion]] = {}
    if call.version <= 87:
        uuids = list(on_nodes)
        portions = await call.cloud.cells.api.read(lambda conn: host_records.portions(conn, uuids))
    return Facts(on_nodes, portions)


async def _servers_on(cell: Cell, nodes: Sequence[KnownNode]) -> list[tuple[HostServer, str]]:
    names = {node.record.host for node in nodes}
    by_place = {(node.record.host, node.record.node): node.record.uuid for node in nodes}
    found = await cell.database.read(lambda conn: host_records.servers_on(conn, names))
    places = [(server, by_place.get((server.host, server.node or ""))) for server in found]
    return [(server, uuid) for server, uuid in places if uuid is not None]


def brief(node: KnownNode, version: int) -> dict[str, Any]:
    """The view of lists."""
    return {
        "id": node.record.uuid if version >= 53 else node.record.id,
        "hypervisor_hostname": node.record.node,
        "state": "up" if node.service.up else "down",
        "status": "disabled" if node.service.record.disabled else "enabled",
    }


def servers_entry(facts: Facts, node: KnownNode, *, empty: bool) -> dict[str, Any]:
    """The servers of a node; nothing at all when there are none, unless `empty`."""
    found = [{"name": server.name, "uuid": server.uuid} for server in facts.servers[node.record.uuid]]
    return {"servers": found} if found or empty else EMPTY


def full(node: KnownNode, facts: Facts, version: int) -> dict[str, Any]:
    """The view of details."""
    inventory, service = node.record.inventory, node.service.record
    shown = {
        **brief(node, version),
        "hypervisor_type": inventory.hypervisor_type,
        "hypervisor_version": inventory.hypervisor_version,
        "host_ip": inventory.host_ip,
        "service": {
            "id": service.uuid if version >= 53 else service.id,
            "host": service.host,
            "disabled_reason": service.disabled_reason,
        },
    }
    if version >= 88:
        return {**shown, "uptime": inventory.uptime if node.service.up else None}
    cpu_info: Any = inventory.cpu_info
    if version >= 28:
        cpu_info = msgspec.json.decode(cpu_info) if cpu_info else {}
    return {**shown, "cpu_info": cpu_info, **_figures(node, facts)}


def _figures(node: KnownNode, facts: Facts) -> dict[str, int]:
    """What the node has and what of it is used; what the host keeps for itself counts as used memory."""
    inventory = node.record.inventory
    portions = facts.portions.get(node.record.uuid, {})
    servers = facts.servers[node.record.uuid]
    memory = portions.get("MEMORY_MB", _NOTHING)
    disk = portions.get("DISK_GB", _NOTHING)
    memory_used, disk_used = memory.used + memory.reserved, disk.used + disk.reserved
    return {
        "vcpus": inventory.vcpus,
        "vcpus_used": sum(portions.get(name, _NOTHING).used for name in ("VCPU", "PCPU")),
        "memory_mb": inventory.memory_mib,
        "memory_mb_used": memory_used,
        "free_ram_mb": inventory.memory_mib - memory_used,
        "local_gb": inventory.local_gib,
        "local_gb_used": disk_used,
        "free_disk_gb": inventory.local_gib - disk_used,
        "disk_available_least": inventory.disk_available_gib,
        "running_vms": len(servers),
        "current_workload": sum(server.busy for server in servers),
    }


def statistics_of(nodes: Sequence[KnownNode], facts: Facts) -> dict[str, int]:
    """Sums over nodes. Spec: API-235."""
    names = (
        "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used",
        "free_disk_gb", "disk_available_least", "running_vms", "current_workload",
    )
    figures = [_figures(node, facts) for node in nodes]
    return {"count": len(nodes), **{name: sum(one[name] for one in figures) for name in names}}
