"""The JSON forms of the network API."""

from __future__ import annotations

from typing import Any

from kilonova.domain.clock import iso_seconds
from kilonova.embedded.network import schema


def stamped(item: schema.Stamped) -> dict[str, Any]:
    return {
        "id": item.id, "project_id": item.project_id, "tenant_id": item.project_id,
        "description": item.description, "tags": list(item.tags), "created_at": iso_seconds(item.created_at),
        "updated_at": iso_seconds(item.updated_at), "revision_number": item.revision,
    }


def network(item: schema.Network, subnet_ids: list[str], privileged: bool) -> dict[str, Any]:
    """Spec: EMN-02, EMN-03."""
    view = stamped(item) | {
        "name": item.name, "status": "ACTIVE", "admin_state_up": item.admin_state_up, "shared": item.shared,
        "router:external": item.external, "is_default": item.is_default, "mtu": item.mtu,
        "port_security_enabled": item.port_security, "dns_domain": item.dns_domain, "subnets": subnet_ids,
        "availability_zones": ["nova"], "availability_zone_hints": [], "ipv4_address_scope": None,
        "ipv6_address_scope": None,
    }
    if privileged:
        view |= {"provider:network_type": "local", "provider:physical_network": None,
                 "provider:segmentation_id": None}
    return view


def subnet(item: schema.Subnet) -> dict[str, Any]:
    return stamped(item) | {
        "name": item.name, "network_id": item.network_id, "ip_version": item.version, "cidr": item.cidr,
        "gateway_ip": item.gateway, "enable_dhcp": item.dhcp, "dns_nameservers": list(item.dns),
        "host_routes": item.routes, "allocation_pools": item.pools, "subnetpool_id": item.pool_id,
        "ipv6_ra_mode": item.ra_mode, "ipv6_address_mode": item.address_mode, "service_types": [],
    }


def subnet_pool(item: schema.SubnetPool) -> dict[str, Any]:
    return stamped(item) | {
        "name": item.name, "prefixes": list(item.prefixes), "ip_version": item.version,
        "min_prefixlen": item.min_length, "max_prefixlen": item.max_length,
        "default_prefixlen": item.default_length, "shared": item.shared, "is_default": item.is_default,
        "default_quota": None, "address_scope_id": None,
    }


def binding(host: str, vif_type: str, vnic_type: str, profile: dict[str, Any], *, active: bool,
            project_id: str) -> dict[str, Any]:
    return {
        "host": host, "vif_type": vif_type, "vif_details": _vif_details(vif_type), "vnic_type": vnic_type,
        "profile": profile, "status": "ACTIVE" if active else "INACTIVE", "project_id": project_id,
    }


def port(item: schema.Port, privileged: bool) -> dict[str, Any]:
    """Spec: section 4.4."""
    view = stamped(item) | {
        "name": item.name, "network_id": item.network_id, "admin_state_up": item.admin_state_up,
        "mac_address": item.mac, "device_id": item.device_id, "device_owner": item.device_owner,
        "status": item.status, "port_security_enabled": item.secured,
        "fixed_ips": [{"subnet_id": a.subnet_id, "ip_address": a.address} for a in item.addresses],
        "security_groups": list(item.group_ids), "allowed_address_pairs": [
            {"ip_address": pair.ip_address, "mac_address": pair.mac_address or item.mac} for pair in item.pairs
        ],
        "extra_dhcp_opts": item.dhcp_options, "dns_name": item.dns_name, "dns_assignment": _dns_assignment(item),
        "ip_allocation": "immediate" if item.addresses else "none", "binding:vnic_type": item.vnic_type,
    }
    if privileged:
        view |= {
            "binding:host_id": item.host, "binding:profile": item.profile, "binding:vif_type": item.vif_type,
            "binding:vif_details": _vif_details(item.vif_type),
        }
    return view


def _dns_assignment(item: schema.Port) -> list[dict[str, str]]:
    names = ((a.address, item.dns_name or host_name(a.address)) for a in item.addresses)
    return [{"ip_address": address, "hostname": name, "fqdn": f"{name}."} for address, name in names]


def host_name(address: str) -> str:
    """The name of a guest that has none, after its address."""
    return f"host-{address.replace('.', '-').replace(':', '-')}"


def _vif_details(vif_type: str) -> dict[str, Any]:
    return {"port_filter": vif_type == "bridge"} if vif_type in ("bridge", "hw_veb", "hostdev_physical") else {}


def group(item: schema.Group, rules: list[schema.Rule]) -> dict[str, Any]:
    return stamped(item) | {
        "name": item.name, "stateful": item.stateful, "shared": False,
        "security_group_rules": [rule(entry) for entry in rules],
    }


def rule(item: schema.Rule) -> dict[str, Any]:
    """Spec: EMN-43."""
    view = stamped(item)
    del view["tags"]
    return view | {
        "security_group_id": item.group_id, "direction": item.direction, "ethertype": item.ethertype,
        "protocol": item.protocol, "port_range_min": item.port_min, "port_range_max": item.port_max,
        "remote_ip_prefix": item.remote_prefix, "normalized_cidr": item.remote_prefix,
        "remote_group_id": item.remote_group_id, "remote_address_group_id": None,
    }


def router(item: schema.Router, gateway: schema.Port | None) -> dict[str, Any]:
    """Spec: EMN-13."""
    info = None
    if gateway is not None:
        info = {
            "network_id": gateway.network_id, "enable_snat": item.snat,
            "external_fixed_ips": [{"subnet_id": a.subnet_id, "ip_address": a.address} for a in gateway.addresses],
        }
    return stamped(item) | {
        "name": item.name, "status": "ACTIVE", "admin_state_up": item.admin_state_up, "external_gateway_info": info,
        "routes": [], "distributed": False, "ha": False, "availability_zones": ["nova"],
        "availability_zone_hints": [], "flavor_id": None,
    }


def router_interface(item: schema.Router, port: schema.Port) -> dict[str, Any]:
    """Spec: EMN-10."""
    subnets = [held.subnet_id for held in port.addresses]
    return {
        "id": item.id, "project_id": item.project_id, "tenant_id": item.project_id, "port_id": port.id,
        "network_id": port.network_id, "subnet_id": subnets[0], "subnet_ids": subnets,
    }


def floating_ip(item: schema.FloatingIp, port: schema.Port | None, routed: bool) -> dict[str, Any]:
    """port: that it stands for. routed: a router leads to it. Spec: EMN-50, EMN-51, EMN-65."""
    details = None
    if port is not None:
        details = {
            "name": port.name, "network_id": port.network_id, "mac_address": port.mac, "status": port.status,
            "admin_state_up": port.admin_state_up, "device_id": port.device_id, "device_owner": port.device_owner,
        }
    return stamped(item) | {
        "floating_network_id": item.network_id, "floating_ip_address": item.address, "port_id": item.fixed_port_id,
        "fixed_ip_address": item.fixed_address, "router_id": item.router_id,
        "status": "ACTIVE" if routed else "DOWN", "port_details": details, "dns_name": "", "dns_domain": "",
    }
