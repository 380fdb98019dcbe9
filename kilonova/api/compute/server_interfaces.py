"""Interfaces of a server: seen, attached and detached. Spec: API-170 to API-173, API-459, API-549, API-570."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import attachments as answers
from kilonova.api.compute.field_types import ADDRESS, TAG, UUID
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.compute.server_networks import ATTACH_EXTERNAL, is_foreign, refuse_without_port
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import ListOf, Object, nullable, optional, required
from kilonova.domain.errors import Forbidden, InvalidInput, NetworkNotFound, NotFound, PortInUse, PortNotFound
from kilonova.domain.network import RequestedNetwork
from kilonova.operations.attach_interface import ATTACH_INTERFACE, AttachInterface, attached_port
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.services.network import NetworkSummary, PortSummary


def _view(call: Call, port: PortSummary, tags: dict[str, str | None]) -> dict[str, Any]:
    """Spec: API-459."""
    shown: dict[str, Any] = {
        "net_id": port.network_id,
        "port_id": port.id,
        "mac_addr": port.mac,
        "port_state": port.status,
        "fixed_ips": [{"ip_address": ip.address, "subnet_id": ip.subnet_id} for ip in port.fixed_ips] or None,
    }
    if call.version >= 70:
        shown["tag"] = tags.get(port.id)
    return shown


def _tags(call: Call) -> dict[str, str | None]:
    return {vif.id: vif.tag for vif in call.server.instance.network_info}


async def index(call: Call) -> Any:
    ports = await call.cloud.networks.ports_of(call.server.instance.uuid)
    tags = _tags(call)
    return {"interfaceAttachments": [_view(call, port, tags) for port in ports]}


async def show(call: Call) -> Any:
    port_id, uuid = call.path["id"], call.server.instance.uuid
    try:
        port = await call.cloud.networks.port(call.context, port_id)
    except PortNotFound:
        port = None
    if port is None or port.device_id != uuid:
        raise NotFound(f"Instance {uuid} does not have a port with id {port_id}")
    return {"interfaceAttachment": _view(call, port, _tags(call))}


async def create(call: Call) -> Any:
    """Answers when the guest has the interface."""
    asked = (call.body or {}).get("interfaceAttachment") or {}
    wanted = await _wanted(call, asked)
    record = await call.cloud.compute.ask_and_wait(
        call.context, call.server, ATTACH_INTERFACE, AttachInterface(wanted)
    )
    port_id = attached_port(record)
    (port,) = [p for p in await call.cloud.networks.ports_of(call.server.instance.uuid) if p.id == port_id]
    return {"interfaceAttachment": _view(call, port, {port_id: wanted.tag})}


async def delete(call: Call) -> None:
    """Answers when it is accepted; a guest may take its time to let go."""
    await call.cloud.compute.ask(call.context, call.server, DETACH_INTERFACE, DetachInterface(call.path["id"]))


async def _wanted(call: Call, asked: dict[str, Any]) -> RequestedNetwork:
    """What to attach. Raises the errors of API-171."""
    network_id, port_id, tag = asked.get("net_id"), asked.get("port_id"), asked.get("tag")
    fixed_ip = asked["fixed_ips"][0]["ip_address"] if asked.get("fixed_ips") else None
    if network_id and port_id:
        raise InvalidInput("Must not input both network_id and port_id")
    if fixed_ip and not network_id:
        raise InvalidInput("Must input network_id when request IP address")
    if port_id:
        port = await call.cloud.networks.port(call.context, port_id)
        if port.device_id:
            raise PortInUse(port_id)
        if not port.addresses:
            raise InvalidInput(f"Port {port_id} requires a FixedIP in order to be used.")
        return RequestedNetwork(port_id=port_id, tag=tag, need=port.need)
    if network_id:
        network = await _check_network(call, network_id)
        foreign = is_foreign(network, call.server.instance.project_id)
        return RequestedNetwork(network_id=network_id, fixed_ip=fixed_ip, tag=tag, foreign=foreign)
    return RequestedNetwork(network_id=await _only_network(call), tag=tag)


async def _check_network(call: Call, network_id: str) -> NetworkSummary:
    found = await call.cloud.networks.networks(call.context, (network_id,))
    if not found:
        raise NetworkNotFound(network_id)
    if found[0].external and not call.allows(ATTACH_EXTERNAL):
        raise Forbidden(f"It is not allowed to create an interface on external network {network_id}")
    if not found[0].has_subnets:
        raise InvalidInput(f"Network {network_id} requires a subnet in order to boot instances on.")
    refuse_without_port(found[0])
    return found[0]


async def _only_network(call: Call) -> str:
    """The one network of the project, or the one that it may share. Raises InvalidInput: none, or several."""
    owner = call.server.instance.project_id
    usable = [
        network for network in await call.cloud.networks.networks(call.context)
        if network.has_subnets and not network.external and not network.physical_network
        and (network.shared or network.project_id == owner)
    ]
    own = [network for network in usable if network.project_id == owner] or usable
    if not own:
        raise InvalidInput(f"No specific network was requested and none are available for project '{owner}'.")
    if len(own) > 1:
        raise InvalidInput("Multiple possible networks found, use a Network ID to be more specific.")
    return own[0].id


_FIXED_IPS = ListOf(Object({"ip_address": required(ADDRESS)}), 1, 1)
_BODY = nullable(Object({"interfaceAttachment": optional(nullable(Object({
    "net_id": optional(UUID),
    "port_id": optional(UUID),
    "fixed_ips": optional(_FIXED_IPS),
    "tag": optional(TAG, since=49),
})))}))
_PATH = "/servers/{server_id}/os-interface"

ROUTES = [
    Route(method="GET", path=_PATH, handler=index, look_up=find_server,
          rule=Rule("os-attach-interfaces:list", Audience.READER), answer=answers.INTERFACES),
    Route(method="POST", path=_PATH, handler=create, look_up=find_server, body=_BODY,
          rule=Rule("os-attach-interfaces:create", Audience.MEMBER), rules=(ATTACH_EXTERNAL,),
          answer=answers.INTERFACE),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=show, look_up=find_server,
          rule=Rule("os-attach-interfaces:show", Audience.READER), answer=answers.INTERFACE),
    Route(method="DELETE", path=f"{_PATH}/{{id}}", handler=delete, look_up=find_server, status=202,
          rule=Rule("os-attach-interfaces:delete", Audience.MEMBER)),
]
