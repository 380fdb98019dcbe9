"""Floating IPs: units of work that create, associate and delete them."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import access, addresses, quotas, routers, schema
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.bodies import (
    FixedIpBody,
    FloatingIpBody,
    refuse_read_only,
    require_privilege,
    sent,
)
from kilonova.embedded.network.errors import ExternalGatewayForFloatingIPNotFound, FloatingIPPortAlreadyAssociated
from kilonova.embedded.network.networks import subnets_of
from kilonova.embedded.network.plans import FLOATING
from kilonova.embedded.network.port_records import find_port, ports_of_device
from kilonova.embedded.network.ports import remove

_table = schema.floating_ips
_OF_PORT = Prepared(
    sa.select(_table.c.fixed_address, _table.c.address).where(_table.c.fixed_port_id == sa.bindparam("port"))
    .order_by(_table.c.created_at, _table.c.id)
)


def create(conn: sa.Connection, caller: RequestContext, body: FloatingIpBody, now: float) -> schema.FloatingIp:
    """Spec: EMN-50, EMN-51."""
    if body.floating_network_id is UNSET:
        raise InvalidInput("Invalid input: floating_network_id is required.")
    project_id = access.target_project(caller, body)
    require_privilege(body, access.privileged(caller), "floating_ip_address")
    quotas.check(conn, project_id, "floatingip")
    network = routers.external_network(conn, caller, body.floating_network_id)
    values = sent(body)
    wanted = None
    if values.get("floating_ip_address") or values.get("subnet_id"):
        wanted = [FixedIpBody(values.get("subnet_id"), values.get("floating_ip_address"))]
    subnets = [subnet for subnet in subnets_of(conn, network.id) if subnet.version == 4]
    chosen = addresses.choose(conn, network.id, subnets, wanted, "")
    if not chosen:
        raise InvalidInput(f"Bad floatingip request: network {network.id} has no IPv4 subnet.")
    id_ = str(uuid.uuid4())
    routers.make_port(conn, network.id, "", id_, FLOATING, chosen, now)
    conn.execute(sa.insert(_table).values(
        id=id_, project_id=project_id, network_id=network.id, address=chosen[0].address,
        description=values.get("description", ""), tags=tuple(values.get("tags", ())), fixed_port_id=None,
        fixed_address=None, router_id=None, **schema.stamp(now),
    ))
    if values.get("port_id"):
        _associate(conn, caller, access.floating_ip(conn, caller, id_), values, now)
    return access.floating_ip(conn, caller, id_)


def update(conn: sa.Connection, caller: RequestContext, id_: str, body: FloatingIpBody,
           now: float) -> tuple[schema.FloatingIp, schema.FloatingIp]:
    """Returns it before and after. Spec: EMN-52, EMN-53."""
    before = access.floating_ip(conn, caller, id_)
    refuse_read_only(body, "project_id", "tenant_id", "tags", "floating_network_id", "floating_ip_address", "subnet_id")
    values = sent(body)
    if "description" in values:
        schema.touch(conn, _table, id_, now, description=values["description"])
    if values.get("port_id"):
        _associate(conn, caller, before, values, now)
    elif "port_id" in values:
        if values.get("fixed_ip_address"):
            raise InvalidInput("Bad floatingip request: fixed_ip_address needs a port_id.")
        schema.touch(conn, _table, id_, now, fixed_port_id=None, fixed_address=None, router_id=None)
    return before, access.floating_ip(conn, caller, id_)


def delete(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.FloatingIp:
    """Returns what it was. Spec: EMN-58."""
    floating = access.floating_ip(conn, caller, id_)
    conn.execute(sa.delete(_table).where(_table.c.id == id_))
    for port in ports_of_device(conn, id_):
        remove(conn, port.id)
    return floating


def of_port(conn: sa.Connection, port_id: str) -> dict[str, tuple[str, ...]]:
    """By fixed address of a port, the floating ones that stand for it."""
    found: dict[str, tuple[str, ...]] = {}
    for row in _OF_PORT.all(conn, port=port_id):
        found[row.fixed_address] = (*found.get(row.fixed_address, ()), row.address)
    return found


def ports_behind(conn: sa.Connection, *items: schema.FloatingIp) -> list[schema.Port]:
    """The ports that these stand for, each once."""
    ids = dict.fromkeys(item.fixed_port_id for item in items if item.fixed_port_id)
    return [port for id_ in ids if (port := find_port(conn, id_)) is not None]


def _associate(conn: sa.Connection, caller: RequestContext, floating: schema.FloatingIp, values: dict[str, Any],
               now: float) -> None:
    """Spec: EMN-51, EMN-52."""
    port = routers.fixed_port(conn, caller, values["port_id"])
    held_v4 = [item for item in port.addresses if version_of(item.address) == 4]
    fixed = values.get("fixed_ip_address") or held_v4[0].address
    subnet_id = next((held.subnet_id for held in held_v4 if held.address == fixed), None)
    if subnet_id is None:
        raise InvalidInput(f"Bad floatingip request: Port {port.id} does not have fixed ip {fixed}.")
    other = conn.execute(sa.select(_table.c.address).where(
        _table.c.network_id == floating.network_id, _table.c.fixed_port_id == port.id,
        _table.c.fixed_address == fixed, _table.c.id != floating.id,
    )).first()
    if other:
        raise FloatingIPPortAlreadyAssociated(floating.address, port.id, fixed)
    router_id = routers.router_between(conn, subnet_id, floating.network_id)
    if router_id is None:
        raise ExternalGatewayForFloatingIPNotFound(subnet_id, floating.network_id, port.id)
    schema.touch(conn, _table, floating.id, now, fixed_port_id=port.id, fixed_address=fixed, router_id=router_id)
