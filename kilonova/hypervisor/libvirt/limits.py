"""The limits that a flavor sets, as elements of its domain."""

from __future__ import annotations

import msgspec

from kilonova.hypervisor.libvirt.domain.limits import Bandwidth, CpuLimits, DiskLimits, Way
from kilonova.shapes import limits as asked


def cpu_limits(limits: asked.Limits) -> CpuLimits | None:
    return CpuLimits(**msgspec.structs.asdict(limits.cpu)) if limits.cpu is not None else None


def disk_limits(limits: asked.DiskLimits | None) -> DiskLimits | None:
    return DiskLimits(**msgspec.structs.asdict(limits)) if limits is not None else None


def bandwidth(way: Way, limit: asked.Bandwidth | None) -> Bandwidth | None:
    return Bandwidth(way=way, **msgspec.structs.asdict(limit)) if limit is not None else None
