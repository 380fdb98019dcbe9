"""What the wiring is asked to make, read from the records."""

from __future__ import annotations

from collections import defaultdict

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.embedded.network import physical, schema
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.networks import dhcp_port_id, subnets_of
from kilonova.embedded.network.port_records import ports_where
from kilonova.embedded.network.security import protocol_number, rules_of
from kilonova.embedded.network.wiring import (
    FloatingPlan,
    GroupPlan,
    NetworkPlan,
    PortPlan,
    RouterPlan,
    RulePlan,
    SubnetPlan,
)

INTERFACE, GATEWAY, FLOATING = "network:router_interface", "network:router_gateway", "network:floatingip"
"""Owners of the ports of routers and floating IPs."""

Addresses = set[tuple[int, str]]
"""Segments of networks, with an address on each."""

_ports, _addresses, _floating, _routers = schema.ports.c, schema.addresses.c, schema.floating_ips.c, schema.routers.c
_OF_ROUTER = sa.or_(_ports.device_owner == INTERFACE, _ports.device_owner == GATEWAY)
WORKS = sa.and_(_routers.admin_state_up == sa.true(), _routers.scheduled == sa.true())
"""Of a router: it is up, and scheduled to the agent of this machine."""
_ANSWERS_TO = Prepared(
    sa.select(_addresses.address).join(schema.ports, _ports.id == _addresses.port_id)
    .join(schema.routers, _routers.id == _ports.device_id)
    .where(_ports.network_id == sa.bindparam("network"), _OF_ROUTER, WORKS)
    .union(
        sa.select(_floating.address).join(schema.routers, _routers.id == _floating.router_id)
        .where(_floating.network_id == sa.bindparam("network"), WORKS),
    ).order_by(sa.literal_column("1"))
)
"""Nobody answers for a router that is down, or that no agent has. Spec: EMN-14."""
_ROUTERS = Prepared(sa.select(schema.routers).order_by(_routers.id))
_ASSOCIATED = Prepared(
    sa.select(_floating.router_id, _floating.address, _ports.network_id, _floating.fixed_address)
    .join(schema.ports, _ports.id == _floating.fixed_port_id)
    .where(_floating.router_id.is_not(None)).order_by(_floating.address)
)


def network_plan(conn: sa.Connection, network_id: str) -> NetworkPlan | None:
    """The plan of a network, None if it is gone."""
    row = conn.execute(sa.select(schema.networks).where(schema.networks.c.id == network_id)).one_or_none()
    if row is None:
        return None
    network = schema.record(schema.Network, row)
    answers_to = tuple(_ANSWERS_TO.scalars(conn, network=network_id))
    outside = physical.of_network(conn, network_id)
    table = schema.addresses
    subnets = []
    for subnet in subnets_of(conn, network_id):
        address = conn.execute(
            sa.select(table.c.address).where(table.c.port_id == dhcp_port_id(subnet.id))
        ).scalar() if subnet.dhcp else None
        announced = outside is None or subnet.gateway in answers_to
        subnets.append(SubnetPlan(
            id=subnet.id, cidr=subnet.cidr, gateway=subnet.gateway, dhcp_address=address, dns=subnet.dns,
            routes=subnet.routes, ra_mode=subnet.ra_mode if announced else None, address_mode=subnet.address_mode,
        ))
    return NetworkPlan(
        id=network.id, segment=network.segment, mtu=network.mtu, admin_state_up=network.admin_state_up,
        subnets=tuple(subnets), answers_to=answers_to, physical=outside,
    )


def router_addresses(conn: sa.Connection) -> tuple[Addresses, Addresses]:
    """Addresses of routers and floating IPs: those that are to answer, and those that are not. The gateway of a subnet
    is none of them: the machine may answer there without a router."""
    networks, subnets = schema.networks.c, schema.subnets.c
    held = conn.execute(
        sa.select(networks.id, networks.segment, _addresses.address)
        .join(schema.addresses, _addresses.network_id == networks.id)
        .join(schema.ports, _ports.id == _addresses.port_id).join(schema.subnets, subnets.id == _addresses.subnet_id)
        .where(sa.or_(_OF_ROUTER, _ports.device_owner == FLOATING),
               sa.or_(subnets.gateway.is_(None), subnets.gateway != _addresses.address))
    ).all()
    answering = {id_: set(_ANSWERS_TO.scalars(conn, network=id_)) for id_ in {row.id for row in held}}
    answer = {(row.segment, row.address) for row in held if row.address in answering[row.id]}
    return answer, {(row.segment, row.address) for row in held} - answer


def router_plans(conn: sa.Connection) -> tuple[RouterPlan, ...]:
    """The plans of all routers. Spec: EMN-10, EMN-13, EMN-14, EMN-57."""
    routers = [schema.record(schema.Router, row) for row in _ROUTERS.all(conn)]
    if not routers:
        return ()
    held: dict[str, list[schema.Port]] = defaultdict(list)
    for port in ports_where(conn, schema.ports.c.device_owner.in_((INTERFACE, GATEWAY))):
        held[port.device_id].append(port)
    floating: dict[str, list[FloatingPlan]] = defaultdict(list)
    for row in _ASSOCIATED.all(conn):
        floating[row.router_id].append(FloatingPlan(row.address, row.network_id, row.fixed_address))
    plans = []
    for router in routers:
        gateways = [item.address for port in held[router.id] if port.device_owner == GATEWAY
                    for item in port.addresses if version_of(item.address) == 4]
        plans.append(RouterPlan(
            id=router.id, works=router.admin_state_up and bool(router.scheduled),
            external_network_id=router.external_network_id,
            network_ids=_joined(held[router.id], 4), network_ids_v6=_joined(held[router.id], 6),
            gateway=gateways[0] if gateways and router.snat else "", floating=tuple(floating[router.id]),
        ))
    return tuple(plans)


def _joined(held: list[schema.Port], version: int) -> tuple[str, ...]:
    """The networks that a router with these ports joins for a version of IP."""
    return tuple(dict.fromkeys(
        port.network_id for port in held
        if port.device_owner == INTERFACE and any(version_of(a.address) == version for a in port.addresses)
    ))


def networks_of(routers: tuple[RouterPlan, ...]) -> set[str]:
    """The networks that these routers join."""
    inner = {id_ for plan in routers for id_ in (*plan.network_ids, *plan.network_ids_v6)}
    return inner | {plan.external_network_id for plan in routers if plan.external_network_id}


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


def everything(
    conn: sa.Connection
) -> tuple[list[NetworkPlan], list[PortPlan], list[GroupPlan], tuple[RouterPlan, ...]]:
    """All plans, for a wiring that starts: routers and bound ports, and the networks and groups they use."""
    routers = router_plans(conn)
    ports = ports_where(conn, schema.ports.c.vif_type == "bridge")
    networks = [network_plan(conn, id_) for id_ in sorted({port.network_id for port in ports} | networks_of(routers))]
    groups = sorted({id_ for port in ports for id_ in port.group_ids})
    return (
        [plan for plan in networks if plan is not None],
        [port_plan(port) for port in ports],
        group_plans(conn, groups),
        routers,
    )
