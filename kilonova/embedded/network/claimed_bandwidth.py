"""What is claimed for a port of a server follows the port's policy, in the same transaction."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.placement.port_claims import add_group, drop_group
from kilonova.db.placement.tables import allocation_groups
from kilonova.db.placement.trees import groups_held
from kilonova.embedded.network import physical, qos, schema
from kilonova.embedded.network.errors import QosRuleConflict
from kilonova.shapes.resources import PORT_GROUP, groups_of_ports


def follow(conn: sa.Connection, port: schema.Port, now: float) -> None:
    """Claim for a port what its policy guarantees now, instead of what it guaranteed before.

    For a port that had no claim none is made: its server has to be moved, or the port to be attached anew, for that.

    Raises:
        QosRuleConflict: the host has not that much left, or the server has claims on two hosts, being moved.

    Spec: EMP-08.
    """
    suffix = PORT_GROUP + port.id
    if suffix not in groups_held(conn, port.device_id):
        return
    policy = qos.policy_of(conn, port.id) or qos.policy_of(conn, port.network_id) or "none"
    holding = sa.select(sa.func.count()).where(allocation_groups.c.suffix == suffix)
    if conn.execute(holding).scalar_one() > 1:
        raise QosRuleConflict(policy, f"the server of port {port.id} is being moved")
    drop_group(conn, port.device_id, suffix)
    need = physical.need_of(conn, port)
    if need is None:
        qos.forget_provider(conn, port, now)
        return
    (group,) = groups_of_ports([need])
    provider = add_group(conn, port.device_id, port.host, group)
    if provider is None:
        raise QosRuleConflict(policy, f"host {port.host} of port {port.id} has not that much left")
    qos.serve(conn, port, provider, now)
