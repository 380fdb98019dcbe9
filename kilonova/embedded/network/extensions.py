"""The extensions that are offered: all that are listed work, and no other is listed. Spec: EMN-01, section 4.2."""

from __future__ import annotations

from typing import Any

EXTENSIONS = {
    "agent": "Agents",
    "allowed-address-pairs": "Allowed Address Pairs",
    "auto-allocated-topology": "Auto Allocated Topology Services",
    "availability_zone": "Availability Zone",
    "binding": "Port Binding",
    "binding-extended": "Port Bindings Extended",
    "default-subnetpools": "Default Subnetpools",
    "dns-integration": "DNS Integration",
    "external-net": "External Network",
    "ext-gw-mode": "Router External Gateway Mode",
    "extra_dhcp_opt": "Extra DHCP Options",
    "fip-port-details": "Floating IP Port Details",
    "ip-substring-filtering": "IP Address Substring Filtering",
    "l3_agent_scheduler": "L3 Agent Scheduler",
    "net-mtu": "Network MTU",
    "net-mtu-writable": "Network MTU (Writable)",
    "network-ip-availability": "Network IP Availability",
    "network_availability_zone": "Network Availability Zone",
    "pagination": "Pagination",
    "port-numa-affinity-policy": "Port NUMA Affinity Policy",
    "port-numa-affinity-policy-socket": "Port NUMA Affinity Policy Socket",
    "port-security": "Port Security",
    "project-id": "Project ID",
    "port-resource-request": "Port Resource Request",
    "port-resource-request-groups": "Port Resource Request Groups",
    "provider": "Provider Network",
    "qos": "Quality of Service",
    "qos-bw-minimum-ingress": "Ingress Direction for QoS Minimum Bandwidth Rules",
    "qos-pps-minimum": "QoS Minimum Packet Rate Rules",
    "qos-pps-minimum-rule-alias": "QoS Minimum Packet Rate Rules by an Alias",
    "quota-check-limit": "Quota Limits That Are Checked",
    "quota_details": "Quota Details",
    "quotas": "Quota Management",
    "router": "Routers",
    "security-group": "Security Groups",
    "security-groups-shared-filtering": "Security Group Filtering by Shared",
    "sorting": "Sorting",
    "standard-attr-description": "Standard Attribute Description",
    "standard-attr-revisions": "Resource Revision Numbers",
    "standard-attr-tag": "Resource Tags",
    "standard-attr-timestamp": "Resource Timestamps",
    "subnet_allocation": "Subnet Allocation",
    "tag-ports-during-bulk-creation": "Tag Ports During Bulk Creation",
}


def view(alias: str) -> dict[str, Any]:
    return {
        "alias": alias, "name": EXTENSIONS[alias], "description": f"{EXTENSIONS[alias]}.",
        "updated": "2024-01-01T00:00:00-00:00", "links": [],
    }
