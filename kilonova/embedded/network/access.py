"""Who may see and change what. Spec: EMI-05, EMN-03, EMN-04."""

from __future__ import annotations

from typing import Protocol

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput, NetworkNotFound, NotFound, PortNotFound
from kilonova.embedded.network import schema
from kilonova.embedded.network.bodies import Body, sent
from kilonova.embedded.network.errors import (
    FloatingIPNotFound,
    RouterNotFound,
    SecurityGroupNotFound,
    SecurityGroupRuleNotFound,
    SubnetNotFound,
)
from kilonova.embedded.network.port_records import find_port

_NETWORK = Prepared(sa.select(schema.networks).where(schema.networks.c.id == sa.bindparam("id")))


class Owned(Protocol):
    @property
    def project_id(self) -> str: ...


def privileged(caller: RequestContext) -> bool:
    """May act for every project: an administrator or another service."""
    return caller.is_admin or "service" in caller.roles


def owns(caller: RequestContext, thing: Owned) -> bool:
    return privileged(caller) or (bool(caller.project_id) and thing.project_id == caller.project_id)


def target_project(caller: RequestContext, body: Body) -> str:
    """The project a new object is for: the caller's, or any if an administrator names it."""
    values = sent(body)
    wanted = values.get("project_id", values.get("tenant_id"))
    if wanted is not None and wanted != caller.project_id:
        if not privileged(caller):
            raise Forbidden("Specifying 'project_id' other than the authenticated project requires admin privileges")
        return str(wanted)
    if not caller.project_id:
        raise InvalidInput("A project is needed: use a token with project scope, or send project_id.")
    return caller.project_id


def visible_networks(caller: RequestContext) -> sa.ColumnElement[bool]:
    table = schema.networks
    if privileged(caller):
        return sa.true()
    return sa.or_(table.c.project_id == caller.project_id, table.c.shared, table.c.external)


def network(conn: sa.Connection, caller: RequestContext, id_: str, *, change: bool = False) -> schema.Network:
    """A network the caller may see (and change). Raises NetworkNotFound, Forbidden."""
    found = find_network(conn, id_)
    if found is None or not may_use(caller, found):
        raise NetworkNotFound(id_)
    if change and not owns(caller, found):
        raise Forbidden(f"Network {id_} belongs to another project.")
    return found


def find_network(conn: sa.Connection, id_: str) -> schema.Network | None:
    row = _NETWORK.first(conn, id=id_)
    return None if row is None else schema.record(schema.Network, row)


def may_use(caller: RequestContext, found: schema.Network) -> bool:
    """What `visible_networks` asks of a row."""
    return owns(caller, found) or found.shared or found.external


def open_to(project_id: str, found: schema.Network) -> bool:
    """Whether members of a project may use a network, whoever asks for them."""
    return found.project_id == project_id or found.shared or found.external


def subnet(conn: sa.Connection, caller: RequestContext, id_: str, *, change: bool = False) -> schema.Subnet:
    row = conn.execute(sa.select(schema.subnets).where(schema.subnets.c.id == id_)).one_or_none()
    if row is None:
        raise SubnetNotFound(id_)
    found = schema.record(schema.Subnet, row)
    try:
        network(conn, caller, found.network_id)
    except NotFound as error:
        raise SubnetNotFound(id_) from error
    if change and not owns(caller, found):
        raise Forbidden(f"Subnet {id_} belongs to another project.")
    return found


def port(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Port:
    """A port of the caller's project, or on a network of that project."""
    found = find_port(conn, id_)
    if found is None or not (owns(caller, found) or _owns_network(conn, caller, found.network_id)):
        raise PortNotFound(id_)
    return found


def _owns_network(conn: sa.Connection, caller: RequestContext, id_: str) -> bool:
    found = find_network(conn, id_)
    return found is not None and found.project_id == caller.project_id


def group(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Group:
    row = conn.execute(sa.select(schema.groups).where(schema.groups.c.id == id_)).one_or_none()
    if row is None or not owns(caller, found := schema.record(schema.Group, row)):
        raise SecurityGroupNotFound(id_)
    return found


def router(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Router:
    row = conn.execute(sa.select(schema.routers).where(schema.routers.c.id == id_)).one_or_none()
    if row is None or not owns(caller, found := schema.record(schema.Router, row)):
        raise RouterNotFound(id_)
    return found


def floating_ip(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.FloatingIp:
    row = conn.execute(sa.select(schema.floating_ips).where(schema.floating_ips.c.id == id_)).one_or_none()
    if row is None or not owns(caller, found := schema.record(schema.FloatingIp, row)):
        raise FloatingIPNotFound(id_)
    return found


def rule(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Rule:
    row = conn.execute(sa.select(schema.rules).where(schema.rules.c.id == id_)).one_or_none()
    if row is None or not owns(caller, found := schema.record(schema.Rule, row)):
        raise SecurityGroupRuleNotFound(id_)
    return found
