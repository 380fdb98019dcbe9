"""Ports that a user made and gives to the server: no operation deletes them."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.network import (
    BANDWIDTH,
    BANDWIDTH_CLASSES,
    PACKET_RATE,
    PACKET_RATE_CLASSES,
    PACKET_RATE_TRAITS,
    PortDevice,
    PortGroup,
    PortNeed,
    bandwidth_traits,
)
from kilonova.embedded.network import networks, ports, qos
from kilonova.embedded.network.bodies import (
    BandwidthRuleBody,
    NetworkBody,
    PacketRateRuleBody,
    PolicyBody,
    PortBody,
    SubnetBody,
)
from kilonova.embedded.network.qos_schema import MINIMUM_BANDWIDTH, MINIMUM_PACKET_RATE
from kilonova.hypervisor.guest import NetworkBandwidth, PacketRate

USERS_PORT = "33333333-3333-4333-8333-333333333333"
"""Guaranteed a bandwidth and a packet rate."""
KBPS, KPPS = 100, 10
BANDWIDTHS = (NetworkBandwidth(egress_kbps=1000, ingress_kbps=0),)
RATE = PacketRate(kpps=1000)
"""What hosts can guarantee."""
NEED = PortNeed(port_id=USERS_PORT, groups=(
    PortGroup(name=BANDWIDTH, resources={BANDWIDTH_CLASSES["egress"]: KBPS}, traits=bandwidth_traits("")),
    PortGroup(name=PACKET_RATE, resources={PACKET_RATE_CLASSES["any"]: KPPS}, traits=PACKET_RATE_TRAITS),
))
DEVICE_PORT, SPARE_PORT = "34343434-3434-4434-8434-343434343434", "35353535-3535-4535-8535-353535353535"
"""PCI devices; the server is built with the first."""
DEVICE_NEEDS = {
    port: PortNeed(port_id=port, device=PortDevice(vnic_type="direct", physical_network="physnet1"))
    for port in (DEVICE_PORT, SPARE_PORT)
}


def make(conn: sa.Connection, project: str, network: str, now: float) -> None:
    """Make them all. network: of the one that is no device."""
    caller = RequestContext(request_id="", user_id="u", project_id=project, roles=("member",))
    body = PortBody(network_id=network, project_id=project)
    ports.create_port(conn, caller, body, now, lambda _host: True, USERS_PORT)
    admin = RequestContext(request_id="", user_id="a", project_id=project, roles=("admin",), is_admin=True)
    _guarantee(conn, admin, now)
    _bring_devices(conn, admin, project, now)


def _guarantee(conn: sa.Connection, admin: RequestContext, now: float) -> None:
    policy = qos.create(conn, admin, PolicyBody(name="guaranteed"), now)
    qos.create_rule(conn, admin, MINIMUM_BANDWIDTH, policy.id, BandwidthRuleBody(amount=KBPS))
    qos.create_rule(conn, admin, MINIMUM_PACKET_RATE, policy.id, PacketRateRuleBody(direction="any", amount=KPPS))
    qos.set_policy(conn, admin, USERS_PORT, policy.id)


def _bring_devices(conn: sa.Connection, admin: RequestContext, project: str, now: float) -> None:
    """On a physical network."""
    network = networks.create_network(conn, admin, NetworkBody(
        name="outside", shared=True, provider_network_type="vlan", provider_physical_network="physnet1",
        provider_segmentation_id=100,
    ), now)
    networks.create_subnet(conn, admin, SubnetBody(
        network_id=network.id, ip_version=4, cidr="10.20.0.0/24", enable_dhcp=False
    ), now)
    for port in DEVICE_NEEDS:
        body = PortBody(network_id=network.id, project_id=project, vnic_type="direct")
        ports.create_port(conn, admin, body, now, lambda _host: True, port)
