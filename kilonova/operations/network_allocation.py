"""Allocating the interfaces of a new server."""

from __future__ import annotations

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import RequestSpec
from kilonova.domain.network import RequestedNetwork, Vif
from kilonova.services.network import NetworkService, PortRequest

ALLOCATION_LIMIT = 3600.0
"""Seconds that all attempts together may take."""


def allocation_pause(attempt: int) -> float:
    """Seconds until the next attempt: 1, 2, 4, 8, 16, then 30 each. Spec: NET-03."""
    return min(2.0 ** (attempt - 1), 30.0) if attempt < 6 else 30.0


async def allocate(networks: NetworkService, spec: RequestSpec, host: str, zone: str) -> tuple[Vif, ...]:
    """Make and bind the ports that were asked for; repeating it makes none twice.

    Args:
        host: the host that the ports are bound to. zone: its availability zone.

    Raises:
        InvalidInput, Conflict, NotFound, OverQuota: no other host can cure it. ServiceUnavailable: it may
        pass. Spec: NET-01, NET-07, NET-10, NET-11, BLD-94, BLD-98.
    """
    requested = spec.requested_networks
    if requested is None:
        requested = await _automatic(networks, spec)
    if not requested:
        return ()
    for position, wanted in enumerate(requested):
        if wanted.port_id is not None:
            await networks.bind_port(wanted.port_id, spec.instance_uuid, host, availability_zone=zone, tag=wanted.tag)
            continue
        assert wanted.network_id is not None
        await networks.create_port(PortRequest(
            key=f"{spec.instance_uuid}/{position}",
            network_id=wanted.network_id,
            project_id=spec.project_id,
            instance_uuid=spec.instance_uuid,
            host=host,
            availability_zone=zone,
            fixed_ip=wanted.fixed_ip,
            security_groups=spec.security_groups,
            tag=wanted.tag,
            foreign=wanted.foreign,
        ))
    return await networks.vifs(spec.instance_uuid)


async def _automatic(networks: NetworkService, spec: RequestSpec) -> tuple[RequestedNetwork, ...]:
    """The one network that the project can use, or the one that it is given; without either no networking."""
    context = RequestContext(request_id="", user_id=spec.user_id, project_id=spec.project_id)
    usable = [
        n for n in await networks.networks(context) if n.has_subnets and not n.external and not n.physical_network
    ]
    own = [n for n in usable if n.project_id == spec.project_id] or usable
    if len(own) > 1:
        raise InvalidInput("Multiple possible networks found, use a Network ID to be more specific.")
    if own:
        return (RequestedNetwork(network_id=own[0].id),)
    made = await networks.automatic_network(spec.project_id)
    return () if made is None else (RequestedNetwork(network_id=made),)
