"""What a request demands of a host, worked out once for each decision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kilonova.domain.grouping import Aggregate, GroupPolicy, ServerGroup
from kilonova.domain.instance import RequestSpec
from kilonova.imaging.signatures import TRUSTED_CERTS
from kilonova.shapes.blank_disks import bus_traits
from kilonova.shapes.resources import (
    groups_of,
    groups_of_ports,
    is_volume_backed,
    isolates,
    own_resources_of,
    traits_of,
)
from kilonova.shapes.shape import Shape, shape_of
from kilonova.shapes.traits import needed_traits
from kilonova.shapes.trees import ResourceGroup

DEVICE_TAGGING = "COMPUTE_DEVICE_TAGGING"


@dataclass(frozen=True, kw_only=True)
class Demand:
    """A request as filters and weighers read it.

    Args:
        resources: amounts by resource class. required, forbidden: traits.
        groups: what is to come of one provider each. isolate: of different ones.
        asked_by: what asks for a required trait, where that is not its own name.
        group: None without a server group, or one that no longer exists. Spec: BLD-20.
        members_on: how many other members of the group are on each host.
        hosts_of: the hosts of each server that the hints `same_host` and `different_host` name.
        kept_off: hosts that get no new servers, by the records of their services.
        aggregates: all host aggregates. now: seconds since the epoch.
        service_down_time: seconds of silence after which a host counts as dead.
    """

    spec: RequestSpec
    resources: Mapping[str, int]
    required: frozenset[str]
    forbidden: frozenset[str]
    shape: Shape
    groups: tuple[ResourceGroup, ...] = ()
    isolate: bool = False
    asked_by: Mapping[str, str] = field(default_factory=dict)
    group: ServerGroup | None = None
    members_on: dict[str, int] = field(default_factory=dict)
    hosts_of: Mapping[str, frozenset[str]] = field(default_factory=dict)
    kept_off: frozenset[str] = frozenset()
    aggregates: Sequence[Aggregate] = ()
    now: float = 0.0
    service_down_time: float = 60.0
    default_zone: str = "nova"

    @property
    def policy(self) -> GroupPolicy | None:
        return self.group.policy if self.group else None

    @property
    def forced(self) -> bool:
        """Whether an administrator has named the host or node, which skips all but the room and its traits."""
        return self.spec.force_host is not None or self.spec.force_node is not None


def demand_of(
    spec: RequestSpec,
    *,
    group: ServerGroup | None = None,
    located: Iterable[tuple[str, str]] = (),
    kept_off: frozenset[str] = frozenset(),
    aggregates: Sequence[Aggregate] = (),
    now: float = 0.0,
    service_down_time: float = 60.0,
    default_zone: str = "nova",
) -> Demand:
    """Work out what a request demands.

    Args:
        located: (host, instance) of the servers that `servers_of_interest` names.

    Raises:
        InvalidInput: flavor or image ask for something that cannot be.

    Spec: BLD-32 (what only some hosts can do is demanded as a trait).
    """
    shape = shape_of(spec.flavor, spec.image, spec.port_needs)
    traits = traits_of(spec.flavor, spec.image)
    tagged = any(device.tag for device in spec.block_devices) or any(
        network.tag for network in spec.requested_networks or ()
    )
    abilities = {name for name, needed in ((DEVICE_TAGGING, tagged), (TRUSTED_CERTS, spec.trusted_certs)) if needed}
    buses = bus_traits(spec.block_devices)
    members_on: dict[str, int] = {}
    hosts_of: dict[str, set[str]] = {}
    members = set(group.members) - {spec.instance_uuid} if group else set()
    for host, instance in located:
        hosts_of.setdefault(instance, set()).add(host)
        if instance in members:
            members_on[host] = members_on.get(host, 0) + 1
    return Demand(
        spec=spec,
        resources=own_resources_of(spec.flavor, spec.image, volume_backed=is_volume_backed(spec.block_devices)),
        groups=groups_of(spec.flavor) + groups_of_ports(spec.port_needs),
        isolate=isolates(spec.flavor),
        required=traits.required | abilities | set(buses),
        forbidden=traits.forbidden,
        shape=shape,
        asked_by=needed_traits(shape) | buses,
        group=group,
        members_on=members_on,
        hosts_of={instance: frozenset(hosts) for instance, hosts in hosts_of.items()},
        kept_off=kept_off,
        aggregates=aggregates,
        now=now,
        service_down_time=service_down_time,
        default_zone=default_zone,
    )


def servers_of_interest(spec: RequestSpec, group: ServerGroup | None) -> list[str]:
    """The servers whose hosts matter to this request."""
    wanted = {uuid for hint in ("same_host", "different_host") for uuid in hint_values(spec, hint)}
    wanted |= set(group.members) if group else set()
    return sorted(wanted - {spec.instance_uuid})


def hint_values(spec: RequestSpec, name: str) -> list[str]:
    """The values of a scheduler hint; empty without it. Spec: BLD-33."""
    return spec.scheduler_hints.get(name, [])
