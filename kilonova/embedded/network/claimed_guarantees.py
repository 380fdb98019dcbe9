"""What is claimed for a port of a server follows the port's policy, in the same transaction."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.placement.port_claims import add_group, drop_group
from kilonova.db.placement.tables import allocation_groups
from kilonova.db.placement.trees import groups_held
from kilonova.embedded.network import physical, qos, schema
from kilonova.embedded.network.errors import QosRuleConflict
from kilonova.shapes.resources import groups_of_ports, port_of_group, served_ports


def follow(conn: sa.Connection, port: schema.Port, now: float) -> None:
    """Claim for a port what its policy guarantees now, instead of what it guaranteed before.

    Of a kind (bandwidth, packet rate) of which the port had no claim none is made: its server has to be moved, or the
    port to be attached anew, for that.

    Raises:
        QosRuleConflict: the host has not that much left, or the server has claims on two hosts, being moved.

    Spec: EMP-08.
    """
    claimed = [suffix for suffix in groups_held(conn, port.device_id) if port_of_group(suffix) == port.id]
    if not claimed:
        return
    policy = qos.policy_of(conn, port.id) or qos.policy_of(conn, port.network_id) or "none"
    consumers = sa.select(sa.func.count(allocation_groups.c.consumer.distinct()))
    if conn.execute(consumers.where(allocation_groups.c.suffix.in_(claimed))).scalar_one() > 1:
        raise QosRuleConflict(policy, f"the server of port {port.id} is being moved")
    for suffix in claimed:
        drop_group(conn, port.device_id, suffix)
    need = physical.need_of(conn, port)
    served: dict[str, str] = {}
    for group in groups_of_ports([need] if need is not None else []):
        if group.suffix in claimed:
            provider = add_group(conn, port.device_id, port.host, group)
            if provider is None:
                raise QosRuleConflict(policy, f"host {port.host} of port {port.id} has not that much left")
            served[group.suffix] = provider
    if served:
        qos.serve(conn, port, served_ports(served)[port.id], now)
    else:
        qos.forget_provider(conn, port, now)
