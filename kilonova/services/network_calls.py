"""The network service of another process of the control plane, called over the bus."""

from __future__ import annotations

import inspect

from kilonova.bus.protocol import Bus
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.network import BoundDevice, Vif
from kilonova.services.network import (
    FloatingIpSummary,
    NetworkService,
    NetworkSummary,
    PortRequest,
    PortSummary,
)
from kilonova.services.remote import RemoteService, ServiceCalls, signatures
from kilonova.services.security_groups import GroupRule, GroupSummary, NewRule

NAME = "network"
SIGNATURES = signatures(
    NetworkService, [name for name, _ in inspect.getmembers(NetworkService, inspect.iscoroutinefunction)]
)


class NetworkCalls(ServiceCalls):
    """Answers for a network service."""

    def __init__(self, service: NetworkService, bus: Bus) -> None:
        super().__init__(NAME, service, SIGNATURES, bus)


class _RemoteGroups:
    """The part of it that is about security groups."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._service = RemoteService(NAME, SIGNATURES, bus, clock)

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        ids: tuple[str, ...] = await self._service.call("check_security_groups", context, names)
        return ids

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        names: tuple[str, ...] = await self._service.call("security_groups_of", port_ids)
        return names

    async def groups_of_ports(self, port_ids: tuple[str, ...]) -> list[GroupSummary]:
        found: list[GroupSummary] = await self._service.call("groups_of_ports", port_ids)
        return found

    async def change_group(
        self, context: RequestContext, port_ids: tuple[str, ...], group: str, *, member: bool
    ) -> None:
        await self._service.call("change_group", context, port_ids, group, member)

    async def groups(
        self, context: RequestContext, *, all_projects: bool, offset: int, limit: int
    ) -> list[GroupSummary]:
        found: list[GroupSummary] = await self._service.call("groups", context, all_projects, offset, limit)
        return found

    async def group(self, context: RequestContext, id_: str) -> GroupSummary:
        found: GroupSummary = await self._service.call("group", context, id_)
        return found

    async def create_group(self, context: RequestContext, name: str, description: str) -> GroupSummary:
        made: GroupSummary = await self._service.call("create_group", context, name, description)
        return made

    async def update_group(
        self, context: RequestContext, id_: str, name: str, description: str | None
    ) -> GroupSummary:
        changed: GroupSummary = await self._service.call("update_group", context, id_, name, description)
        return changed

    async def delete_group(self, context: RequestContext, id_: str) -> None:
        await self._service.call("delete_group", context, id_)

    async def create_group_rule(self, context: RequestContext, group_id: str, rule: NewRule) -> GroupRule:
        made: GroupRule = await self._service.call("create_group_rule", context, group_id, rule)
        return made

    async def delete_group_rule(self, context: RequestContext, id_: str) -> None:
        await self._service.call("delete_group_rule", context, id_)


class RemoteNetwork(_RemoteGroups):
    """A `NetworkService` that another process has."""

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        found: list[NetworkSummary] = await self._service.call("networks", context, ids)
        return found

    async def automatic_network(self, project_id: str) -> str | None:
        id_: str | None = await self._service.call("automatic_network", project_id)
        return id_

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        found: PortSummary = await self._service.call("port", context, port_id)
        return found

    async def create_port(self, request: PortRequest) -> str:
        id_: str = await self._service.call("create_port", request)
        return id_

    async def bind_port(self, port_id: str, instance_uuid: str, host: str, *, availability_zone: str = "",
                        tag: str | None = None) -> None:
        await self._service.call("bind_port", port_id, instance_uuid, host, availability_zone, tag)

    async def serve_ports(
        self, instance_uuid: str, providers: dict[str, dict[str, str]], devices: dict[str, BoundDevice]
    ) -> None:
        await self._service.call("serve_ports", instance_uuid, providers, devices)

    async def unbind_port(self, port_id: str, instance_uuid: str) -> None:
        await self._service.call("unbind_port", port_id, instance_uuid)

    async def go_to_host(self, instance_uuid: str, host: str, *, availability_zone: str = "") -> None:
        await self._service.call("go_to_host", instance_uuid, host, availability_zone)

    async def leave_host(self, instance_uuid: str, host: str) -> None:
        await self._service.call("leave_host", instance_uuid, host)

    async def delete_port(self, port_id: str) -> None:
        await self._service.call("delete_port", port_id)

    async def discard_port(self, key: str) -> None:
        await self._service.call("discard_port", key)

    async def add_address(self, port_id: str, known: tuple[str, ...]) -> None:
        await self._service.call("add_address", port_id, known)

    async def set_addresses(self, port_id: str, addresses: tuple[str, ...]) -> None:
        await self._service.call("set_addresses", port_id, addresses)

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        found: list[PortSummary] = await self._service.call("ports_of", instance_uuid)
        return found

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        found: tuple[Vif, ...] = await self._service.call("vifs", instance_uuid)
        return found

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = (), host: str | None = None) -> None:
        await self._service.call("release", instance_uuid, keep_ports, host)

    async def floating_ips(self, context: RequestContext) -> list[FloatingIpSummary]:
        found: list[FloatingIpSummary] = await self._service.call("floating_ips", context)
        return found

    async def create_floating_ip(self, context: RequestContext, network_id: str) -> FloatingIpSummary:
        made: FloatingIpSummary = await self._service.call("create_floating_ip", context, network_id)
        return made

    async def delete_floating_ip(self, context: RequestContext, id_: str) -> None:
        await self._service.call("delete_floating_ip", context, id_)

    async def associate_floating_ip(
        self, context: RequestContext, id_: str, port_id: str | None, fixed_address: str | None = None
    ) -> None:
        await self._service.call("associate_floating_ip", context, id_, port_id, fixed_address)
