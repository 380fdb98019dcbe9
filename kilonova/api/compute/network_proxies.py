"""Networks and floating IPs as the Compute API once had them. Spec: API-153, API-154, API-276 to API-284, API-536,
API-544."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.field_types import ADDRESS, is_ipv4
from kilonova.api.compute.server_actions import server_action
from kilonova.api.compute.server_lookup import is_uuid
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, nullable, optional, required
from kilonova.domain.errors import Conflict, InvalidInput, NetworkNotFound, NotFound
from kilonova.services.network import FloatingIpSummary, NetworkSummary

LAST = 35
"""Microversion after which clients ask the network service itself."""

_NULLS = ("cidr", "netmask", "gateway", "broadcast", "dns1", "dns2", "cidr_v6", "gateway_v6", "netmask_v6")
_ADMIN_NULLS = (
    "created_at", "updated_at", "deleted_at", "deleted", "injected", "bridge", "vlan", "vpn_public_address",
    "vpn_public_port", "vpn_private_address", "dhcp_start", "project_id", "host", "bridge_interface", "multi_host",
    "priority", "rxtx_base", "mtu", "dhcp_server", "enable_dhcp", "share_address",
)


def _network(call: Call, network: NetworkSummary) -> dict[str, Any]:
    nulls = (*_NULLS, *_ADMIN_NULLS) if call.context.is_admin else _NULLS
    return {"id": network.id, "label": network.name, **dict.fromkeys(nulls)}


def _tenant_network(_call: Call, network: NetworkSummary) -> dict[str, Any]:
    return {"id": network.id, "label": network.name, "cidr": "None"}


async def _one(call: Call) -> NetworkSummary:
    found = await call.cloud.networks.networks(call.context, (call.path["id"],))
    if not found:
        raise NetworkNotFound(call.path["id"])
    return found[0]


async def networks(call: Call) -> Any:
    return {"networks": [_network(call, found) for found in await call.cloud.networks.networks(call.context)]}


async def network(call: Call) -> Any:
    return {"network": _network(call, await _one(call))}


async def tenant_networks(call: Call) -> Any:
    return {"networks": [_tenant_network(call, found) for found in await call.cloud.networks.networks(call.context)]}


async def tenant_network(call: Call) -> Any:
    return {"network": _tenant_network(call, await _one(call))}


async def pools(call: Call) -> Any:
    return {"floating_ip_pools": [{"name": found.name} for found in await _external(call)]}


async def _external(call: Call) -> list[NetworkSummary]:
    return [found for found in await call.cloud.networks.networks(call.context) if found.external]


def _floating(item: FloatingIpSummary) -> dict[str, Any]:
    return {
        "id": item.id, "ip": item.address, "pool": item.pool, "fixed_ip": item.fixed_address,
        "instance_id": item.device_id or None,
    }


async def floating_ips(call: Call) -> Any:
    return {"floating_ips": [_floating(item) for item in await call.cloud.networks.floating_ips(call.context)]}


async def floating_ip(call: Call) -> Any:
    return {"floating_ip": _floating(await _own(call))}


async def _own(call: Call) -> FloatingIpSummary:
    id_ = call.path["id"]
    if not is_uuid(id_):
        raise InvalidInput(f"Invalid ID received {id_}.")
    for item in await call.cloud.networks.floating_ips(call.context):
        if item.id == id_:
            return item
    raise NotFound(f"Floating IP not found for ID {id_}")


async def create_floating_ip(call: Call) -> Any:
    """Without a pool, from the only one that there is."""
    pool = (call.body or {}).get("pool")
    usable = [found for found in await _external(call) if pool in (None, found.id, found.name)]
    if not usable:
        raise NotFound(f"Floating IP pool {pool} not found." if pool else "Floating IP pool not found.")
    if len(usable) > 1:
        raise InvalidInput("Several floating IP pools match: name one.")
    try:
        made = await call.cloud.networks.create_floating_ip(call.context, usable[0].id)
    except Conflict as error:
        raise NotFound(f"No more floating IPs in pool {usable[0].name}.") from error
    return {"floating_ip": _floating(made)}


async def delete_floating_ip(call: Call) -> None:
    await call.cloud.networks.delete_floating_ip(call.context, (await _own(call)).id)


async def add_floating_ip(call: Call) -> None:
    asked, instance = call.body["addFloatingIp"], call.server.instance
    item = await _by_address(call, asked["address"])
    fixed = [(ip.address, vif.id) for vif in instance.network_info for ip in vif.fixed_ips if is_ipv4(ip.address)]
    if not instance.network_info:
        raise InvalidInput("Instance network is not ready yet")
    if not fixed:
        raise InvalidInput("No fixed IPs associated to instance")
    wanted = asked.get("fixed_address") or fixed[0][0]
    ports = [port_id for address, port_id in fixed if address == wanted]
    if not ports:
        raise InvalidInput("Specified fixed address not assigned to instance")
    try:
        await call.cloud.networks.associate_floating_ip(call.context, item.id, ports[0], wanted)
    except Conflict as error:
        raise InvalidInput(error.message) from error


async def remove_floating_ip(call: Call) -> None:
    item = await _by_address(call, call.body["removeFloatingIp"]["address"])
    if item.device_id != call.server.instance.uuid:
        raise Conflict(f"Floating IP {item.address} is not associated with instance {call.server.instance.uuid}.")
    await call.cloud.networks.associate_floating_ip(call.context, item.id, None)


async def _by_address(call: Call, address: str) -> FloatingIpSummary:
    for item in await call.cloud.networks.floating_ips(call.context):
        if item.address == address:
            return item
    raise NotFound(f"Floating IP not found for address {address}")


def _route(method: str, path: str, handler: Any, rule: str, audience: Audience, **more: Any) -> Route:
    return Route(method=method, path=path, handler=handler, rule=Rule(rule, audience), until=LAST, **more)


_POOL = nullable(Object({"pool": optional(nullable(Text(1, 255)))}))
_ADD = Object({"address": required(ADDRESS), "fixed_address": optional(nullable(ADDRESS))})
_REMOVE = Object({"address": required(ADDRESS)})

ROUTES = [
    _route("GET", "/os-networks", networks, "os-networks:list", Audience.READER),
    _route("GET", "/os-networks/{id}", network, "os-networks:show", Audience.READER),
    _route("GET", "/os-tenant-networks", tenant_networks, "os-tenant-networks:list", Audience.READER),
    _route("GET", "/os-tenant-networks/{id}", tenant_network, "os-tenant-networks:show", Audience.READER),
    _route("GET", "/os-floating-ip-pools", pools, "os-floating-ip-pools", Audience.ANY),
    _route("GET", "/os-floating-ips", floating_ips, "os-floating-ips:list", Audience.READER),
    _route("POST", "/os-floating-ips", create_floating_ip, "os-floating-ips:create", Audience.MEMBER, body=_POOL),
    _route("GET", "/os-floating-ips/{id}", floating_ip, "os-floating-ips:show", Audience.READER),
    _route("DELETE", "/os-floating-ips/{id}", delete_floating_ip, "os-floating-ips:delete", Audience.MEMBER,
           status=202),
    server_action("addFloatingIp", add_floating_ip, Rule("os-floating-ips:add", Audience.MEMBER), _ADD, until=43),
    server_action("removeFloatingIp", remove_floating_ip, Rule("os-floating-ips:remove", Audience.MEMBER), _REMOVE,
                  until=43),
]
