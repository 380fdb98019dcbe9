"""The networks a new server asks for: are they there, may the caller use them, are they unambiguous.

Spec: API-108, API-109, API-612.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.server_lookup import is_uuid
from kilonova.api.policy import Audience, Rule
from kilonova.domain.errors import Conflict, Forbidden, InvalidInput, NetworkNotFound, PortNotFound
from kilonova.domain.network import PortNeed, RequestedNetwork
from kilonova.services.network import NetworkSummary

ATTACH_EXTERNAL = Rule("network:attach_external_network", Audience.ADMIN)
PORT_RESOURCES = 72
"""From this microversion on ports may ask for resources of their host."""
ATTACH_NETWORK = Rule("servers:create:attach_network", Audience.MEMBER)

Requested = tuple[RequestedNetwork, ...] | None


async def requested_networks(call: Call, asked: Any, count: int) -> Requested:
    """What to give a new server.

    Args:
        asked: `networks` of the body: None when absent, "auto", "none" or a list of entries.
        count: servers of the request.

    Returns:
        The interfaces; an empty tuple for none; None to let the network service make what is needed.

    Raises:
        InvalidInput, Conflict, Forbidden, PolicyNotAuthorized.
    """
    if asked == "none":
        return ()
    if asked is not None:
        call.require(ATTACH_NETWORK)
    if asked == "auto":
        return await _automatic(call, fallback=None)
    if not asked:
        return await _automatic(call, fallback=())
    requested = tuple(_entry(entry) for entry in asked)
    _check_repetition(requested, count)
    return await _check_each(call, requested)


def _entry(entry: dict[str, Any]) -> RequestedNetwork:
    port, network, address = entry.get("port"), entry.get("uuid"), entry.get("fixed_ip")
    if port is not None:
        if address is not None:
            raise InvalidInput(f"Specified Fixed IP '{address}' cannot be used with port '{port}': "
                               "the two cannot be specified together.")
        return RequestedNetwork(port_id=port, tag=entry.get("tag"))
    if network is None:
        raise InvalidInput("Network or port must be named in each entry of networks.")
    if not is_uuid(network):
        raise InvalidInput(f"Bad networks format: network uuid is not in proper format ({network})")
    return RequestedNetwork(network_id=network, fixed_ip=address, tag=entry.get("tag"))


def _check_repetition(requested: Sequence[RequestedNetwork], count: int) -> None:
    ports = [entry.port_id for entry in requested if entry.port_id]
    if len(set(ports)) != len(ports):
        raise InvalidInput("A port can be named only once in networks.")
    if count > 1 and ports:
        raise InvalidInput("A port can be given to one server only: several servers were asked for.")
    if count > 1 and any(entry.fixed_ip for entry in requested):
        raise InvalidInput("A fixed address can be given to one server only: several servers were asked for.")


async def _automatic(call: Call, fallback: Requested) -> Requested:
    """The one network the project can use. Several are ambiguous."""
    mine = call.context.project_id
    usable = [
        network for network in await call.cloud.networks.networks(call.context)
        if network.has_subnets and not network.external and not network.physical_network
        and (network.shared or network.project_id == mine)
    ]
    if len(usable) > 1:
        raise Conflict("Multiple possible networks found, use a Network ID to be more specific.")
    if not usable:
        return fallback
    refuse_without_port(usable[0])
    return (RequestedNetwork(network_id=usable[0].id),)


async def _check_each(call: Call, requested: tuple[RequestedNetwork, ...]) -> tuple[RequestedNetwork, ...]:
    ids = tuple(dict.fromkeys(entry.network_id for entry in requested if entry.network_id))
    networks: dict[str, NetworkSummary] = {}
    needs: dict[str, PortNeed | None] = {}
    if ids:
        networks = {network.id: network for network in await call.cloud.networks.networks(call.context, ids)}
    for entry in requested:
        if entry.port_id:
            needs[entry.port_id] = await _check_port(call, entry.port_id)
        elif entry.network_id:
            _check_network(call, entry.network_id, networks.get(entry.network_id))
    return tuple(
        msgspec.structs.replace(entry, foreign=is_foreign(networks[entry.network_id], call.context.project_id))
        if entry.network_id else msgspec.structs.replace(entry, need=needs.get(entry.port_id or ""))
        for entry in requested
    )


def is_foreign(network: NetworkSummary, project_id: str | None) -> bool:
    """Whether only somebody who acts for every project can give it to that one."""
    return not (network.shared or network.external or network.project_id == project_id)


async def _check_port(call: Call, port_id: str) -> PortNeed | None:
    """Returns what it asks of its host. Spec: API-572."""
    try:
        port = await call.cloud.networks.port(call.context, port_id)
    except PortNotFound as error:
        raise InvalidInput(error.message) from error
    if port.device_id:
        raise Conflict(f"Port {port_id} is still in use.")
    if not port.addresses:
        raise InvalidInput(f"Port {port_id} requires a FixedIP in order to be used.")
    if port.need is not None and port.need.groups and call.version < PORT_RESOURCES:
        raise InvalidInput(
            f"Creating servers with ports that ask for resources, like {port_id}, is not supported with this version."
        )
    return port.need


def _check_network(call: Call, network_id: str, network: NetworkSummary | None) -> None:
    if network is None:
        raise InvalidInput(NetworkNotFound(network_id).message)
    if network.external and not call.allows(ATTACH_EXTERNAL):
        raise Forbidden(f"It is not allowed to create an interface on external network {network_id}")
    if not network.has_subnets:
        raise InvalidInput(f"Network {network_id} requires a subnet in order to boot instances on.")
    refuse_without_port(network)


def refuse_without_port(network: NetworkSummary) -> None:
    """A port that is made for a server cannot ask for resources or a device: its host is chosen before there is a
    port."""
    if network.physical_network:
        raise InvalidInput(
            f"Network {network.id} is the physical network {network.physical_network}, whose ports are devices of "
            "hosts: make a port on it and name that instead."
        )
    if network.guarantees:
        raise InvalidInput(
            f"Network {network.id} guarantees its ports a bandwidth or a packet rate: make a port on it and name that "
            "instead."
        )
