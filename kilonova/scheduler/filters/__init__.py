"""The filters, in the order in which they are applied: cheap and selective ones first.

A filter answers which hosts may take the server. `None` means that it has nothing to say to this request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters import affinity, aggregates, capabilities, hosts, image, resources, shape
from kilonova.scheduler.view import HostView, Mask

Reason = Callable[[HostView, Demand], str]
FilterFunction = Callable[[HostView, Demand], Mask | None]


@dataclass(frozen=True)
class Filter:
    """A filter and when it applies.

    Args:
        name: as operators know it; shown when no host is left.
        forced: whether it binds a host that an administrator has forced, too.
        each: whether its answer depends on the servers of the same request placed before.
        why: says what the hosts lack if it leaves none; "" if it cannot tell.
        image: whether it also says if a server may get another image where it is.
    """

    name: str
    passes: FilterFunction
    forced: bool = False
    each: bool = False
    image: bool = False
    why: Reason | None = None


FILTERS: tuple[Filter, ...] = (
    Filter("ForcedHost", hosts.forced, forced=True),
    Filter("RequestedHost", hosts.requested),
    Filter("IgnoredHosts", hosts.not_ignored, forced=True),
    Filter("EnabledStatus", resources.not_disabled, forced=True),
    Filter("Traits", resources.traits, forced=True, image=True, why=resources.why_no_traits),
    Filter("Resources", resources.room, forced=True, each=True, why=resources.why_no_room),
    Filter("ComputeFilter", hosts.up),
    Filter("AvailabilityZone", aggregates.zone),
    Filter("AggregateInstanceExtraSpecsFilter", aggregates.extra_specs),
    Filter("ComputeCapabilitiesFilter", capabilities.capabilities),
    Filter("ImagePropertiesFilter", image.properties, image=True),
    Filter("PersistentMemory", shape.missing_memory, forced=True, why=shape.why_no_memory),
    Filter("PciPassthroughFilter", shape.devices, forced=True, why=shape.why_no_devices),
    Filter("GroupPolicy", shape.groups, forced=True, why=shape.why_no_groups),
    Filter("NUMATopologyFilter", shape.place, forced=True, why=shape.why_no_place),
    Filter("SameHostFilter", affinity.same_host),
    Filter("DifferentHostFilter", affinity.different_host),
    Filter("ServerGroupAntiAffinityFilter", affinity.group_apart, each=True),
    Filter("ServerGroupAffinityFilter", affinity.group_together, each=True),
)
