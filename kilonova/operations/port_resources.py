"""Ports that ask for resources or a device: claimed for their server, and told what they were given."""

from __future__ import annotations

from kilonova.domain.network import PortNeed
from kilonova.operations.environment import Environment


async def needs_of(env: Environment, server: str) -> tuple[PortNeed, ...]:
    """What the ports of a server ask for now."""
    return tuple(port.need for port in await env.networks.ports_of(server) if port.need is not None)


async def tell_ports(env: Environment, server: str, needs: tuple[PortNeed, ...]) -> None:
    """Let the bindings of a server's ports name the providers that serve them now, and the devices that they are. Spec:
    RSZ-31, RSZ-32, RSZ-56.

    Args:
        needs: what was claimed; without any nothing is asked.
    """
    if needs:
        devices = await env.placement.devices(server) if any(need.device for need in needs) else {}
        await env.networks.serve_ports(server, await env.placement.served(server), devices)
