"""The driver against a real libvirtd, with guests that have no operating system."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import uuid
from pathlib import Path

import libvirt
import pytest
from domain_cases import vif
from libvirt_installations import FileImages, Installation, Listener, empty_guest, eventually, qemu_pid

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import InvalidInput, KilonovaError, NotFound, Retryable, TryElsewhere
from kilonova.domain.states import PowerState
from kilonova.hypervisor.libvirt.daemon import SystemDaemon
from kilonova.hypervisor.libvirt.description import domain_name
from kilonova.hypervisor.libvirt.driver import LibvirtDriver

GIB = 1 << 30


async def test_spawn_is_repeatable_and_leaves_a_running_guest_alone(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    process = qemu_pid(shared_installation, domain_name(guest.uuid))
    await driver.spawn(guest)
    assert qemu_pid(shared_installation, domain_name(guest.uuid)) == process
    assert [found.uuid for found in await driver.guests()] == [guest.uuid]


async def test_a_guest_that_was_only_defined_is_spawned(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    connection = libvirt.open(shared_installation.daemon().uri)
    assert connection.lookupByUUIDString(guest.uuid).isActive() == 0
    connection.close()
    await driver.spawn(guest)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_a_guest_started_paused_waits_for_resume(driver: LibvirtDriver, listener: Listener) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    assert await driver.power_state(guest.uuid) is PowerState.PAUSED
    await driver.resume(guest.uuid)
    await driver.resume(guest.uuid)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await listener.until(guest.uuid, "resumed")
    assert listener.of(guest.uuid) == ["started", "paused", "resumed"]


async def test_destroy_and_delete_are_repeatable(driver: LibvirtDriver, shared_installation: Installation) -> None:
    guest = empty_guest(swap_mib=1)
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert await driver.disks() == [guest.uuid]
    for _ in range(2):
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
    assert await driver.guests() == []
    assert await driver.disks() == []
    left = [str(path) for path in shared_installation.directory.rglob("*") if domain_name(guest.uuid) in str(path)]
    assert left == []


async def test_disks_of_a_guest_that_exists_are_not_deleted(driver: LibvirtDriver) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    with pytest.raises(KilonovaError, match="still uses"):
        await driver.delete_disks(guest.uuid)
    assert await driver.disks() == [guest.uuid]


async def test_uefi_variables_live_and_go_with_the_disks(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest(properties={"hw_firmware_type": "uefi"})
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    variables = shared_installation.directory / "guests/instances" / guest.uuid / "uefi-variables.fd"
    await driver.destroy(guest.uuid)
    assert variables.stat().st_size > 0
    await driver.delete_disks(guest.uuid)
    assert await driver.disks() == []


async def test_a_libvirtd_of_somebody_else_serves_as_well(shared_installation: Installation) -> None:
    private = shared_installation.driver()
    await private.start(lambda _event: None)
    driver = LibvirtDriver(
        shared_installation.directory / "elsewhere", SystemDaemon(shared_installation.daemon().uri),
        shared_installation.images, SystemClock(), installation="system",
        secrets=shared_installation.secrets, signatures=shared_installation.signatures,
    )
    await driver.start(lambda _event: None)
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    assert [found.uuid for found in await driver.guests()] == [guest.uuid]
    assert await private.guests() == []
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    await driver.close()
    await private.close()


@pytest.mark.spec("PWR-02", "FND-41")
async def test_an_unknown_guest_has_no_state(driver: LibvirtDriver) -> None:
    assert await driver.power_state(str(uuid.uuid4())) is PowerState.NOSTATE


@pytest.mark.spec("PWR-01", "FND-40")
async def test_the_power_state_is_that_of_this_moment(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    behind_its_back = libvirt.open(shared_installation.daemon().uri)
    behind_its_back.lookupByUUIDString(guest.uuid).suspend()
    assert await driver.power_state(guest.uuid) is PowerState.PAUSED
    behind_its_back.close()


@pytest.mark.spec("PWR-03", "FND-42")
async def test_a_lost_connection_is_an_error_and_not_a_state(
    own_installation: Installation, listener: Listener
) -> None:
    """A call in flight when libvirtd dies is Retryable; the next one waits and is answered."""
    driver = own_installation.driver()
    await driver.start(listener)
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    os.kill(own_installation.libvirtd_pid(), signal.SIGSTOP)
    asking = asyncio.create_task(driver.power_state(guest.uuid))
    await asyncio.sleep(0)
    os.kill(own_installation.libvirtd_pid(), signal.SIGKILL)
    with pytest.raises(Retryable):
        await asyncio.wait_for(asking, 20)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await driver.close()


async def test_what_happened_while_libvirtd_was_away_is_told(
    own_installation: Installation, listener: Listener
) -> None:
    driver = own_installation.driver()
    await driver.start(listener)
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await listener.until(guest.uuid, "started")
    os.kill(own_installation.supervisor_pid(), signal.SIGSTOP)  # so that libvirtd stays away for a while
    libvirtd = own_installation.libvirtd_pid()
    os.kill(libvirtd, signal.SIGKILL)
    os.kill(qemu_pid(own_installation, domain_name(guest.uuid)), signal.SIGKILL)
    os.kill(own_installation.supervisor_pid(), signal.SIGCONT)

    async def told() -> bool:
        return bool({"stopped", "crashed"} & set(listener.of(guest.uuid)))

    await eventually(told)
    await driver.close()


@pytest.mark.spec("PWR-05")
async def test_without_grace_the_power_is_cut_at_once(driver: LibvirtDriver, listener: Listener) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN
    await listener.until(guest.uuid, "stopped")
    await driver.power_off(guest.uuid, grace=5, interval=1)  # off already: nothing to wait for
    assert [found.power_state for found in await driver.guests()] == [PowerState.SHUTDOWN]


@pytest.mark.spec("PWR-06")
async def test_a_guest_that_does_not_obey_is_cut_after_the_grace_time(driver: LibvirtDriver) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    loop = asyncio.get_running_loop()
    before = loop.time()
    await driver.power_off(guest.uuid, grace=1.5, interval=1)
    assert loop.time() - before >= 1.5
    assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN


@pytest.mark.spec("PWR-07")
async def test_a_wait_for_shutdown_can_be_cut_short(driver: LibvirtDriver) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    stopping = asyncio.create_task(driver.power_off(guest.uuid, grace=600, interval=10))
    await asyncio.sleep(0.05)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    await asyncio.wait_for(driver.destroy(guest.uuid), 20)
    assert await driver.power_state(guest.uuid) is PowerState.NOSTATE


@pytest.mark.spec("PWR-16")
async def test_stopping_a_guest_that_is_gone_is_no_error(driver: LibvirtDriver) -> None:
    await driver.power_off(str(uuid.uuid4()), grace=5, interval=1)


async def test_a_soft_reboot_tells_when_the_guest_did_not_obey(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    process = qemu_pid(shared_installation, domain_name(guest.uuid))
    assert await driver.soft_reboot(guest, wait=1) is False
    assert qemu_pid(shared_installation, domain_name(guest.uuid)) == process
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await driver.soft_reboot(guest, wait=1) is True  # as after a crash between its two halves
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_a_hard_reboot_takes_what_is_described_now(
    driver: LibvirtDriver, shared_installation: Installation
) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    process = qemu_pid(shared_installation, domain_name(guest.uuid))
    larger = empty_guest(uuid=guest.uuid, memory_mib=96)
    await driver.hard_reboot(larger)
    assert qemu_pid(shared_installation, domain_name(guest.uuid)) != process
    connection = libvirt.open(shared_installation.daemon().uri)
    assert connection.lookupByUUIDString(guest.uuid).maxMemory() == 96 * 1024
    connection.close()


async def test_only_marked_guests_are_ours(driver: LibvirtDriver, shared_installation: Installation) -> None:
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    connection = libvirt.open(shared_installation.daemon().uri)
    foreign = connection.defineXML(
        "<domain type='qemu'><name>foreign</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    )
    other = shared_installation.driver(installation="another")
    await other.start(lambda _event: None)
    try:
        assert [found.uuid for found in await driver.guests()] == [guest.uuid]
        assert await other.guests() == []
    finally:
        foreign.undefine()
        connection.close()
        await other.close()


@pytest.mark.spec("LCE-16")
async def test_an_event_that_cannot_be_handled_does_not_stop_the_next(shared_installation: Installation) -> None:
    told: list[str] = []

    def fail(event: object) -> None:
        told.append(event.transition)  # type: ignore[attr-defined]
        raise RuntimeError("the agent is confused")

    driver = shared_installation.driver()
    await driver.start(fail)
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest, paused=True)
    await driver.resume(guest.uuid)

    async def all_told() -> bool:
        return told == ["started", "paused", "resumed"]

    await eventually(all_told)
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    await driver.close()


async def test_the_inventory_counts_all_memory(driver: LibvirtDriver, shared_installation: Installation) -> None:
    inventory = await driver.inventory()
    total = _memory_mib()
    assert inventory.memory_mib == total
    assert 0 < inventory.memory_free_mib < total
    assert inventory.vcpus == os.cpu_count()
    disk = os.statvfs(shared_installation.directory)
    assert inventory.local_gib == disk.f_blocks * disk.f_frsize // GIB
    assert {"COMPUTE_NODE", "COMPUTE_NET_VIF_MODEL_VIRTIO", "HW_CPU_X86_SSE2"} <= set(inventory.traits)
    assert inventory.supported == (("x86_64", inventory.supported[0][1], "hvm"),)
    assert inventory.hypervisor_version > 1_000_000


async def test_a_missing_bridge_is_found_before_the_guest_starts(driver: LibvirtDriver) -> None:
    guest = empty_guest(vifs=(vif(1, bridge="kn-absent"),))
    with pytest.raises(TryElsewhere, match="kn-absent"):
        await driver.plug(guest)


async def test_what_libvirt_refuses_another_host_may_accept(driver: LibvirtDriver) -> None:
    guest = empty_guest(memory_mib=64, vcpus=9999)
    await driver.create_disks(guest)
    with pytest.raises(TryElsewhere, match="refused"):
        await driver.spawn(guest)


async def test_there_is_no_console_of_a_guest_that_never_ran(driver: LibvirtDriver) -> None:
    with pytest.raises(NotFound):
        await driver.console_output(str(uuid.uuid4()), 100)


async def test_a_name_that_is_no_uuid_reaches_no_file(driver: LibvirtDriver) -> None:
    with pytest.raises(InvalidInput):
        await driver.delete_disks("../images")


async def test_all_disks_are_made_with_their_sizes(
    driver: LibvirtDriver, images: FileImages, shared_installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "image.raw"
    file.write_bytes(b"image" * 1000)
    guest = empty_guest(
        image=images.add(file, disk_format="raw"), root_gib=2, ephemeral_gib=1, swap_mib=16, config_drive=True
    )
    await asyncio.gather(driver.create_disks(guest), driver.create_disks(guest))
    directory = shared_installation.directory / "guests/instances" / guest.uuid
    assert {entry.name for entry in directory.iterdir()} == {
        "disk", "disk.ephemeral", "disk.swap", "disk.config"
    }
    described = _describe(directory / "disk")
    assert f'"virtual-size": {2 * GIB}' in described
    assert '"backing-filename-format": "raw"' in described
    assert (directory / "disk.ephemeral").stat().st_size == GIB
    with (directory / "disk.swap").open("rb") as swap:
        swap.seek(4086)
        assert swap.read(10) == b"SWAPSPACE2"
    assert b"config-2" in (directory / "disk.config").read_bytes()
    assert all(entry.stat().st_mode & 0o077 == 0 for entry in directory.iterdir())


@pytest.mark.spec("PWR-18")
async def test_a_guest_that_lacks_one_of_its_disks_is_not_started(
    driver: LibvirtDriver, images: FileImages, shared_installation: Installation, tmp_path: Path
) -> None:
    file = tmp_path / "image.raw"
    file.write_bytes(b"image" * 1000)
    guest = empty_guest(
        image=images.add(file, disk_format="raw"), root_gib=1, ephemeral_gib=1, swap_mib=16, config_drive=True
    )
    await driver.create_disks(guest)
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    directory = shared_installation.directory / "guests/instances" / guest.uuid
    for disk in ("disk", "disk.ephemeral", "disk.swap", "disk.config"):
        (directory / disk).rename(tmp_path / disk)
        for start in (driver.power_on, driver.hard_reboot):
            with pytest.raises(KilonovaError):
                await start(guest)
            assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN
        assert not (directory / disk).exists()
        (tmp_path / disk).rename(directory / disk)
    await driver.power_on(guest)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


def _memory_mib() -> int:
    return int(Path("/proc/meminfo").read_text().split()[1]) // 1024


def _describe(disk: Path) -> str:
    command = ["qemu-img", "info", "--output=json", str(disk)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
