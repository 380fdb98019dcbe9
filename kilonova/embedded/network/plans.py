"""What the wiring is asked to make, read from the records."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.embedded.network import schema
from kilonova.embedded.network.networks import dhcp_port_id, subnets_of
from kilonova.embedded.network.port_records import ports_where
from kilonova.embedded.network.security import protocol_number, rules_of
from kilonova.embedded.network.wiring import GroupPlan, NetworkPlan, PortPlan, RulePlan, SubnetPlan


def network_plan(conn: sa.Connection, network_id: str) -> NetworkPlan | None:
    """The plan of a network, None if it is gone."""
    row = conn.execute(sa.select(schema.networks).where(schema.networks.c.id == network_id)).one_or_none()
    if row is None:
        return None
    network = schema.record(schema.Network, row)
    table = schema.addresses
    subnets = []
    for subnet in subnets_of(conn, network_id):
        address = conn.execute(
            sa.select(table.c.address).where(table.c.port_id == dhcp_port_id(subnet.id))
        ).scalar() if subnet.dhcp else None
        subnets.append(SubnetPlan(
            id=subnet.id, cidr=subnet.cidr, gateway=subnet.gateway, dhcp_address=address, dns=subnet.dns,
            routes=subnet.routes,
        ))
    return NetworkPlan(
        id=network.id, segment=network.segment, mtu=network.mtu, admin_state_up=network.admin_state_up,
        subnets=tuple(subnets),
    )


def port_plan(port: schema.Port) -> PortPlan:
    return PortPlan(
        id=port.id, network_id=port.network_id, mac=port.mac,
        addresses=tuple((item.subnet_id, item.address) for item in port.addresses),
        pairs=tuple(((pair.mac_address or port.mac).lower(), pair.ip_address) for pair in port.pairs),
        groups=port.group_ids, secured=port.secured, admin_state_up=port.admin_state_up, hostname=port.dns_name,
        dhcp_options=port.dhcp_options,
    )


def group_plans(conn: sa.Connection, group_ids: list[str]) -> list[GroupPlan]:
    return [
        GroupPlan(id=id_, rules=tuple(_rule_plan(rule) for rule in rules))
        for id_, rules in rules_of(conn, group_ids).items()
    ]


def _rule_plan(rule: schema.Rule) -> RulePlan:
    return RulePlan(
        ingress=rule.direction == "ingress", version=int(rule.ethertype[-1]),
        protocol=None if rule.protocol is None else protocol_number(rule.protocol),
        port_min=rule.port_min, port_max=rule.port_max, remote_prefix=rule.remote_prefix,
        remote_group=rule.remote_group_id,
    )


def everything(conn: sa.Connection) -> tuple[list[NetworkPlan], list[PortPlan], list[GroupPlan]]:
    """All plans, for a wiring that starts: bound ports, and the networks and groups they use."""
    ports = ports_where(conn, schema.ports.c.vif_type == "bridge")
    networks = [network_plan(conn, id_) for id_ in sorted({port.network_id for port in ports})]
    groups = sorted({id_ for port in ports for id_ in port.group_ids})
    return (
        [plan for plan in networks if plan is not None],
        [port_plan(port) for port in ports],
        group_plans(conn, groups),
    )
