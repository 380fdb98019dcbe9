"""Networks and subnets: units of work that create, change and delete them."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.embedded.network import (
    access,
    addresses,
    automatic_addresses,
    physical,
    quotas,
    ranges,
    schema,
    subnet_pools,
)
from kilonova.embedded.network.bodies import NetworkBody, SubnetBody, refuse_read_only, require_privilege, sent
from kilonova.embedded.network.errors import NetworkInUse, SubnetInUse

SEGMENTS = 4095
DEFAULT_MTU = 1500
DHCP_OWNER = "network:dhcp"
_PRIVILEGED = (
    "shared", "external", "is_default", "provider_network_type", "provider_physical_network",
    "provider_segmentation_id",
)
_SAME_NAME = ("name", "description", "admin_state_up", "shared", "external", "is_default", "mtu", "dns_domain")
_SUBNETS = Prepared(
    sa.select(schema.subnets).where(schema.subnets.c.network_id == sa.bindparam("network"))
    .order_by(schema.subnets.c.created_at, schema.subnets.c.id)
)


def create_network(conn: sa.Connection, caller: RequestContext, body: NetworkBody, now: float,
                   id_: str | None = None) -> schema.Network:
    """Spec: EMN-02."""
    require_privilege(body, access.privileged(caller), *_PRIVILEGED)
    project_id = access.target_project(caller, body)
    quotas.check(conn, project_id, "network")
    values = sent(body)
    _check_network(values.get("mtu", DEFAULT_MTU))
    outside = physical.checked(values)
    row = {
        "id": id_ or str(uuid.uuid4()), "project_id": project_id, "name": "", "description": "",
        "admin_state_up": True, "shared": False, "external": False, "is_default": False, "mtu": DEFAULT_MTU,
        "dns_domain": "", "tags": tuple(values.get("tags", ())),
        "port_security": values.get("port_security_enabled", True),
        "segment": _free_segment(conn), **schema.stamp(now),
    }
    row |= {name: values[name] for name in _SAME_NAME if name in values}
    conn.execute(sa.insert(schema.networks).values(row))
    if outside is not None:
        physical.join(conn, str(row["id"]), outside)
    return access.network(conn, caller, str(row["id"]))


def update_network(conn: sa.Connection, caller: RequestContext, id_: str, body: NetworkBody,
                   now: float) -> schema.Network:
    access.network(conn, caller, id_, change=True)
    require_privilege(body, access.privileged(caller), *_PRIVILEGED)
    refuse_read_only(body, "project_id", "tenant_id", "tags", "availability_zone_hints",
                     "provider_network_type", "provider_physical_network", "provider_segmentation_id")
    values = sent(body)
    _check_network(values.get("mtu", DEFAULT_MTU))
    if "mtu" in values:
        ranges.check_mtu(values["mtu"], {subnet.version for subnet in subnets_of(conn, id_)})
    changes: dict[str, Any] = {name: values[name] for name in _SAME_NAME if name in values}
    if "port_security_enabled" in values:
        changes["port_security"] = values["port_security_enabled"]
    schema.touch(conn, schema.networks, id_, now, **changes)
    return access.network(conn, caller, id_)


def serves_servers(conn: sa.Connection, id_: str) -> bool:
    """Whether servers have ports on a network."""
    ports = schema.ports
    mine = sa.select(ports.c.id).where(ports.c.network_id == id_, ports.c.device_owner.startswith("compute:"))
    return conn.execute(mine.limit(1)).first() is not None


def delete_network(conn: sa.Connection, caller: RequestContext, id_: str) -> None:
    """Takes its subnets and DHCP ports along. Spec: EMN-09."""
    access.network(conn, caller, id_, change=True)
    ports = schema.ports
    busy = conn.execute(
        sa.select(ports.c.id).where(ports.c.network_id == id_, ports.c.device_owner != DHCP_OWNER).limit(1)
    ).first()
    if busy:
        raise NetworkInUse(id_)
    _delete_dhcp_ports(conn, ports.c.network_id == id_)
    conn.execute(sa.delete(schema.subnets).where(schema.subnets.c.network_id == id_))
    conn.execute(sa.delete(schema.networks).where(schema.networks.c.id == id_))
    physical.leave(conn, id_)


def subnets_of(conn: sa.Connection, network_id: str) -> list[schema.Subnet]:
    return [schema.record(schema.Subnet, row) for row in _SUBNETS.all(conn, network=network_id)]


def create_subnet(conn: sa.Connection, caller: RequestContext, body: SubnetBody, now: float,
                  id_: str | None = None) -> schema.Subnet:
    """Spec: EMN-05 to EMN-08. Raises SubnetPoolNotFound, SubnetPoolQuotaExceeded."""
    if body.network_id is UNSET:
        raise InvalidInput("Invalid input: network_id is required.")
    network = access.network(conn, caller, body.network_id, change=True)
    project_id = access.target_project(caller, body)
    quotas.check(conn, project_id, "subnet")
    values = sent(body)
    pooled = subnet_pools.range_for(conn, caller, values)
    cidr = ranges.checked_cidr(values if pooled is None else values | {"cidr": pooled[1]})
    ra_mode, address_mode = ranges.checked_modes(values, cidr)
    ranges.check_mtu(network.mtu, {cidr.version})
    for other in subnets_of(conn, network.id):
        if ipaddress.ip_network(other.cidr).overlaps(cidr):
            raise InvalidInput(
                f"Invalid input for operation: Requested subnet with cidr: {cidr} for network: {network.id} "
                f"overlaps with another subnet."
            )
    gateway = values["gateway_ip"] if "gateway_ip" in values else str(cidr[1])
    gateway = ranges.checked_gateway(gateway, cidr)
    pools = tuple(values["allocation_pools"]) if "allocation_pools" in values else None
    subnet_id = id_ or str(uuid.uuid4())
    conn.execute(sa.insert(schema.subnets).values(
        id=subnet_id, network_id=network.id, project_id=project_id, name=values.get("name", ""),
        description=values.get("description", ""), tags=tuple(values.get("tags", ())), cidr=str(cidr),
        gateway=gateway, dhcp=values.get("enable_dhcp", True),
        dns=ranges.checked_dns(values.get("dns_nameservers", [])), routes=tuple(values.get("host_routes", ())),
        cursor="", pools=ranges.checked_pools(pools, cidr, gateway), ra_mode=ra_mode, address_mode=address_mode,
        pool_id=pooled[0] if pooled else None, **schema.stamp(now),
    ))
    subnet = access.subnet(conn, caller, subnet_id)
    if subnet.dhcp:
        _create_dhcp_port(conn, network, subnet, now)
    return subnet


def update_subnet(conn: sa.Connection, caller: RequestContext, id_: str, body: SubnetBody,
                  now: float) -> schema.Subnet:
    subnet = access.subnet(conn, caller, id_, change=True)
    refuse_read_only(body, "network_id", "project_id", "tenant_id", "tags", "cidr", "ip_version",
                     "ipv6_ra_mode", "ipv6_address_mode", "subnetpool_id", "prefixlen", "use_default_subnetpool")
    values = sent(body)
    cidr = ipaddress.ip_network(subnet.cidr)
    changes: dict[str, Any] = {name: values[name] for name in ("name", "description") if name in values}
    gateway = subnet.gateway
    if "gateway_ip" in values:
        gateway = changes["gateway"] = ranges.checked_gateway(values["gateway_ip"], cidr)
        if gateway and gateway != subnet.gateway and addresses.holder(conn, subnet.network_id, gateway):
            raise Conflict(f"Gateway ip {gateway} is in use by a port of the subnet.")
    if "allocation_pools" in values:
        changes["pools"] = ranges.checked_pools(tuple(values["allocation_pools"]), cidr, gateway)
    elif gateway and ranges.in_pools(gateway, subnet.pools):
        raise Conflict(f"Gateway ip {gateway} conflicts with an allocation pool of the subnet.")
    if "dns_nameservers" in values:
        changes["dns"] = ranges.checked_dns(values["dns_nameservers"])
    if "host_routes" in values:
        changes["routes"] = tuple(values["host_routes"])
    if "enable_dhcp" in values:
        if not values["enable_dhcp"] and (subnet.ra_mode or subnet.address_mode):
            raise InvalidInput("Invalid input for operation: enable_dhcp cannot be switched off with IPv6 modes.")
        changes["dhcp"] = values["enable_dhcp"]
    schema.touch(conn, schema.subnets, id_, now, **changes)
    changed = access.subnet(conn, caller, id_)
    if changed.dhcp and not subnet.dhcp:
        _create_dhcp_port(conn, access.network(conn, caller, subnet.network_id), changed, now)
    elif subnet.dhcp and not changed.dhcp:
        _delete_dhcp_ports(conn, schema.ports.c.id == dhcp_port_id(id_))
    return changed


def delete_subnet(conn: sa.Connection, caller: RequestContext,
                  id_: str) -> tuple[schema.Subnet, list[automatic_addresses.Change]]:
    """Returns it and the ports that lose an automatic address, before and after. Spec: EMN-09."""
    subnet = access.subnet(conn, caller, id_, change=True)
    lost = automatic_addresses.take(conn, subnet) if subnet.automatic else []
    table = schema.addresses
    busy = conn.execute(
        sa.select(table.c.address).where(table.c.subnet_id == id_, table.c.port_id != dhcp_port_id(id_)).limit(1)
    ).first()
    if busy:
        raise SubnetInUse(id_)
    _delete_dhcp_ports(conn, schema.ports.c.id == dhcp_port_id(id_))
    conn.execute(sa.delete(schema.subnets).where(schema.subnets.c.id == id_))
    return subnet, lost


def dhcp_port_id(subnet_id: str) -> str:
    """Each subnet with DHCP has one such port; its id follows from the subnet's."""
    return str(uuid.uuid5(schema.NAMESPACE, f"dhcp/{subnet_id}"))


def _create_dhcp_port(conn: sa.Connection, network: schema.Network, subnet: schema.Subnet, now: float) -> None:
    id_ = dhcp_port_id(subnet.id)
    mac = addresses.free_mac(conn, network.id, id_)
    conn.execute(sa.insert(schema.ports).values(
        id=id_, network_id=network.id, project_id=network.project_id, name="", description="", tags=(),
        admin_state_up=True, mac=mac, device_id=f"dhcp-{network.id}",
        device_owner=DHCP_OWNER, host="", vif_type="unbound", vnic_type="normal", profile={}, status="ACTIVE",
        secured=False, pairs=(), dhcp_options=(), dns_name="", owned=False, device_tag=None, **schema.stamp(now),
    ))
    addresses.assign(conn, id_, [addresses.allocate(conn, subnet, mac)])


def _delete_dhcp_ports(conn: sa.Connection, which: sa.ColumnElement[bool]) -> None:
    ports = schema.ports
    ids = sa.select(ports.c.id).where(which, ports.c.device_owner == DHCP_OWNER).scalar_subquery()
    conn.execute(sa.delete(schema.addresses).where(schema.addresses.c.port_id.in_(ids)))
    conn.execute(sa.delete(ports).where(which, ports.c.device_owner == DHCP_OWNER))


def _free_segment(conn: sa.Connection) -> int:
    taken = set(conn.execute(sa.select(schema.networks.c.segment)).scalars())
    for segment in range(1, SEGMENTS + 1):
        if segment not in taken:
            return segment
    raise Conflict("No more networks are possible on this machine.", hint=f"the limit is {SEGMENTS}")


def _check_network(mtu: int) -> None:
    if not 576 <= mtu <= 9000:
        raise InvalidInput(f"Invalid input for mtu: {mtu} is not between 576 and 9000.")
