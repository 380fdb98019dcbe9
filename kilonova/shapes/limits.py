"""What a guest may use of CPUs, disks and networks, where its flavor limits it (`quota:*`)."""

from __future__ import annotations

import msgspec

from kilonova.shapes.asked import Asked, whole

_AMOUNT, _ANY = whole(0), whole(-1)


class CpuLimits(msgspec.Struct, frozen=True, kw_only=True):
    """shares: weight. period, quota: microseconds; a quota of -1 is none."""

    shares: int | None = None
    period: int | None = None
    quota: int | None = None


class DiskLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes and operations per second, of each disk."""

    total_bytes_sec: int | None = None
    read_bytes_sec: int | None = None
    write_bytes_sec: int | None = None
    total_iops_sec: int | None = None
    read_iops_sec: int | None = None
    write_iops_sec: int | None = None


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of each interface. average, peak: KiB per second. burst: KiB that may be sent at peak speed."""

    average: int
    peak: int | None = None
    burst: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """All of a guest. inbound: to the guest. None where nothing is limited."""

    cpu: CpuLimits | None = None
    disk: DiskLimits | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None


def limits_of(asked: Asked) -> Limits:
    """Raises InvalidInput: a value that is no such number."""
    cpu = {name: asked.of_flavor(f"quota:cpu_{name}", _ANY if name == "quota" else _AMOUNT)
           for name in CpuLimits.__struct_fields__}
    disk = {name: asked.of_flavor(f"quota:disk_{name}", _AMOUNT) for name in DiskLimits.__struct_fields__}
    return Limits(
        cpu=CpuLimits(**cpu) if _any(cpu) else None, disk=DiskLimits(**disk) if _any(disk) else None,
        inbound=_bandwidth(asked, "inbound"), outbound=_bandwidth(asked, "outbound"),
    )


def _bandwidth(asked: Asked, way: str) -> Bandwidth | None:
    """Peak and burst mean nothing without an average."""
    found = {name: asked.of_flavor(f"quota:vif_{way}_{name}", _AMOUNT) for name in Bandwidth.__struct_fields__}
    average = found.pop("average")
    return None if average is None else Bandwidth(average=average, **found)


def _any(values: dict[str, int | None]) -> bool:
    return any(value is not None for value in values.values())
