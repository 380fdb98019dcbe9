"""Routers: units of work that create, change and delete them, and join them to networks."""

from __future__ import annotations

import ipaddress
import uuid
from typing import Any

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.network import access, addresses, quotas, schema
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.agent_schema import NONE_DISABLED
from kilonova.embedded.network.bodies import FixedIpBody, GatewayBody, InterfaceBody, RouterBody, refuse_read_only, sent
from kilonova.embedded.network.errors import (
    IpAddressAlreadyAllocated,
    PortInUse,
    RouterExternalGatewayInUseByFloatingIp,
    RouterInterfaceInUseByFloatingIP,
    RouterInterfaceNotFound,
    RouterInterfaceNotFoundForSubnet,
    RouterInUse,
)
from kilonova.embedded.network.networks import subnets_of
from kilonova.embedded.network.plans import GATEWAY, INTERFACE, WORKS
from kilonova.embedded.network.port_records import existing_port, ports_of_device
from kilonova.embedded.network.ports import remove

_WORKS = Prepared(sa.select(schema.routers.c.id).where(schema.routers.c.id == sa.bindparam("id"), WORKS))


def create_router(conn: sa.Connection, caller: RequestContext, body: RouterBody, now: float,
                  id_: str | None = None) -> schema.Router:
    project_id = access.target_project(caller, body)
    quotas.check(conn, project_id, "router")
    values = sent(body)
    id_ = id_ or str(uuid.uuid4())
    conn.execute(sa.insert(schema.routers).values(
        id=id_, project_id=project_id, name=values.get("name", ""), description=values.get("description", ""),
        tags=tuple(values.get("tags", ())), admin_state_up=values.get("admin_state_up", True),
        external_network_id=None, snat=True, scheduled=None, **schema.stamp(now),
    ))
    if values.get("external_gateway_info") is not None:
        _set_gateway(conn, caller, access.router(conn, caller, id_), values["external_gateway_info"], now)
    return access.router(conn, caller, id_)


def update_router(conn: sa.Connection, caller: RequestContext, id_: str, body: RouterBody, now: float) -> schema.Router:
    router = access.router(conn, caller, id_)
    refuse_read_only(body, "project_id", "tenant_id", "tags", "availability_zone_hints")
    values = sent(body)
    changes = {name: values[name] for name in ("name", "description", "admin_state_up") if name in values}
    schema.touch(conn, schema.routers, id_, now, **changes)
    if "external_gateway_info" in values:
        _set_gateway(conn, caller, router, values["external_gateway_info"] or GatewayBody(), now)
    return access.router(conn, caller, id_)


def delete_router(conn: sa.Connection, caller: RequestContext, id_: str) -> None:
    """Spec: EMN-12."""
    router = access.router(conn, caller, id_)
    if interfaces_of(conn, id_):
        raise RouterInUse(id_)
    _clear_gateway(conn, router)
    conn.execute(sa.delete(schema.routers).where(schema.routers.c.id == id_))


def interfaces_of(conn: sa.Connection, router_id: str) -> list[schema.Port]:
    return [port for port in ports_of_device(conn, router_id) if port.device_owner == INTERFACE]


def gateway_of(conn: sa.Connection, router_id: str) -> schema.Port | None:
    return next((port for port in ports_of_device(conn, router_id) if port.device_owner == GATEWAY), None)


def works(conn: sa.Connection, router_id: str) -> bool:
    """Whether it is wired: it is up, and an agent has it."""
    return _WORKS.first(conn, id=router_id) is not None


def add_interface(conn: sa.Connection, caller: RequestContext, id_: str, body: InterfaceBody,
                  now: float) -> schema.Port:
    """Join a subnet, at its gateway's address or at that of a port. Returns the port. Spec: EMN-10."""
    router = access.router(conn, caller, id_)
    if (body.subnet_id is None) == (body.port_id is None):
        raise InvalidInput("Bad router request: either subnet_id or port_id must be given, and not both.")
    if body.port_id is not None:
        port = access.port(conn, caller, body.port_id)
        if port.device_id:
            raise PortInUse(port.id, port.device_id)
        if len(port.addresses) != 1:
            raise InvalidInput(f"Bad router request: port {port.id} must have exactly one address.")
        subnet = access.subnet(conn, caller, port.addresses[0].subnet_id)
        _check_apart(conn, caller, router, subnet)
        _schedule(conn, id_)
        schema.touch(conn, schema.ports, port.id, now, device_id=id_, device_owner=INTERFACE, status="ACTIVE")
        return existing_port(conn, port.id)
    assert body.subnet_id is not None
    subnet = access.subnet(conn, caller, body.subnet_id)
    if subnet.gateway is None:
        raise InvalidInput(f"Bad router request: Subnet for router interface must have a gateway IP: {subnet.id}.")
    if not access.owns(caller, subnet):
        raise Forbidden(f"Subnet {subnet.id} belongs to another project.")
    _check_apart(conn, caller, router, subnet)
    if addresses.holder(conn, subnet.network_id, subnet.gateway) is not None:
        raise IpAddressAlreadyAllocated(subnet.gateway, subnet.id)
    chosen = [addresses.taken_at(subnet, addresses.parse_ip(subnet.gateway))]
    _schedule(conn, id_)
    return make_port(conn, subnet.network_id, router.project_id, id_, INTERFACE, chosen, now)


def remove_interface(conn: sa.Connection, caller: RequestContext, id_: str, body: InterfaceBody) -> schema.Port:
    """Returns the port that is gone. Spec: EMN-11."""
    access.router(conn, caller, id_)
    if body.subnet_id is None and body.port_id is None:
        raise InvalidInput("Bad router request: either subnet_id or port_id must be given.")
    for port in interfaces_of(conn, id_):
        subnet_id = port.addresses[0].subnet_id
        if body.port_id in (None, port.id) and body.subnet_id in (None, subnet_id):
            _check_unused(conn, id_, subnet_id)
            remove(conn, port.id)
            return port
    if body.port_id is not None:
        raise RouterInterfaceNotFound(id_, body.port_id)
    raise RouterInterfaceNotFoundForSubnet(id_, str(body.subnet_id))


def router_between(conn: sa.Connection, subnet_id: str, external_network_id: str) -> str | None:
    """The router that joins a subnet to an external network."""
    routers, ports, held = schema.routers.c, schema.ports.c, schema.addresses.c
    found: str | None = conn.execute(
        sa.select(routers.id).join(schema.ports, ports.device_id == routers.id)
        .join(schema.addresses, held.port_id == ports.id)
        .where(routers.external_network_id == external_network_id, held.subnet_id == subnet_id,
               ports.device_owner == INTERFACE).order_by(routers.created_at, routers.id)
    ).scalar()
    return found


def make_port(conn: sa.Connection, network_id: str, project_id: str, device_id: str, owner: str,
              chosen: list[addresses.Allocation], now: float) -> schema.Port:
    """A port of a router or floating IP: bound to no host, filtered by nothing."""
    id_ = str(uuid.uuid4())
    conn.execute(sa.insert(schema.ports).values(
        id=id_, network_id=network_id, project_id=project_id, name="", description="", tags=(), admin_state_up=True,
        mac=addresses.free_mac(conn, network_id, id_), device_id=device_id, device_owner=owner, host="",
        vif_type="unbound", vnic_type="normal", profile={}, status="ACTIVE", secured=False, pairs=(), dhcp_options=(),
        dns_name="", owned=False, device_tag=None, **schema.stamp(now),
    ))
    addresses.assign(conn, id_, chosen)
    return existing_port(conn, id_)


def external_network(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Network:
    """Raises NetworkNotFound; InvalidInput: it is not external."""
    network = access.network(conn, caller, id_)
    if not network.external:
        raise InvalidInput(f"Network {id_} is not a valid external network")
    return network


def _set_gateway(conn: sa.Connection, caller: RequestContext, router: schema.Router, wanted: GatewayBody,
                 now: float) -> None:
    """Spec: EMN-13."""
    if wanted.network_id is None:
        _clear_gateway(conn, router)
        return
    network = external_network(conn, caller, wanted.network_id)
    changes: dict[str, Any] = {} if wanted.enable_snat is None else {"snat": wanted.enable_snat}
    asked = None if wanted.external_fixed_ips is None else [
        FixedIpBody(ip.subnet_id, ip.ip_address) for ip in wanted.external_fixed_ips
    ]
    if router.external_network_id != network.id or asked:
        if router.external_network_id not in (None, network.id):
            _clear_gateway(conn, router)
        held = gateway_of(conn, router.id)
        chosen = addresses.choose(conn, network.id, subnets_of(conn, network.id), asked or None,
                                  held.id if held is not None else "")
        if not chosen:
            raise InvalidInput(f"Bad router request: network {network.id} has no subnet.")
        if held is None:
            _schedule(conn, router.id)
            make_port(conn, network.id, "", router.id, GATEWAY, chosen, now)
        else:
            addresses.assign(conn, held.id, chosen)
        changes["external_network_id"] = network.id
    schema.touch(conn, schema.routers, router.id, now, **changes)


def _clear_gateway(conn: sa.Connection, router: schema.Router) -> None:
    if router.external_network_id is None:
        return
    floating = schema.floating_ips.c
    if conn.execute(sa.select(floating.id).where(floating.router_id == router.id).limit(1)).first():
        raise RouterExternalGatewayInUseByFloatingIp(router.id, router.external_network_id)
    port = gateway_of(conn, router.id)
    if port is not None:
        remove(conn, port.id)
    conn.execute(sa.update(schema.routers).where(schema.routers.c.id == router.id).values(external_network_id=None))


def _schedule(conn: sa.Connection, id_: str) -> None:
    """Give a router that begins to have something to do to the agent of this machine, if that is enabled. One that was
    taken away from it stays so."""
    table = schema.routers
    conn.execute(
        sa.update(table).where(table.c.id == id_, table.c.scheduled.is_(None), NONE_DISABLED).values(scheduled=True)
    )


def schedule_waiting(conn: sa.Connection) -> None:
    """Give the agent of this machine all routers that got something to do while it was disabled."""
    table, ports = schema.routers, schema.ports
    busy = sa.exists().where(ports.c.device_id == table.c.id, ports.c.device_owner.in_((GATEWAY, INTERFACE)))
    conn.execute(sa.update(table).where(table.c.scheduled.is_(None), busy).values(scheduled=True))


def _check_apart(conn: sa.Connection, caller: RequestContext, router: schema.Router, subnet: schema.Subnet) -> None:
    cidr = ipaddress.ip_network(subnet.cidr)
    for port in interfaces_of(conn, router.id):
        for held in port.addresses:
            other = access.subnet(conn, caller, held.subnet_id)
            if other.id == subnet.id:
                raise InvalidInput(f"Bad router request: Router already has a port on subnet {subnet.id}.")
            if ipaddress.ip_network(other.cidr).overlaps(cidr):
                raise InvalidInput(
                    f"Bad router request: Cidr {subnet.cidr} of subnet {subnet.id} overlaps with cidr {other.cidr} of "
                    f"subnet {other.id}."
                )


def _check_unused(conn: sa.Connection, router_id: str, subnet_id: str) -> None:
    floating, held = schema.floating_ips.c, schema.addresses.c
    behind = sa.select(floating.id).join(
        schema.addresses, sa.and_(held.port_id == floating.fixed_port_id, held.address == floating.fixed_address)
    ).where(floating.router_id == router_id, held.subnet_id == subnet_id)
    if conn.execute(behind.limit(1)).first():
        raise RouterInterfaceInUseByFloatingIP(router_id, subnet_id)


def fixed_port(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Port:
    """A port of the caller's that a floating IP may stand for. Raises PortNotFound, InvalidInput."""
    port = access.port(conn, caller, id_)
    if not any(version_of(item.address) == 4 for item in port.addresses):
        raise InvalidInput(
            f"Bad floatingip request: Cannot add floating IP to port {id_} that has no fixed IPv4 addresses."
        )
    return port


