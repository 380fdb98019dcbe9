"""What a hypervisor counts for one running guest. What it does not know is None."""

from __future__ import annotations

import msgspec


class CpuDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """time: nanoseconds that it ran. utilisation: percent."""

    id: int | None = None
    time: int | None = None
    utilisation: int | None = None


class NicDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """Octets and packets since the guest started; rates in octets a second."""

    mac_address: str | None = None
    rx_octets: int | None = None
    rx_errors: int | None = None
    rx_drop: int | None = None
    rx_packets: int | None = None
    rx_rate: int | None = None
    tx_octets: int | None = None
    tx_errors: int | None = None
    tx_drop: int | None = None
    tx_packets: int | None = None
    tx_rate: int | None = None


class DiskDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    read_bytes: int | None = None
    read_requests: int | None = None
    write_bytes: int | None = None
    write_requests: int | None = None
    errors_count: int | None = None


class MemoryDiagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """MiB."""

    maximum: int | None = None
    used: int | None = None


class Diagnostics(msgspec.Struct, frozen=True, kw_only=True):
    """The same form for every driver. Spec: API-471.

    Args:
        driver: its name. hypervisor: what runs the guest. hypervisor_os: what runs that.
    """

    state: str
    driver: str
    hypervisor: str
    hypervisor_os: str | None = None
    memory: MemoryDiagnostics
    cpus: tuple[CpuDiagnostics, ...] = ()
    nics: tuple[NicDiagnostics, ...] = ()
    disks: tuple[DiskDiagnostics, ...] = ()


OwnDiagnostics = dict[str, int]
"""A driver's own form: names of counters that mean something to those who know the driver."""
