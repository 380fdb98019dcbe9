"""The embedded network service: what the compute service calls, and the life of the whole."""

from __future__ import annotations

import uuid

import sqlalchemy as sa
from starlette.routing import Route

from kilonova.db.database import Database
from kilonova.db.prepared import Prepared
from kilonova.db.upgrade import ensure
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NetworkNotFound
from kilonova.domain.network import BoundDevice, FixedIp, Vif
from kilonova.embedded.http import EmbeddedService
from kilonova.embedded.network import (
    access,
    addresses,
    first_networks,
    floating,
    floating_calls,
    group_calls,
    networks,
    physical,
    ports,
    qos,
    schema,
    summaries,
    topology,
)
from kilonova.embedded.network.bodies import FixedIpBody, PortBody
from kilonova.embedded.network.datapath import Datapath, Effects
from kilonova.embedded.network.errors import AutoAllocationFailure
from kilonova.embedded.network.events import EventSender, OnEvent
from kilonova.embedded.network.group_service import SecurityGroupCalls
from kilonova.embedded.network.http_api import Records, ResourceRoutes, api_index, error_body, versions
from kilonova.embedded.network.http_extra import SmallCalls
from kilonova.embedded.network.l3_agents import AgentRoutes
from kilonova.embedded.network.pool_resources import SubnetPools, TopologyRoutes
from kilonova.embedded.network.port_records import find_port, ports_of_device, ports_where
from kilonova.embedded.network.qos_resources import Policies, rule_routes
from kilonova.embedded.network.resources import Groups, Networks, Ports, Resource, Rules, Subnets
from kilonova.embedded.network.router_resources import FloatingIps, InterfaceRoutes, Routers
from kilonova.embedded.network.wiring import BridgeListener, Wiring, tap_name
from kilonova.services.identity import IdentityService
from kilonova.services.network import FloatingIpSummary, NetworkSummary, PortRequest, PortSummary

PUBLIC = r"GET /(v2\.0/?)?$"

_networks = sa.select(schema.networks).order_by(schema.networks.c.created_at, schema.networks.c.id)
_ALL = Prepared(_networks)
_VISIBLE = Prepared(_networks.where(sa.or_(
    schema.networks.c.project_id == sa.bindparam("project"), schema.networks.c.shared, schema.networks.c.external
)))


class EmbeddedNetwork(SecurityGroupCalls):
    """Implements `kilonova.services.network.NetworkService` and the Network API v2.0.

    Args:
        identity, identity_url: checks tokens of the HTTP API, and where callers get one.
        wiring: the data path of this machine.
        on_event: told when ports are plugged, unplugged, deleted or changed. Spec: section 4.8.
    """

    def __init__(self, database: Database, clock: Clock, identity: IdentityService, identity_url: str,
                 wiring: Wiring, on_event: OnEvent) -> None:
        self._identity = identity
        self._identity_url = identity_url
        self._events = EventSender(clock, on_event)
        self._datapath = Datapath(database, clock, wiring, self._events)
        super().__init__(database, clock, wiring, Records(database, clock, self._datapath))

    def application(self) -> EmbeddedService:
        """The ASGI application, to be mounted at the service's prefix."""
        resources: list[Resource] = [
            Networks(), Subnets(self._wiring), Ports(self._wiring), Groups(), Rules(), Routers(), FloatingIps(),
            SubnetPools(),
        ]
        routes = [
            Route("/", versions), Route("/v2.0", api_index(resources)), Route("/v2.0/", api_index(resources)),
            *SmallCalls(self._records, self._wiring, resources).routes(), *InterfaceRoutes(self._records).routes(),
            *AgentRoutes(self._records, self._wiring.host).routes(),
            *TopologyRoutes(self._records).routes(), *rule_routes(self._records),
            *ResourceRoutes(Policies(), self._records, "/v2.0/qos").routes(),
        ]
        for resource in resources:
            routes += ResourceRoutes(resource, self._records).routes()
        return EmbeddedService("network", routes, identity=self._identity, error_body=error_body, public=PUBLIC,
                               identity_url=self._identity_url)

    async def start(self, bridges: BridgeListener | None = None) -> None:
        """Make the tables if they are missing, make the data path match the records and follow it from now on.

        Args:
            bridges: told of each network's bridge (the metadata service).

        Raises:
            SchemaUnfit: the tables are of another release.
        """
        await ensure(self._database, schema.NETWORK)
        self._events.start()
        await self._datapath.start(bridges)

    async def close(self) -> None:
        """Stop. What running guests need stays on the machine."""
        await self._datapath.close()
        await self._events.close()

    async def bootstrap(self, project_id: str, *, name: str = "private", cidr: str | None = None) -> str:
        """Make a shared network with one subnet, unless it was made before; returns its id.

        Args:
            project_id: who owns it. cidr: by default a /24 of 10.64.0.0/10 that depends on the project, so that
                two installations on one machine hardly ever collide.
        """
        now = self._clock.now()
        return await self._database.write(
            lambda conn: first_networks.make_private(conn, _service_caller(project_id), name, cidr, now)
        )

    async def plugged(self, port_id: str) -> None:
        """The agent has made the tap of a port: wire it if that has not happened by itself."""
        await self._wiring.plugged(port_id)

    async def instance_at(self, network_id: str, address: str) -> str | None:
        """The instance that has the address on the network: who asks the metadata service. Spec: EMN-29."""
        def unit(conn: sa.Connection) -> str | None:
            port_id = addresses.speaker(conn, network_id, address)
            port = find_port(conn, port_id) if port_id else None
            return port.device_id if port and port.device_owner.startswith("compute:") else None

        return await self._database.read(unit)

    async def allocated(self) -> list[PortSummary]:
        """All ports that belong to servers, for the audit."""
        table = schema.ports
        owned = table.c.device_owner.startswith("compute:", autoescape=True)
        return await self._database.read(lambda conn: [
            summaries.of_port(conn, port) for port in ports_where(conn, owned, table.c.device_id != "")
        ])

    # --- NetworkService ----------------------------------------------------------------------------

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        return await self._database.read(
            lambda conn: [summaries.of_network(conn, network) for network in _visible(conn, context, ids)]
        )

    async def automatic_network(self, project_id: str) -> str | None:
        now = self._clock.now()
        try:
            return await self._change(lambda conn, effects: topology.ensure(conn, project_id, now, effects))
        except AutoAllocationFailure:
            return None

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        return await self._database.read(lambda conn: summaries.of_port(conn, access.port(conn, context, port_id)))

    async def create_port(self, request: PortRequest) -> str:
        id_ = _port_of_key(request.key)
        body = PortBody(
            network_id=request.network_id, project_id=request.project_id, device_id=request.instance_uuid,
            device_owner=_owner(request.availability_zone), host_id=request.host,
            fixed_ips=[FixedIpBody(ip_address=request.fixed_ip)] if request.fixed_ip else None,
        )

        def unit(conn: sa.Connection, effects: Effects) -> None:
            caller = _service_caller(request.project_id)
            now = self._clock.now()
            if find_port(conn, id_) is not None:
                pair = ports.claim(conn, id_, request.instance_uuid, request.host, body.device_owner or "",
                                   request.tag, now, self._wiring.serves)
                effects.ports.append(pair)
                return
            network = access.network(conn, caller, request.network_id)
            if not request.foreign and not access.open_to(request.project_id, network):
                raise NetworkNotFound(request.network_id)
            secured = network.port_security
            subnets = networks.subnets_of(conn, request.network_id)
            if not secured or not subnets:
                body.security_groups = []
            else:
                body.security_groups = list(group_calls.resolve(conn, request.project_id, request.security_groups, now))
            port = ports.create_port(conn, caller, body, now, self._wiring.serves, id_, owned=True,
                                     device_tag=request.tag)
            physical.check_port(conn, id_, self._wiring.wires)
            effects.ports.append((None, port))

        await self._change(unit)
        await self._datapath.settle(request.network_id)
        return id_

    async def bind_port(self, port_id: str, instance_uuid: str, host: str, *, availability_zone: str = "",
                        tag: str | None = None) -> None:
        def unit(conn: sa.Connection, effects: Effects) -> str:
            before, after = ports.claim(
                conn, port_id, instance_uuid, host, _owner(availability_zone), tag, self._clock.now(),
                self._wiring.serves,
            )
            effects.ports.append((before, after))
            return after.network_id

        await self._datapath.settle(await self._change(unit))

    async def serve_ports(
        self, instance_uuid: str, providers: dict[str, dict[str, str]], devices: dict[str, BoundDevice]
    ) -> None:
        def unit(conn: sa.Connection) -> None:
            for port in ports_of_device(conn, instance_uuid):
                if port.id in providers:
                    qos.serve(conn, port, providers[port.id], self._clock.now())
                if port.id in devices:
                    physical.serve(conn, port, devices[port.id], self._clock.now())

        await self._database.write(unit)

    async def unbind_port(self, port_id: str, instance_uuid: str) -> None:
        def unit(conn: sa.Connection, effects: Effects) -> None:
            self._release_one(conn, port_id, instance_uuid, effects)

        await self._change(unit)

    async def go_to_host(self, instance_uuid: str, host: str, *, availability_zone: str = "") -> None:
        owner, now = _owner(availability_zone), self._clock.now()
        for network in await self._change(lambda conn, effects: ports.go_to_host(
            conn, instance_uuid, host, owner, now, self._wiring.serves, effects.ports
        )):
            await self._datapath.settle(network)

    async def leave_host(self, instance_uuid: str, host: str) -> None:
        now = self._clock.now()
        await self._change(lambda conn, effects: ports.leave_host(conn, instance_uuid, host, now, effects.ports))

    async def delete_port(self, port_id: str) -> None:
        def unit(conn: sa.Connection, effects: Effects) -> None:
            before = find_port(conn, port_id)
            if before is not None:
                ports.remove(conn, port_id)
                effects.ports.append((before, None))

        await self._change(unit)

    async def discard_port(self, key: str) -> None:
        await self.delete_port(_port_of_key(key))

    async def add_address(self, port_id: str, known: tuple[str, ...]) -> None:
        def unit(conn: sa.Connection, effects: Effects) -> None:
            if pair := ports.add_address(conn, port_id, known, self._clock.now()):
                effects.ports.append(pair)

        await self._change(unit)

    async def set_addresses(self, port_id: str, addresses: tuple[str, ...]) -> None:
        def unit(conn: sa.Connection, effects: Effects) -> None:
            if find_port(conn, port_id) is not None:
                effects.ports.append(ports.set_addresses(conn, port_id, addresses, self._clock.now()))

        await self._change(unit)

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        return await self._database.read(
            lambda conn: [summaries.of_port(conn, port) for port in ports_of_device(conn, instance_uuid)]
        )

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        return await self._database.read(
            lambda conn: tuple(self._vif(conn, port) for port in ports_of_device(conn, instance_uuid))
        )

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = (), host: str | None = None) -> None:
        """Ports that users made are kept too, whether named or not. Spec: NET-21, EMN-24."""
        def unit(conn: sa.Connection, effects: Effects) -> None:
            for port in ports_of_device(conn, instance_uuid):
                if host is not None and port.host not in (host, ""):
                    continue
                if port.id in keep_ports or not port.owned:
                    self._release_one(conn, port.id, instance_uuid, effects)
                else:
                    ports.remove(conn, port.id)
                    effects.ports.append((port, None))

        await self._change(unit)

    async def floating_ips(self, context: RequestContext) -> list[FloatingIpSummary]:
        return await self._database.read(lambda conn: floating_calls.seen_by(conn, context))

    async def create_floating_ip(self, context: RequestContext, network_id: str) -> FloatingIpSummary:
        return await self._change(
            lambda conn, effects: floating_calls.create(conn, context, network_id, self._clock.now(), effects)
        )

    async def delete_floating_ip(self, context: RequestContext, id_: str) -> None:
        await self._change(lambda conn, effects: floating_calls.delete(conn, context, id_, effects))

    async def associate_floating_ip(
        self, context: RequestContext, id_: str, port_id: str | None, fixed_address: str | None = None
    ) -> None:
        await self._change(lambda conn, effects: floating_calls.associate(
            conn, context, id_, port_id, fixed_address, self._clock.now(), effects
        ))

    # --- parts -------------------------------------------------------------------------------------

    def _release_one(self, conn: sa.Connection, port_id: str, instance_uuid: str, effects: Effects) -> None:
        before = ports.release(conn, port_id, instance_uuid, self._clock.now())
        if before is not None:
            effects.ports.append((before, find_port(conn, port_id)))

    def _vif(self, conn: sa.Connection, port: schema.Port) -> Vif:
        network = access.find_network(conn, port.network_id)
        assert network is not None, "a network with ports cannot be deleted"
        subnets = {subnet.id: subnet for subnet in networks.subnets_of(conn, port.network_id)}
        floated = floating.of_port(conn, port.id)
        outside = physical.of_network(conn, network.id)
        return Vif(
            id=port.id, mac=port.mac, network_id=port.network_id, network_name=network.name, devname=tap_name(port.id),
            bridge=self._wiring.bridge(network.segment), vif_type=port.vif_type, vnic_type=port.vnic_type,
            mtu=network.mtu,
            fixed_ips=tuple(
                FixedIp(address=item.address, subnet=summaries.guest_subnet(subnets[item.subnet_id]),
                        floating=floated.get(item.address, ()))
                for item in port.addresses
            ),
            active=port.status == ports.ACTIVE, preserve_on_delete=not port.owned, tag=port.device_tag,
            profile=port.profile, vlan=outside.vlan or None if outside is not None else None,
        )


def _port_of_key(key: str) -> str:
    return str(uuid.uuid5(schema.NAMESPACE, f"port/{key}"))


def _visible(conn: sa.Connection, context: RequestContext, ids: tuple[str, ...]) -> list[schema.Network]:
    """The networks the caller may use, of all or of these, oldest first."""
    if ids:
        named = [found for id_ in set(ids) if (found := access.find_network(conn, id_)) is not None]
        return sorted((n for n in named if access.may_use(context, n)), key=lambda n: (n.created_at, n.id))
    rows = _ALL.all(conn) if access.privileged(context) else _VISIBLE.all(conn, project=context.project_id)
    return [schema.record(schema.Network, row) for row in rows]


def _service_caller(project_id: str) -> RequestContext:
    """The compute service acting for a project."""
    return RequestContext(request_id="", user_id="", project_id=project_id, roles=("service",))


def _owner(availability_zone: str) -> str:
    return f"compute:{availability_zone or 'nova'}"
