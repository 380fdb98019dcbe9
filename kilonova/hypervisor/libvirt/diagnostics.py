"""What libvirt counts for one guest, in libvirt's form and in the common one."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import libvirt  # type: ignore[import-untyped]

from kilonova.hypervisor.diagnostics import (
    CpuDiagnostics,
    Diagnostics,
    DiskDiagnostics,
    MemoryDiagnostics,
    NicDiagnostics,
    OwnDiagnostics,
)

KIB_PER_MIB = 1024
WANTED = (
    libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
Stats = dict[str, Any]


def own(connection: libvirt.virConnect, uuid: str) -> OwnDiagnostics:
    """Counters by the names that tools for libvirt clouds know. Raises libvirtError for a guest that is not known."""
    stats = _stats(connection, connection.lookupByUUIDString(uuid))
    found: dict[str, int | None] = {}
    for number, cpu in _each(stats, "vcpu", count="maximum"):
        found[f"cpu{number}_time"] = cpu.get("time")
    for _, disk in _each(stats, "block"):
        name = disk["name"]
        found[f"{name}_read_req"], found[f"{name}_read"] = disk.get("rd.reqs"), disk.get("rd.bytes")
        found[f"{name}_write_req"], found[f"{name}_write"] = disk.get("wr.reqs"), disk.get("wr.bytes")
        found[f"{name}_errors"] = disk.get("errors", -1)
    for _, nic in _each(stats, "net"):
        for way in ("rx", "tx"):
            name = f"{nic['name']}_{way}"
            found[name], found[f"{name}_packets"] = nic.get(f"{way}.bytes"), nic.get(f"{way}.pkts")
            found[f"{name}_errors"], found[f"{name}_drop"] = nic.get(f"{way}.errs"), nic.get(f"{way}.drop")
    found["memory"] = stats.get("balloon.maximum")
    found["memory-actual"], found["memory-rss"] = stats.get("balloon.current"), stats.get("balloon.rss")
    return {name: value for name, value in found.items() if value is not None}


def common(connection: libvirt.virConnect, uuid: str, *, driver: str, hypervisor: str) -> Diagnostics:
    """Raises libvirtError for a guest that is not known."""
    domain = connection.lookupByUUIDString(uuid)
    stats = _stats(connection, domain)
    macs = _macs(domain)
    return Diagnostics(
        state="running",
        driver=driver,
        hypervisor=hypervisor,
        hypervisor_os="linux",
        memory=MemoryDiagnostics(maximum=_mib(stats.get("balloon.maximum")), used=_mib(stats.get("balloon.current"))),
        cpus=tuple(
            CpuDiagnostics(id=number, time=cpu.get("time")) for number, cpu in _each(stats, "vcpu", count="maximum")
        ),
        nics=tuple(
            NicDiagnostics(
                mac_address=macs.get(nic["name"]), rx_octets=nic.get("rx.bytes"), rx_errors=nic.get("rx.errs"),
                rx_drop=nic.get("rx.drop"), rx_packets=nic.get("rx.pkts"), tx_octets=nic.get("tx.bytes"),
                tx_errors=nic.get("tx.errs"), tx_drop=nic.get("tx.drop"), tx_packets=nic.get("tx.pkts"),
            )
            for _, nic in _each(stats, "net")
        ),
        disks=tuple(
            DiskDiagnostics(
                read_bytes=disk.get("rd.bytes"), read_requests=disk.get("rd.reqs"), write_bytes=disk.get("wr.bytes"),
                write_requests=disk.get("wr.reqs"), errors_count=disk.get("errors"),
            )
            for _, disk in _each(stats, "block")
        ),
    )


def _stats(connection: libvirt.virConnect, domain: libvirt.virDomain) -> Stats:
    ((_, found),) = connection.domainListGetStats([domain], WANTED)
    return dict(found)


def _each(stats: Stats, group: str, count: str = "count") -> Iterator[tuple[int, Stats]]:
    """The members of a group, each with its numbers by their short names; those that libvirt does not tell of are
    left out."""
    for number in range(stats.get(f"{group}.{count}", 0)):
        prefix = f"{group}.{number}."
        found = {name.removeprefix(prefix): value for name, value in stats.items() if name.startswith(prefix)}
        if found:
            yield number, found


def _macs(domain: libvirt.virDomain) -> dict[str, str]:
    """MAC addresses by the name of the tap."""
    described = ET.fromstring(domain.XMLDesc())
    found = {}
    for interface in described.iterfind("devices/interface"):
        target, mac = interface.find("target"), interface.find("mac")
        if target is not None and mac is not None:
            found[target.get("dev", "")] = mac.get("address", "")
    return found


def _mib(kib: int | None) -> int | None:
    return None if kib is None else kib // KIB_PER_MIB
