"""A network service outside the simulated processes: keeps its promises, loses answers, fails, wires late."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from random import Random

import msgspec

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, NotSupported, PortNotFound
from kilonova.domain.network import BoundDevice, FixedIp, Subnet, Vif
from kilonova.domain.operation import ExternalEvent
from kilonova.services.network import FloatingIpSummary, NetworkSummary, PortRequest, PortSummary
from kilonova.services.security_groups import GroupSummary
from kilonova.shapes.port_devices import profile_of
from simulation.outside import Outside
from simulation.process import Process, Trouble

NETWORK = "11111111-1111-4111-8111-111111111111"


class Net(Outside):
    """The service itself; it does not crash.

    `calls` are those that arrived, `wires` whether it announces ports,
    `served` the providers that each bound port names, `devices` the device.
    """

    def __init__(self, random: Random, trouble: Trouble, announce: Callable[[ExternalEvent], Awaitable[None]]) -> None:
        super().__init__("network", random, trouble)
        self.ports: dict[str, PortSummary] = {}
        self.order: list[str] = []
        self.calls: list[str] = []
        self.wires = True
        self.addresses: tuple[str, ...] = ("10.0.0.5",)
        self.served: dict[str, dict[str, str]] = {}
        self.devices: dict[str, BoundDevice] = {}
        self._announce = announce

    def client(self, process: Process) -> SimNetwork:
        return SimNetwork(self, process)

    def make(self, request: PortRequest) -> str:
        port_id = port_of_key(request.key)
        if port_id not in self.ports:
            self.order.append(port_id)
        known = self.ports.get(port_id)
        if known is not None and known.device_id not in ("", request.instance_uuid):
            raise Conflict(f"Port {port_id} is in use.")
        self.ports[port_id] = PortSummary(
            id=port_id, network_id=request.network_id, project_id=request.project_id,
            device_id=request.instance_uuid, binding_host=request.host, mac="fa:16:3e:00:00:01",
            addresses=self.addresses, status="DOWN",
        )
        self._wire(port_id)
        return port_id

    def bind(self, port_id: str, instance_uuid: str, host: str) -> None:
        known = self.ports.get(port_id)
        if known is None:
            raise PortNotFound(port_id)
        if known.device_id not in ("", instance_uuid):
            raise Conflict(f"Port {port_id} is in use.")
        self.ports[port_id] = msgspec.structs.replace(known, device_id=instance_uuid, binding_host=host)
        self._wire(port_id)

    def add_address(self, port_id: str, known: tuple[str, ...]) -> None:
        port = self.ports.get(port_id)
        if port is None:
            raise PortNotFound(port_id)
        if not set(port.addresses) - set(known):
            free = next(n for n in range(100, 200) if f"10.0.0.{n}" not in port.addresses)
            self.set_addresses(port_id, (*port.addresses, f"10.0.0.{free}"))

    def set_addresses(self, port_id: str, addresses: tuple[str, ...]) -> None:
        port = self.ports.get(port_id)
        if port is not None:
            self.ports[port_id] = msgspec.structs.replace(port, addresses=addresses)

    def unbind(self, port_id: str, instance_uuid: str) -> None:
        known = self.ports.get(port_id)
        if known is not None and known.device_id == instance_uuid:
            self.ports[port_id] = msgspec.structs.replace(known, device_id="", binding_host="")
            self._let_go(port_id)

    def remove(self, port_id: str) -> None:
        self.ports.pop(port_id, None)
        self._let_go(port_id)

    def serve(self, instance: str, providers: dict[str, dict[str, str]], devices: dict[str, BoundDevice]) -> None:
        self.served |= {port.id: providers[port.id] for port in self.of(instance) if port.id in providers}
        self.devices |= {port.id: devices[port.id] for port in self.of(instance) if port.id in devices}

    def _let_go(self, port_id: str) -> None:
        self.served.pop(port_id, None)
        self.devices.pop(port_id, None)

    def go_to_host(self, instance: str, host: str) -> None:
        for port in self.of(instance):
            if port.binding_host != host or port.vif_type != "bridge":
                self.ports[port.id] = msgspec.structs.replace(
                    port, binding_host=host, vif_type="bridge", status="DOWN"
                )
            self._wire(port.id)

    def leave_host(self, instance: str, host: str) -> None:
        for port in self.of(instance):
            if port.binding_host == host:
                self.ports[port.id] = msgspec.structs.replace(port, binding_host="", status="DOWN")
                self._let_go(port.id)

    def _wire(self, port_id: str) -> None:
        self.soon(self._wire_later(port_id))

    async def _wire_later(self, port_id: str) -> None:
        await asyncio.sleep(self._random.random() * 0.5)
        port = self.ports.get(port_id)
        if port is not None and self.wires:
            self.ports[port_id] = msgspec.structs.replace(port, status="ACTIVE")
            await self._announce(ExternalEvent(subject=port.device_id, name="network-vif-plugged", tag=port_id))

    def of(self, instance: str) -> list[PortSummary]:
        made = [self.ports[p] for p in dict.fromkeys(self.order) if p in self.ports]
        return [port for port in made if port.device_id == instance]

    def drop(self, instance: str, keep: tuple[str, ...], host: str | None) -> None:
        for port in self.of(instance):
            if host is not None and port.binding_host not in (host, ""):
                continue
            self._let_go(port.id)
            if port.id in keep:
                self.ports[port.id] = msgspec.structs.replace(port, device_id="", binding_host="")
            else:
                del self.ports[port.id]


def port_of_key(key: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, key))


class SimNetwork:
    """A process's client of the service."""

    def __init__(self, net: Net, process: Process) -> None:
        self._net = net
        self._process = process

    async def _call(self, name: str, effect: Callable[[], object]) -> object:
        return await self._process.port(self._net.exchange(name, lambda: self._net.calls.append(name), effect))

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        return [NetworkSummary(id=NETWORK, name="private", project_id=context.project_id or "")]

    async def automatic_network(self, project_id: str) -> str | None:
        return None

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        if port_id not in self._net.ports:
            raise PortNotFound(port_id)
        return self._net.ports[port_id]

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        return names

    async def create_port(self, request: PortRequest) -> str:
        return str(await self._call("create_port", lambda: self._net.make(request)))

    async def bind_port(
        self, port_id: str, instance_uuid: str, host: str, *, availability_zone: str = "", tag: str | None = None
    ) -> None:
        await self._call("bind_port", lambda: self._net.bind(port_id, instance_uuid, host))

    async def serve_ports(
        self, instance_uuid: str, providers: dict[str, dict[str, str]], devices: dict[str, BoundDevice]
    ) -> None:
        await self._call("serve_ports", lambda: self._net.serve(instance_uuid, providers, devices))

    async def unbind_port(self, port_id: str, instance_uuid: str) -> None:
        await self._call("unbind_port", lambda: self._net.unbind(port_id, instance_uuid))

    async def go_to_host(self, instance_uuid: str, host: str, *, availability_zone: str = "") -> None:
        await self._call("go_to_host", lambda: self._net.go_to_host(instance_uuid, host))

    async def leave_host(self, instance_uuid: str, host: str) -> None:
        await self._call("leave_host", lambda: self._net.leave_host(instance_uuid, host))

    async def discard_port(self, key: str) -> None:
        await self._call("discard_port", lambda: self._net.remove(port_of_key(key)))

    async def delete_port(self, port_id: str) -> None:
        await self._call("delete_port", lambda: self._net.remove(port_id))

    async def add_address(self, port_id: str, known: tuple[str, ...]) -> None:
        await self._call("add_address", lambda: self._net.add_address(port_id, known))

    async def set_addresses(self, port_id: str, addresses: tuple[str, ...]) -> None:
        await self._call("set_addresses", lambda: self._net.set_addresses(port_id, addresses))

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        return self._net.of(instance_uuid)

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        ports = await self._call("vifs", lambda: self._net.of(instance_uuid))
        assert isinstance(ports, list)
        subnets = {4: Subnet(id=NETWORK, cidr="10.0.0.0/24"), 6: Subnet(id=NETWORK, cidr="fd00::/64", version=6)}
        return tuple(
            Vif(id=p.id, mac=p.mac, network_id=p.network_id, network_name="private", devname=f"tap{p.id[:11]}",
                vnic_type=p.need.device.vnic_type if p.need is not None and p.need.device is not None else "normal",
                profile=profile_of(self._net.devices[p.id]) if p.id in self._net.devices else {},
                fixed_ips=tuple(FixedIp(address=a, subnet=subnets[6 if ":" in a else 4]) for a in p.addresses))
            for p in ports
        )

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = (), host: str | None = None) -> None:
        await self._call("release", lambda: self._net.drop(instance_uuid, keep_ports, host))

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        return ("default",)

    async def groups_of_ports(self, port_ids: tuple[str, ...]) -> list[GroupSummary]:
        return []

    async def change_group(
        self, context: RequestContext, port_ids: tuple[str, ...], group: str, *, member: bool
    ) -> None:
        return None

    async def floating_ips(self, context: RequestContext) -> list[FloatingIpSummary]:
        return []

    async def create_floating_ip(self, context: RequestContext, network_id: str) -> FloatingIpSummary:
        raise NotSupported("This network service has no floating IPs.")

    async def delete_floating_ip(self, context: RequestContext, id_: str) -> None:
        return None

    async def associate_floating_ip(
        self, context: RequestContext, id_: str, port_id: str | None, fixed_address: str | None = None
    ) -> None:
        return None
