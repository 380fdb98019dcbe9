"""The network that a fresh installation has. It has no external one: clients would give every new server a floating IP,
which needs a router that only an operator can choose."""

from __future__ import annotations

import uuid
import zlib

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.embedded.network import networks, schema, security
from kilonova.embedded.network.bodies import NetworkBody, SubnetBody


def make_private(conn: sa.Connection, owner: RequestContext, name: str, cidr: str | None, now: float) -> str:
    """A shared network for servers. cidr: None for a /24 of 10.64.0.0/10."""
    id_, spread = _id(owner, name), _spread(owner)
    if _exists(conn, id_):
        return id_
    networks.create_network(conn, owner, NetworkBody(name=name, shared=True, is_default=True), now, id_)
    chosen = cidr or f"10.{64 + spread % 64}.{spread // 64 % 256}.0/24"
    _make_subnet(conn, owner, SubnetBody(name=f"{name}-subnet", network_id=id_, cidr=chosen), now)
    security.ensure_default_group(conn, owner.project_id or "", now)
    return id_


def _make_subnet(conn: sa.Connection, owner: RequestContext, body: SubnetBody, now: float) -> None:
    id_ = str(uuid.uuid5(schema.NAMESPACE, f"subnet/{body.network_id}"))
    networks.create_subnet(conn, owner, body, now, id_)


def _exists(conn: sa.Connection, id_: str) -> bool:
    return conn.execute(sa.select(schema.networks.c.id).where(schema.networks.c.id == id_)).first() is not None


def _id(owner: RequestContext, name: str) -> str:
    return str(uuid.uuid5(schema.NAMESPACE, f"bootstrap/{owner.project_id}/{name}"))


def _spread(owner: RequestContext) -> int:
    """A number that depends on the installation: two on one machine hardly ever choose the same range."""
    return zlib.crc32((owner.project_id or "").encode())
