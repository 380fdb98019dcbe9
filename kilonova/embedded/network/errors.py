"""The errors of the network service. Clients match on the class names: they are the `type` of the error body.

Spec: EMN-20.
"""

from __future__ import annotations

from kilonova.domain.errors import Conflict, InvalidInput, NotFound


class SubnetNotFound(NotFound):
    def __init__(self, subnet: str) -> None:
        super().__init__(f"Subnet {subnet} could not be found.")


class SubnetPoolNotFound(NotFound):
    def __init__(self, pool: str) -> None:
        super().__init__(f"Subnet pool {pool} could not be found.")


class SubnetPoolInUse(Conflict):
    def __init__(self, pool: str) -> None:
        super().__init__(f"Unable to delete subnet pool {pool}: subnets have ranges of it.")


class SubnetPoolQuotaExceeded(Conflict):
    def __init__(self, pool: str) -> None:
        super().__init__(f"Failed to allocate subnet: no range of that size is left in subnet pool {pool}.")


class QosPolicyNotFound(NotFound):
    def __init__(self, policy: str) -> None:
        super().__init__(f"QoS policy {policy} could not be found.")


class QosRuleNotFound(NotFound):
    """policy: None if the rule was not looked for in one."""

    def __init__(self, policy: str | None, rule: str) -> None:
        of = f" for policy {policy}" if policy is not None else ""
        super().__init__(f"QoS rule {rule}{of} could not be found.")


class QosPolicyInUse(Conflict):
    def __init__(self, policy: str) -> None:
        super().__init__(f"QoS policy {policy} is used by a network or a port.")


class QosRuleConflict(Conflict):
    def __init__(self, policy: str, reason: str) -> None:
        super().__init__(f"What QoS policy {policy} guarantees cannot be changed: {reason}.")


class AutoAllocationFailure(Conflict):
    def __init__(self, reason: str) -> None:
        super().__init__(f"Deployment error: {reason}")


class SecurityGroupNotFound(NotFound):
    def __init__(self, group: str) -> None:
        super().__init__(f"Security group {group} does not exist")


class SecurityGroupRuleNotFound(NotFound):
    def __init__(self, rule: str) -> None:
        super().__init__(f"Security group rule {rule} does not exist")


class ExtensionNotFound(NotFound):
    def __init__(self, alias: str) -> None:
        super().__init__(f"Extension with alias {alias} does not exist")


class TagNotFound(NotFound):
    def __init__(self, tag: str) -> None:
        super().__init__(f"Tag {tag} could not be found.")


class BindingNotFound(NotFound):
    def __init__(self, port: str, host: str) -> None:
        super().__init__(f"Binding for port {port} on host {host} could not be found.")


class RouterNotFound(NotFound):
    def __init__(self, router: str) -> None:
        super().__init__(f"Router {router} could not be found")


class AgentNotFound(NotFound):
    def __init__(self, agent: str) -> None:
        super().__init__(f"Agent {agent} could not be found.")


class InvalidL3Agent(Conflict):
    def __init__(self, agent: str) -> None:
        super().__init__(f"Agent {agent} is not a L3 Agent or has been disabled")


class RouterHostedByL3Agent(Conflict):
    def __init__(self, router: str, agent: str) -> None:
        super().__init__(f"The router {router} is already hosted by the L3 agent {agent}.")


class RouterNotHostedByL3Agent(Conflict):
    def __init__(self, router: str, agent: str) -> None:
        super().__init__(f"The router {router} is not hosted by the L3 agent {agent}.")


class RouterInterfaceNotFound(NotFound):
    def __init__(self, router: str, port: str) -> None:
        super().__init__(f"Router {router} does not have an interface with id {port}")


class RouterInterfaceNotFoundForSubnet(NotFound):
    def __init__(self, router: str, subnet: str) -> None:
        super().__init__(f"Router {router} has no interface on subnet {subnet}")


class RouterInUse(Conflict):
    def __init__(self, router: str) -> None:
        super().__init__(f"Router {router} still has ports")


class RouterInterfaceInUseByFloatingIP(Conflict):
    def __init__(self, router: str, subnet: str) -> None:
        super().__init__(
            f"Router interface for subnet {subnet} on router {router} cannot be deleted, as it is required by one or "
            "more floating IPs."
        )


class RouterExternalGatewayInUseByFloatingIp(Conflict):
    def __init__(self, router: str, network: str) -> None:
        super().__init__(
            f"Gateway cannot be updated for router {router}, since a gateway to external network {network} is required "
            "by one or more floating IPs."
        )


class FloatingIPNotFound(NotFound):
    def __init__(self, floating: str) -> None:
        super().__init__(f"Floating IP {floating} could not be found")


class FloatingIPPortAlreadyAssociated(Conflict):
    def __init__(self, address: str, port: str, fixed: str) -> None:
        super().__init__(
            f"Cannot associate floating IP {address} with port {port} using fixed IP {fixed}, as that fixed IP already "
            "has a floating IP on this external network."
        )


class ExternalGatewayForFloatingIPNotFound(NotFound):
    def __init__(self, subnet: str, network: str, port: str) -> None:
        super().__init__(
            f"External network {network} is not reachable from subnet {subnet}. Therefore, cannot associate Port "
            f"{port} with a Floating IP."
        )


class NetworkInUse(Conflict):
    def __init__(self, network: str) -> None:
        super().__init__(
            f"Unable to complete operation on network {network}. There are one or more ports still in use on the "
            "network."
        )


class SubnetInUse(Conflict):
    def __init__(self, subnet: str) -> None:
        super().__init__(
            f"Unable to complete operation on subnet {subnet}: One or more ports have an IP allocation from this "
            "subnet."
        )


class IpAddressGenerationFailure(Conflict):
    def __init__(self, network: str) -> None:
        super().__init__(f"No more IP addresses available on network {network}.")


class IpAddressAlreadyAllocated(Conflict):
    def __init__(self, address: str, subnet: str) -> None:
        super().__init__(f"IP address {address} already allocated in subnet {subnet}")


class InvalidIpForSubnet(InvalidInput):
    def __init__(self, address: str) -> None:
        super().__init__(f"IP address {address} is not a valid IP for the specified subnet.")


class InvalidIpForNetwork(InvalidInput):
    def __init__(self, address: str) -> None:
        super().__init__(f"IP address {address} is not a valid IP for any of the subnets on the specified network.")


class MacAddressInUse(Conflict):
    def __init__(self, mac: str, network: str) -> None:
        super().__init__(
            f"Unable to complete operation for network {network}. The mac address {mac} is in use."
        )


class FlatNetworkInUse(Conflict):
    def __init__(self, physical: str) -> None:
        super().__init__(f"Unable to create the flat network. Physical network {physical} is in use.")


class VlanIdInUse(Conflict):
    def __init__(self, vlan: int, physical: str) -> None:
        super().__init__(f"Unable to create the network. The VLAN {vlan} on physical network {physical} is in use.")


class PortBound(Conflict):
    def __init__(self, port: str, field: str) -> None:
        super().__init__(f"Unable to complete operation on port {port}, port is already bound: {field} is fixed.")


class PortInUse(Conflict):
    def __init__(self, port: str, device: str) -> None:
        super().__init__(f"Port {port} is in use by device {device}.")


class ServicePortInUse(Conflict):
    def __init__(self, port: str, owner: str) -> None:
        super().__init__(f"Port {port} cannot be deleted directly via the port API: it belongs to {owner}.")


class PortSecurityAndIPRequiredForSecurityGroups(Conflict):
    def __init__(self) -> None:
        super().__init__(
            "Port security must be enabled and port must have an IP address in order to use security groups.",
        )


class PortSecurityPortHasSecurityGroup(Conflict):
    def __init__(self) -> None:
        super().__init__(
            "Port has security group associated. Cannot disable port security or IP address until security group "
            "is removed."
        )


class AddressPairAndPortSecurityRequired(Conflict):
    def __init__(self) -> None:
        super().__init__("Port Security must be enabled in order to have allowed address pairs on a port.")


class SecurityGroupInUse(Conflict):
    def __init__(self, group: str) -> None:
        super().__init__(f"Security Group {group} in use.")


class SecurityGroupCannotRemoveDefault(Conflict):
    def __init__(self) -> None:
        super().__init__("Insufficient rights for removing default security group.")


class SecurityGroupCannotUpdateDefault(Conflict):
    def __init__(self) -> None:
        super().__init__("Updating default security group not allowed.")


class SecurityGroupDefaultAlreadyExists(Conflict):
    def __init__(self) -> None:
        super().__init__("Default security group already exists.")


class SecurityGroupRuleExists(Conflict):
    def __init__(self, rule: str) -> None:
        super().__init__(f"Security group rule already exists. Rule id is {rule}.")


class NetworkOverQuota(Conflict):
    """A quota would be exceeded. The network API answers 409, where others answer 403. Spec: EMN-18."""

    def __init__(self, resource: str) -> None:
        super().__init__(f"Quota exceeded for resources: ['{resource}'].")


class PortBindingAlreadyExists(Conflict):
    def __init__(self, port: str, host: str) -> None:
        super().__init__(f"Binding for port {port} on host {host} already exists.")


class PortBindingAlreadyActive(Conflict):
    def __init__(self, port: str, host: str) -> None:
        super().__init__(f"Binding for port {port} on host {host} is already active.")


TYPE_NAMES = {"NetworkOverQuota": "OverQuota", "Forbidden": "PolicyNotAuthorized", "NotFound": "HTTPNotFound"}
"""Error types whose wire name is not the name of the class."""
