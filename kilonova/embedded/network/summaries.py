"""What the compute service is told of networks and ports."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.network import Route, Subnet
from kilonova.embedded.network import physical, qos, schema
from kilonova.services.network import NetworkSummary, PortAddress, PortSummary

_HAS_SUBNETS = Prepared(
    sa.select(schema.subnets.c.id).where(schema.subnets.c.network_id == sa.bindparam("network"))
    .limit(sa.literal_column("1"))
)


def of_network(conn: sa.Connection, network: schema.Network) -> NetworkSummary:
    outside = physical.of_network(conn, network.id)
    return NetworkSummary(
        id=network.id, name=network.name, project_id=network.project_id, shared=network.shared,
        external=network.external, has_subnets=_HAS_SUBNETS.first(conn, network=network.id) is not None,
        mtu=network.mtu, guarantees=qos.guarantees(conn, network.id),
        physical_network=outside.name if outside is not None else "",
    )


def of_port(conn: sa.Connection, port: schema.Port) -> PortSummary:
    return PortSummary(
        id=port.id, network_id=port.network_id, project_id=port.project_id, device_id=port.device_id,
        device_owner=port.device_owner, binding_host=port.host, vif_type=port.vif_type,
        mac=port.mac, need=physical.need_of(conn, port),
        addresses=tuple(item.address for item in port.addresses), status=port.status,
        fixed_ips=tuple(PortAddress(item.address, item.subnet_id) for item in port.addresses),
    )


def guest_subnet(subnet: schema.Subnet) -> Subnet:
    return Subnet(
        id=subnet.id, cidr=subnet.cidr, version=subnet.version, gateway=subnet.gateway, dns=subnet.dns,
        dhcp=subnet.dhcp, address_mode=subnet.address_mode,
        routes=tuple(Route(route.destination, route.nexthop) for route in subnet.routes),
    )
