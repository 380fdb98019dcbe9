"""What a guest may use of the host, where its flavor limits it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add

Way = Literal["inbound", "outbound"]


@dataclass(frozen=True, kw_only=True)
class CpuLimits:
    """shares: weight. period, quota: microseconds."""

    shares: int | None = None
    period: int | None = None
    quota: int | None = None

    def add_to(self, tune: ET.Element) -> None:
        for tag in ("shares", "period", "quota"):
            if (value := getattr(self, tag)) is not None:
                add(tune, tag, value)


@dataclass(frozen=True, kw_only=True)
class DiskLimits:
    """Bytes and operations per second."""

    total_bytes_sec: int | None = None
    read_bytes_sec: int | None = None
    write_bytes_sec: int | None = None
    total_iops_sec: int | None = None
    read_iops_sec: int | None = None
    write_iops_sec: int | None = None

    def add_to(self, disk: ET.Element) -> None:
        tune = add(disk, "iotune")
        for tag in self.__dataclass_fields__:
            if (value := getattr(self, tag)) is not None:
                add(tune, tag, value)


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Of an interface. way: inbound is to the guest. average, peak: KiB per second. burst: KiB at peak speed."""

    way: Way
    average: int
    peak: int | None = None
    burst: int | None = None

    def add_to(self, bandwidth: ET.Element) -> None:
        add(bandwidth, self.way, average=self.average, peak=self.peak, burst=self.burst)
