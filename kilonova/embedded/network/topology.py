"""A network for projects that have none: made with subnet and router when it is first asked for.

Ids follow from the project's, and all of it is one unit of work: two requests at once make one. Spec: EMN-15, EMN-16.
"""

from __future__ import annotations

import uuid

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.embedded.network import access, networks, routers, schema, subnet_pools
from kilonova.embedded.network.bodies import GatewayBody, InterfaceBody, NetworkBody, RouterBody, SubnetBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.errors import AutoAllocationFailure

NETWORK, SUBNET, ROUTER = "auto_allocated_network", "auto_allocated_subnet", "auto_allocated_router"
"""Names of what is made."""


def network_id(project_id: str) -> str:
    return _id("network", project_id)


def check(conn: sa.Connection, project_id: str) -> tuple[str, str]:
    """The default external network and the default subnet pool. Raises AutoAllocationFailure naming what lacks."""
    table = schema.networks
    external = conn.execute(
        sa.select(table.c.id).where(table.c.is_default, table.c.external).order_by(table.c.created_at, table.c.id)
    ).scalar()
    if external is None:
        raise AutoAllocationFailure("No default router:external network.")
    pool = subnet_pools.default_of(conn, _owner(project_id), 4)
    if pool is None:
        raise AutoAllocationFailure("No default subnetpools defined.")
    return external, pool.id


def ensure(conn: sa.Connection, project_id: str, now: float, effects: Effects) -> str:
    """The network of the project, made if it is missing. Raises AutoAllocationFailure."""
    id_ = network_id(project_id)
    if access.find_network(conn, id_) is not None:
        return id_
    external, pool = check(conn, project_id)
    owner = _owner(project_id)
    networks.create_network(conn, owner, NetworkBody(name=NETWORK), now, id_)
    body = SubnetBody(name=SUBNET, network_id=id_, subnetpool_id=pool)
    subnet = networks.create_subnet(conn, owner, body, now, _id("subnet", project_id))
    gateway = GatewayBody(network_id=external)
    router = routers.create_router(
        conn, owner, RouterBody(name=ROUTER, external_gateway_info=gateway), now, _id("router", project_id)
    )
    routers.add_interface(conn, owner, router.id, InterfaceBody(subnet_id=subnet.id), now)
    effects.networks.append(id_)
    effects.routers = True
    return id_


def remove(conn: sa.Connection, project_id: str, effects: Effects) -> None:
    """No error if it was never made. Raises NetworkInUse: servers are on it."""
    id_, owner = network_id(project_id), _owner(project_id)
    if access.find_network(conn, id_) is None:
        return
    router = _id("router", project_id)
    if routers.interfaces_of(conn, router):
        routers.remove_interface(conn, owner, router, InterfaceBody(subnet_id=_id("subnet", project_id)))
    if conn.execute(sa.select(schema.routers.c.id).where(schema.routers.c.id == router)).first():
        routers.delete_router(conn, owner, router)
    networks.delete_network(conn, owner, id_)
    effects.networks.append(id_)
    effects.routers = True


def _owner(project_id: str) -> RequestContext:
    """The service, acting for the project."""
    return RequestContext(request_id="", user_id="", project_id=project_id, roles=("service",))


def _id(kind: str, project_id: str) -> str:
    return str(uuid.uuid5(schema.NAMESPACE, f"auto-allocated-{kind}/{project_id}"))
