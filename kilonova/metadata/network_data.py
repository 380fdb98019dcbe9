"""`network_data.json`: the guest's interfaces, for guests that configure them without asking DHCP."""

from __future__ import annotations

from ipaddress import ip_network

import msgspec

from kilonova.domain.network import FixedIp, Subnet, Vif


class Service(msgspec.Struct, frozen=True):
    address: str
    type: str = "dns"


class NetworkRoute(msgspec.Struct, frozen=True):
    network: str
    netmask: str
    gateway: str


class Link(msgspec.Struct, frozen=True):
    """One interface. mtu: bytes."""

    id: str
    vif_id: str
    type: str
    mtu: int
    ethernet_mac_address: str


class LinkNetwork(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One address of one interface. With DHCP the guest asks for all but the link."""

    id: str
    type: str
    link: str
    network_id: str
    ip_address: str | msgspec.UnsetType = msgspec.UNSET
    netmask: str | msgspec.UnsetType = msgspec.UNSET
    routes: list[NetworkRoute] | msgspec.UnsetType = msgspec.UNSET
    services: list[Service] | msgspec.UnsetType = msgspec.UNSET


class NetworkData(msgspec.Struct, frozen=True):
    links: list[Link]
    networks: list[LinkNetwork]
    services: list[Service]


def network_data(vifs: tuple[Vif, ...]) -> NetworkData:
    """Describe the interfaces in the order in which the guest has them."""
    links = [Link(vif.devname, vif.id, vif.vif_type, vif.mtu, vif.mac) for vif in vifs]
    addresses = [(vif, fixed) for vif in vifs for fixed in vif.fixed_ips]
    networks = [_network(number, vif, fixed) for number, (vif, fixed) in enumerate(addresses)]
    servers = dict.fromkeys(address for _, fixed in addresses for address in fixed.subnet.dns)
    return NetworkData(links, networks, [Service(address) for address in servers])


def _network(number: int, vif: Vif, fixed: FixedIp) -> LinkNetwork:
    subnet = fixed.subnet
    name = f"network{number}"
    if subnet.dhcp and subnet.version == 4:
        return LinkNetwork(id=name, type="ipv4_dhcp", link=vif.devname, network_id=vif.network_id)
    # The port's IPv6 address is right however the subnet hands addresses out, and so are its routes.
    return LinkNetwork(
        id=name,
        type=f"ipv6_{subnet.address_mode}" if subnet.address_mode else f"ipv{subnet.version}",
        link=vif.devname,
        network_id=vif.network_id,
        ip_address=fixed.address,
        netmask=str(ip_network(subnet.cidr, strict=False).netmask),
        routes=_routes(subnet),
        services=[Service(address) for address in subnet.dns],
    )


def _routes(subnet: Subnet) -> list[NetworkRoute]:
    everywhere = "0.0.0.0/0" if subnet.version == 4 else "::/0"
    pairs = [(route.destination, route.nexthop) for route in subnet.routes]
    if subnet.gateway and everywhere not in dict(pairs):
        pairs.insert(0, (everywhere, subnet.gateway))
    networks = [(ip_network(destination, strict=False), gateway) for destination, gateway in pairs]
    return [NetworkRoute(str(one.network_address), str(one.netmask), gateway) for one, gateway in networks]
