"""ComputeCapabilitiesFilter: extra specs compared with what the host says of itself.

Keys are `capabilities:NAME` or have no scope at all. NAME is a column of the host, or a path into `cpu_info`
(`capabilities:cpu_info:arch`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from kilonova.db.placement.changes import HostRow
from kilonova.scheduler.demand import Demand
from kilonova.scheduler.filters.operators import matches
from kilonova.scheduler.view import HostView, Mask

SCOPE = "capabilities:"
OTHER_KEYS = frozenset({"group_policy", "hide_hypervisor_id"})
"""Keys without scope that say something else."""


def capabilities(view: HostView, demand: Demand) -> Mask | None:
    """Hosts that meet every capability the flavor asks for; a name that no host knows is met by none."""
    asked = {
        key.removeprefix(SCOPE): value
        for key, value in demand.spec.flavor.extra_specs.items()
        if key.startswith(SCOPE) or (":" not in key and key not in OTHER_KEYS)
    }
    if not asked:
        return None
    mask = view.alive.copy()
    for name, wanted in asked.items():
        mask &= _meets(view, name, wanted)
    return mask


def _meets(view: HostView, name: str, wanted: str) -> Mask:
    first, _, path = name.partition(":")
    if first == "cpu_info":
        return view.cpu_info.where(_any_matches(_at_path(info, path), wanted) for info in view.cpu_info.values)
    if first == "hypervisor_type":
        return view.hypervisor_type.where(matches(value, wanted) for value in view.hypervisor_type.values)
    read = _FACTS.get(first)
    if read is None or path:
        return np.zeros(len(view.alive), np.bool_)
    return np.fromiter(
        (row is not None and matches(str(read(row)), wanted) for row in view.rows), np.bool_, len(view.rows)
    )


def _capacity(name: str) -> Callable[[HostRow], int]:
    return lambda row: row.offers.get(name, (0, 0, 1, 0, 1))[0]


def _used(name: str) -> Callable[[HostRow], int]:
    return lambda row: row.offers.get(name, (0, 0, 1, 0, 1))[1]


def _free(name: str, unit: int = 1) -> Callable[[HostRow], int]:
    return lambda row: (_capacity(name)(row) - _used(name)(row)) * unit


_FACTS: dict[str, Callable[[HostRow], object]] = {
    "host": lambda row: row.host,
    "nodename": lambda row: row.node,
    "hypervisor_hostname": lambda row: row.node,
    "hypervisor_version": lambda row: row.hypervisor_version,
    "host_ip": lambda row: row.host_ip,
    "uuid": lambda row: row.provider,
    "cell_uuid": lambda row: row.cell,
    "num_instances": lambda row: row.instances,
    "running_vms": lambda row: row.instances,
    "num_io_ops": lambda row: row.io_ops,
    "failed_builds": lambda row: row.failed_builds,
    "vcpus": _capacity("VCPU"),
    "vcpus_total": _capacity("VCPU"),
    "vcpus_used": _used("VCPU"),
    "memory_mb": _capacity("MEMORY_MB"),
    "total_usable_ram_mb": _capacity("MEMORY_MB"),
    "memory_mb_used": _used("MEMORY_MB"),
    "free_ram_mb": _free("MEMORY_MB"),
    "local_gb": _capacity("DISK_GB"),
    "total_usable_disk_gb": _capacity("DISK_GB"),
    "local_gb_used": _used("DISK_GB"),
    "free_disk_gb": _free("DISK_GB"),
    "free_disk_mb": _free("DISK_GB", 1024),
}


def _at_path(cpu_info: str, path: str) -> Any:
    try:
        value = msgspec.json.decode(cpu_info)
    except msgspec.DecodeError:
        return None
    for step in filter(None, path.split(":")):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _any_matches(value: Any, wanted: str) -> bool:
    """A list, such as that of the CPU features, is searched as a whole by `<in>` and `<all-in>`."""
    if isinstance(value, list):
        names = {str(item) for item in value}
        sign, *operands = wanted.split() or [""]
        if sign in ("<in>", "<all-in>"):
            return set(operands) <= names
        return any(matches(name, wanted) for name in names)
    return value is not None and matches(str(value), wanted)
