"""What callers may write, one structure for each resource: an attribute that was not sent is UNSET.

Spec: EMI-13.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType, field

from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.network.addressing import AddressPair, DhcpOption, HostRoute, Pool

Text = str | UnsetType
Flag = bool | UnsetType


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Text = UNSET
    description: Text = UNSET
    project_id: Text = UNSET
    tenant_id: Text = UNSET
    tags: list[str] | UnsetType = UNSET


class NetworkBody(Body, kw_only=True):
    admin_state_up: Flag = UNSET
    shared: Flag = UNSET
    external: Flag = field(name="router:external", default=UNSET)
    is_default: Flag = UNSET
    mtu: int | UnsetType = UNSET
    port_security_enabled: Flag = UNSET
    dns_domain: Text = UNSET
    qos_policy_id: str | UnsetType | None = UNSET
    availability_zone_hints: list[str] | UnsetType = UNSET
    provider_network_type: str | UnsetType | None = field(name="provider:network_type", default=UNSET)
    provider_physical_network: str | UnsetType | None = field(name="provider:physical_network", default=UNSET)
    provider_segmentation_id: int | UnsetType | None = field(name="provider:segmentation_id", default=UNSET)


class PolicyBody(Body, kw_only=True):
    shared: Flag = UNSET


class BandwidthRuleBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """amount: in kbit/s."""

    direction: Text = UNSET
    amount: int | UnsetType = field(name="min_kbps", default=UNSET)


class PacketRateRuleBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """amount: in 1000 packets per second."""

    direction: Text = UNSET
    amount: int | UnsetType = field(name="min_kpps", default=UNSET)


class SubnetBody(Body, kw_only=True):
    network_id: Text = UNSET
    ip_version: int | UnsetType = UNSET
    cidr: str | UnsetType | None = UNSET
    gateway_ip: str | UnsetType | None = UNSET
    enable_dhcp: Flag = UNSET
    dns_nameservers: list[str] | UnsetType = UNSET
    host_routes: list[HostRoute] | UnsetType = UNSET
    allocation_pools: list[Pool] | UnsetType = UNSET
    ipv6_ra_mode: str | UnsetType | None = UNSET
    ipv6_address_mode: str | UnsetType | None = UNSET
    subnetpool_id: str | UnsetType | None = UNSET
    prefixlen: int | UnsetType | None = UNSET
    use_default_subnetpool: Flag = UNSET


class SubnetPoolBody(Body, kw_only=True):
    prefixes: list[str] | UnsetType = UNSET
    min_prefixlen: int | UnsetType | None = UNSET
    max_prefixlen: int | UnsetType | None = UNSET
    default_prefixlen: int | UnsetType | None = UNSET
    shared: Flag = UNSET
    is_default: Flag = UNSET
    default_quota: int | UnsetType | None = UNSET
    address_scope_id: str | UnsetType | None = UNSET


class FixedIpBody(msgspec.Struct, forbid_unknown_fields=True):
    subnet_id: str | None = None
    ip_address: str | None = None


class PortBody(Body, kw_only=True):
    network_id: Text = UNSET
    admin_state_up: Flag = UNSET
    mac_address: Text = UNSET
    fixed_ips: list[FixedIpBody] | UnsetType | None = UNSET
    device_id: Text = UNSET
    device_owner: Text = UNSET
    security_groups: list[str] | UnsetType | None = UNSET
    port_security_enabled: Flag = UNSET
    allowed_address_pairs: list[AddressPair] | UnsetType | None = UNSET
    extra_dhcp_opts: list[DhcpOption] | UnsetType | None = UNSET
    dns_name: str | UnsetType | None = UNSET
    qos_policy_id: str | UnsetType | None = UNSET
    host_id: str | UnsetType | None = field(name="binding:host_id", default=UNSET)
    profile: dict[str, Any] | UnsetType | None = field(name="binding:profile", default=UNSET)
    vnic_type: Text = field(name="binding:vnic_type", default=UNSET)
    numa_affinity_policy: str | UnsetType | None = UNSET


class GroupBody(Body, kw_only=True):
    stateful: Flag = UNSET


class RuleBody(Body, kw_only=True):
    security_group_id: Text = UNSET
    direction: Text = UNSET
    ethertype: str | UnsetType | None = UNSET
    protocol: str | int | UnsetType | None = UNSET
    port_range_min: int | UnsetType | None = UNSET
    port_range_max: int | UnsetType | None = UNSET
    remote_ip_prefix: str | UnsetType | None = UNSET
    remote_group_id: str | UnsetType | None = UNSET


class ExternalIpBody(msgspec.Struct, forbid_unknown_fields=True):
    subnet_id: str | None = None
    ip_address: str | None = None


class GatewayBody(msgspec.Struct, forbid_unknown_fields=True):
    network_id: str | None = None
    enable_snat: bool | None = None
    external_fixed_ips: list[ExternalIpBody] | None = None


class RouterBody(Body, kw_only=True):
    admin_state_up: Flag = UNSET
    external_gateway_info: GatewayBody | UnsetType | None = UNSET
    availability_zone_hints: list[str] | UnsetType = UNSET


class InterfaceBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a router is joined to."""

    subnet_id: str | None = None
    port_id: str | None = None


class HostedRouterBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which router an agent is given."""

    router_id: str


class AgentBody(Body, kw_only=True):
    """What an administrator sets of an agent."""

    admin_state_up: Flag = UNSET
    description: Text = UNSET


class FloatingIpBody(Body, kw_only=True):
    floating_network_id: Text = UNSET
    floating_ip_address: Text = UNSET
    subnet_id: str | UnsetType | None = UNSET
    port_id: str | UnsetType | None = UNSET
    fixed_ip_address: str | UnsetType | None = UNSET
    dns_name: str | UnsetType | None = UNSET
    dns_domain: str | UnsetType | None = UNSET


class BindingBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    host: str | UnsetType = UNSET
    vnic_type: str = "normal"
    profile: dict[str, Any] | None = None


AnyBody = TypeVar("AnyBody", bound=msgspec.Struct)


def parse(type_: type[AnyBody], value: object) -> AnyBody:
    """Read one body. Raises InvalidInput naming the attribute that is unknown or of the wrong type."""
    try:
        return msgspec.convert(value, type=type_, strict=False)
    except msgspec.ValidationError as error:
        if "unknown field" in str(error):
            name = str(error).split("`")[1]
            raise InvalidInput(f"Unrecognized attribute(s) '{name}'") from error
        raise InvalidInput(f"Invalid input: {error}") from error


def sent(body: msgspec.Struct) -> dict[str, Any]:
    """The attributes that the caller sent, by field name."""
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    return {name: value for name, value in values.items() if value is not UNSET}


def refuse_read_only(body: msgspec.Struct, *names: str) -> None:
    """Raises InvalidInput if one of these, which are fixed at creation, is in an update."""
    wrong = [name for name in names if name in sent(body)]
    if wrong:
        raise InvalidInput(f"Cannot update read-only attribute {', '.join(wrong)}")


def require_privilege(body: msgspec.Struct, privileged: bool, *names: str) -> None:
    """Raises Forbidden if a caller without privilege sent one of these."""
    wrong = [name for name in names if name in sent(body)]
    if wrong and not privileged:
        raise Forbidden(f"({', '.join(wrong)}) is disallowed by policy")
