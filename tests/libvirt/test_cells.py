"""Guests with a place on this machine: what libvirt and the host say of them."""

from __future__ import annotations

import os
from pathlib import Path

import libvirt
import msgspec
import pytest
from libvirt_installations import (
    Installation,
    empty_guest,
    eventually,
    make_installation,
    qemu_pid,
    remove_installation,
)

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.flavor import Flavor
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.cells import CpuSets
from kilonova.hypervisor.libvirt.description import domain_name
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.shapes.fitting import fit
from kilonova.shapes.host import HostTopology, Layout, Place
from kilonova.shapes.shape import shape_of
from kilonova.shapes.traits import LOCKED_MEMORY

LAST = max(os.sched_getaffinity(0))
READY = b"LOGIN READY"


def placed(topology: HostTopology, **changes: object) -> Guest:
    """A guest with the place that the claim would give it."""
    guest = empty_guest(**changes)
    flavor = Flavor(flavor_id="1", name="f", vcpus=guest.vcpus, memory_mib=guest.memory_mib, root_gib=0,
                    extra_specs=guest.extra_specs)
    return msgspec.structs.replace(guest, layout=fit(shape_of(flavor, None), topology, ()))


async def test_the_host_tells_its_cells(driver: LibvirtDriver) -> None:
    found = await driver.inventory()
    assert found.topology is not None
    assert (found.vcpus, found.pcpus) == (os.cpu_count(), 0)
    assert sum(cell.memory_mib for cell in found.topology.cells) <= found.memory_mib
    assert {cpu for cell in found.topology.cells for cpu in cell.shared} == set(range(os.cpu_count() or 0))
    assert all(4 in cell.pages for cell in found.topology.cells)
    assert "COMPUTE_ADDRESS_SPACE_EMULATED" in found.traits


@pytest.mark.timeout(120)
async def test_the_host_tells_whether_memory_can_be_locked(driver: LibvirtDriver) -> None:
    found = await driver.inventory()
    assert found.topology is not None
    guest = placed(found.topology, extra_specs={"hw:locked_memory": "true", "hw:mem_page_size": "small"})
    await driver.create_disks(guest)
    try:
        await driver.spawn(guest)
        started = True
    except KilonovaError as error:
        assert "memory" in str(error)
        started = False
    assert started == (LOCKED_MEMORY in found.traits)


@pytest.mark.timeout(120)
async def test_a_divided_host_pins_guests() -> None:
    installation = make_installation()
    try:
        for wrong, why in ((CpuSets("0", "0"), "both"), (CpuSets("4000"), "4000"), (CpuSets("a"), "cpu_dedicated_set")):
            broken = installation.driver(cpu_sets=wrong)
            with pytest.raises(InvalidInput, match=why):
                await broken.start(lambda _event: None)
        driver = installation.driver(cpu_sets=CpuSets(dedicated=str(LAST), shared="0"))
        await driver.start(lambda _event: None)
        found = await driver.inventory()
        assert (found.vcpus, found.pcpus) == (1, 1)
        assert found.topology is not None
        await _pinned(installation, driver, found.topology)
        await _floating(installation, driver)
        await driver.close()
    finally:
        await remove_installation(installation)


async def _pinned(installation: Installation, driver: LibvirtDriver, topology: HostTopology) -> None:
    guest = placed(topology, extra_specs={"hw:cpu_policy": "dedicated", "hw:emulator_threads_policy": "share"})
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert vcpu_affinity(installation, guest.uuid) == [{LAST}]
    assert thread_affinities(installation, guest.uuid) >= {frozenset({LAST}), frozenset({0})}
    with pytest.raises(KilonovaError, match="no CPUs"):
        homeless = msgspec.structs.replace(guest, layout=None)
        await driver.hard_reboot(homeless)


async def _floating(installation: Installation, driver: LibvirtDriver) -> None:
    """A guest without CPUs of its own stays off those of others."""
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert vcpu_affinity(installation, guest.uuid) == [{0}]


def vcpu_affinity(installation: Installation, uuid: str) -> list[set[int]]:
    """What `virsh vcpupin` tells of the guest as it runs."""
    connection = libvirt.open(installation.daemon().uri)
    try:
        pins = connection.lookupByUUIDString(uuid).vcpuPinInfo(libvirt.VIR_DOMAIN_AFFECT_LIVE)
    finally:
        connection.close()
    return [{cpu for cpu, allowed in enumerate(one) if allowed} for one in pins]


def thread_affinities(installation: Installation, uuid: str) -> set[frozenset[int]]:
    """What the kernel tells of the threads of the emulator."""
    threads = Path(f"/proc/{qemu_pid(installation, domain_name(uuid))}/task").iterdir()
    return {frozenset(os.sched_getaffinity(int(thread.name))) for thread in threads}


@pytest.mark.timeout(300)
async def test_a_guest_sees_its_cells(tmp_path: Path, driver: LibvirtDriver, shared_installation: Installation) -> None:
    """This machine may have one cell only, so the guest's cells share it; what the guest sees is the same."""
    image = shared_installation.images.add(build(tmp_path / "guest.qcow2"))
    host_cpus = tuple(range(os.cpu_count() or 1))
    guest = empty_guest(
        vcpus=2, memory_mib=256, root_gib=1, image=image,
        extra_specs={"hw:numa_nodes": "2", "hw:numa_cpus.0": "0", "hw:numa_cpus.1": "1", "hw:numa_mem.0": "160",
                     "hw:numa_mem.1": "96", "hw:cpu_max_sockets": "1"},
        layout=Layout(places=(
            Place(host_cell=0, cpus=(0,), floating=host_cpus, memory_mib=160),
            Place(host_cell=0, cpus=(1,), floating=host_cpus, memory_mib=96),
        )),
    )
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await eventually(lambda: _told(driver, guest.uuid, READY), 200.0)
    assert b"guest: nodes 0=0 1=1" in await driver.console_output(guest.uuid, 1 << 20)


async def _told(driver: LibvirtDriver, uuid: str, text: bytes) -> bool:
    return text in await driver.console_output(uuid, 1 << 20)
