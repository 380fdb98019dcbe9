"""What a real guest finds of the firmware and the devices that its flavor and image ask for."""

from __future__ import annotations

import base64
import re
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import libvirt
import msgspec
import pytest
import uvloop
from domain_cases import local, vif
from libvirt_installations import Installation, empty_guest, eventually, make_installation, remove_installation

from kilonova.domain.errors import NotFound, TryElsewhere
from kilonova.domain.states import PowerState
from kilonova.guestimage.build import build
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.driver import LibvirtDriver
from kilonova.imaging import qcow2
from kilonova.imaging.facts import BoundedFile
from kilonova.shapes.asked import Asked
from kilonova.shapes.devices import devices_shape
from kilonova.shapes.screens import USB_REDIRECTION

BOOT_LIMIT = 240.0
TELLS = """#!/bin/sh
tell() { echo "FACT $1=$2." >/dev/console; }
[ -d /sys/firmware/efi ] && tell firmware uefi || tell firmware bios
tell rng "$(cat /sys/class/misc/hw_random/rng_current)"
tell pci "$(cat /sys/bus/pci/devices/*/device | tr '\\n' ' ')"
tell serial "$(grep -c 'uart:16550A' /proc/tty/driver/serial)"
tell queues "$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
tell tpm "$(cat /sys/class/tpm/tpm0/tpm_version_major)"
tell rings "$(cut -c 35 /sys/bus/virtio/drivers/virtio_net/virtio*/features)"
tell disks "$(cd /sys/block && for disk in vd* sd*; do
    [ -e $disk ] && echo -n "$disk=$(($(cat $disk/size) / 2048)) "; done)"
tell labels "$(for label in ephemeral0 ephemeral1; do basename "$(findfs LABEL=$label)"; done | tr '\\n' ' ')"
findfs LABEL=ephemeral0 >/dev/null 2>&1 && mkdir -p /tmp/e && mount -t ext4 $(findfs LABEL=ephemeral0) /tmp/e &&
    { [ -e /tmp/e/mark ] && tell kept yes; true; } &&
    echo MARK | rev >/tmp/e/mark && tell ephemeral yes
[ -d /data ] && echo MARK | rev >/data/mark
[ -b /dev/vdc ] && [ "$(dd if=/dev/vdc bs=1 skip=4086 count=10 2>/dev/null)" = SWAPSPACE2 ] && tell swap yes
sync
echo FACTS TOLD >/dev/console
"""
MARK = "written by the guest and read by nobody else"
TELLS = TELLS.replace("MARK", MARK)


WATCHDOG = "0x25ab"


@pytest.fixture
def bridge() -> Iterator[str]:
    name = f"kn{secrets.token_hex(4)}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.fixture
def empty_disk(tmp_path: Path) -> Path:
    path = tmp_path / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    return path


@pytest.mark.timeout(600)
@pytest.mark.spec("EMG-34")
def test_a_guest_finds_what_was_asked_for(tmp_path: Path, bridge: str) -> None:
    uvloop.run(_in_installation(_finds_devices, build(tmp_path / "guest.qcow2"), bridge))


async def _finds_devices(installation: Installation, driver: LibvirtDriver, image: Path, bridge: str) -> None:
    guest = _guest(installation, image, vcpus=2, memory_mib=256, properties={
        "hw_firmware_type": "uefi", "hw_watchdog_action": "reset", "hw_serial_port_count": "2",
        "hw_vif_multiqueue_enabled": "yes", "hw_virtio_packed_ring": "yes", "hw_rng_model": "virtio",
        "hw_time_hpet": "yes", "hw_boot_menu": "no", "hw_video_model": "virtio",
    }, extra_specs={"hw_rng:rate_bytes": "4096"}, vifs=(vif(1, bridge=bridge, devname=f"kt{secrets.token_hex(4)}"),))
    await driver.create_disks(guest)
    await driver.spawn(guest)
    facts = await _facts(driver, guest)
    assert facts["firmware"] == "uefi"
    assert facts["rng"].startswith("virtio_rng")
    assert WATCHDOG in facts["pci"].split()
    assert facts["serial"] == "2"
    assert facts["queues"] == "2"
    assert facts["rings"] == "1"
    await _leaves_nothing(installation, driver, guest)


@pytest.mark.timeout(600)
def test_a_guest_has_a_tpm_whose_state_is_encrypted(tmp_path: Path) -> None:
    uvloop.run(_in_installation(_has_tpm, build(tmp_path / "guest.qcow2"), ""))


async def _has_tpm(installation: Installation, driver: LibvirtDriver, image: Path, _bridge: str) -> None:
    """Its state outlives the guest's definition, is of no use without the secret, and goes with the disks."""
    guest = _guest(installation, image, memory_mib=128, properties={"hw_video_model": "none"}, extra_specs={
        "hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb",
    })
    with pytest.raises(NotFound, match="tpm"):
        await driver.spawn(guest)  # a secret is made with the disks, and never by a start
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert (await _facts(driver, guest))["tpm"] == "2"
    assert installation.secrets.owners == [guest.user_id]
    await driver.suspend(guest.uuid)
    await driver.wake(guest.uuid)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING

    (state,) = (installation.directory / "libvirt/lib/swtpm" / guest.uuid).rglob("tpm2-00.permall")
    await driver.destroy(guest.uuid)
    kept = state.read_bytes()
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert state.read_bytes()[:16] == kept[:16]
    right = installation.secrets.values.copy()
    installation.secrets.values = dict.fromkeys(right, "another")
    with pytest.raises(TryElsewhere):
        await driver.power_on(guest)
    installation.secrets.values = right
    await driver.power_on(guest)
    assert _libvirt_secrets(installation) == []
    assert not any(value.encode() in path.read_bytes() for value in right.values() for path in _files(installation))
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    assert not list(installation.directory.rglob(f"*{guest.uuid}*"))
    assert not list((installation.directory / "libvirt/tpm-log").rglob("*-swtpm.log"))


@pytest.mark.timeout(600)
def test_the_disks_of_a_guest_are_encrypted(tmp_path: Path) -> None:
    uvloop.run(_in_installation(_is_encrypted, build(tmp_path / "guest.qcow2"), ""))


async def _is_encrypted(installation: Installation, driver: LibvirtDriver, image: Path, _bridge: str) -> None:
    """What the guest writes is on no disk of the host, neither before nor after its disks have grown."""
    guest = _guest(installation, image, memory_mib=128, ephemeral_gib=1, swap_mib=32, properties={
        "hw_video_model": "none", "hw_ephemeral_encryption": "true",
    }, extra_specs={"hw:ephemeral_encryption_format": "luks"})
    directory = installation.directory / "guests/instances" / guest.uuid
    await driver.create_disks(guest)
    await driver.spawn(guest)
    facts = await _facts(driver, guest)
    assert facts["disks"].split() == ["vda=1024", "vdb=1024", "vdc=32"]
    assert facts["ephemeral"] == facts["swap"] == "yes"
    await driver.power_off(guest.uuid, grace=60, interval=5)
    larger = msgspec.structs.replace(guest, root_gib=2, ephemeral_gib=2)
    await driver.resize_disks(guest, larger, keep="before")
    await driver.power_on(larger)

    async def booted_again() -> bool:
        return (await driver.console_output(guest.uuid, 1 << 20)).count(b"LOGIN READY") == 2

    await eventually(booted_again, BOOT_LIMIT)
    again = (await driver.console_output(guest.uuid, 1 << 20)).split(b"LOGIN READY")[1]
    assert b"disks vda=2048MiB vdb=2048MiB vdc=32MiB" in again
    assert b"data on /dev/vda2" in again  # which is found by what is written there
    await driver.power_off(guest.uuid, grace=60, interval=5)
    assert len(list(directory.glob("disk*"))) >= 6
    for disk in directory.glob("disk*"):
        assert disk.name.startswith("disk.config") or qcow2.parse(BoundedFile(disk)).encrypted, disk
        assert MARK[::-1].encode() not in disk.read_bytes(), disk
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)
    assert not directory.exists()


@pytest.mark.timeout(600)
def test_a_guest_finds_the_local_disks_that_were_asked_for(tmp_path: Path) -> None:
    uvloop.run(_in_installation(_finds_disks, build(tmp_path / "guest.qcow2"), ""))


async def _finds_disks(installation: Installation, driver: LibvirtDriver, image: Path, _bridge: str) -> None:
    """What is on them outlives a stop, and a rebuild that is asked to keep it."""
    guest = _guest(
        installation, image, memory_mib=128, ephemeral_gib=3, swap_mib=64, properties={"hw_video_model": "none"},
        block_devices=(
            local("r", source_type="image", boot_index=0), local("s", guest_format="swap", volume_size=32),
            local("a", volume_size=1), local("b", volume_size=2, guest_format="ext3", disk_bus="scsi"),
        ),
    )
    await driver.create_disks(guest)
    await driver.spawn(guest)
    facts = await _facts(driver, guest)
    assert facts["disks"].split() == ["vda=1024", "vdb=1024", "vdc=32", "sda=2048"]
    assert facts["labels"].split() == ["vdb", "sda"]
    assert (facts["swap"], facts["ephemeral"], "kept" in facts) == ("yes", "yes", False)
    await driver.power_off(guest.uuid, grace=60, interval=5)
    await driver.power_on(guest)

    async def booted_again() -> bool:
        return (await driver.console_output(guest.uuid, 1 << 20)).count(b"LOGIN READY") == 2

    await eventually(booted_again, BOOT_LIMIT)
    console = await driver.console_output(guest.uuid, 1 << 20)
    assert re.findall(rb"disks (.* )\r", console) == [b"sda=2048MiB vda=1024MiB vdb=1024MiB vdc=32MiB "] * 2
    await driver.prepare_disks(guest, keep_ephemeral=True)
    await driver.destroy(guest.uuid)
    await driver.replace_disks(guest)
    await driver.spawn(guest)
    await driver.drop_old_disks(guest.uuid)
    assert (await _facts(driver, guest))["kept"] == "yes"
    await driver.destroy(guest.uuid)
    await driver.delete_disks(guest.uuid)


def _libvirt_secrets(installation: Installation) -> list[str]:
    connection = libvirt.open(installation.daemon().uri)
    try:
        return [secret.UUIDString() for secret in connection.listAllSecrets()]
    finally:
        connection.close()


def _files(installation: Installation) -> list[Path]:
    """What the host has on its disk of guests; their memory is not among it."""
    return [path for path in installation.directory.rglob("*") if path.is_file() and path.stat().st_size < 1 << 20]


@pytest.mark.timeout(600)
def test_secure_boot_starts_nothing_that_is_not_signed(tmp_path: Path) -> None:
    uvloop.run(_in_installation(_refuses, build(tmp_path / "guest.qcow2"), ""))


async def _refuses(installation: Installation, driver: LibvirtDriver, image: Path, _bridge: str) -> None:
    guest = _guest(installation, image, memory_mib=256, properties={
        "hw_firmware_type": "uefi", "os_secure_boot": "required", "hw_video_model": "none",
    })
    await driver.create_disks(guest)
    await driver.spawn(guest)

    async def refused() -> bool:
        return b"Access Denied" in await driver.console_output(guest.uuid, 1 << 20)

    await eventually(refused, BOOT_LIMIT)
    await _leaves_nothing(installation, driver, guest)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("properties", [
    {"hw_firmware_type": "uefi", "hw_firmware_stateless": "yes"},
    *({"hw_sound_model": model} for model in ("sb16", "es1370", "ac97", "ich6", "ich9", "usb")),
    *({"hw_disk_bus": "scsi", "hw_scsi_model": model}
      for model in ("virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "vmpvscsi")),
    {"hw_input_bus": "usb"}, {"hw_input_bus": "virtio"}, {"hw_pointer_model": "usbtablet"},
    {"hw_usb_model": "qemu-xhci"}, {"hw_usb_model": "nec-xhci", "hw_disk_bus": "usb"},
    {"hw_viommu_model": "intel"}, {"hw_viommu_model": "virtio"}, {"hw_viommu_model": "auto"},
    {"hw_video_model": "vmvga"}, {"hw_video_model": "qxl"}, {"hw_video_model": "cirrus"},
    {"hw_video_model": "bochs"}, {"hw_disk_type": "cdrom"}, {"hw_machine_type": "pc", "hw_disk_bus": "ide"},
    {"hw_disk_bus": "sata"}, {"hw_serial_port_count": "4"}, {"hw_serial_port_count": "0"}, {"hw_boot_menu": "yes"},
    *({"hw_watchdog_action": action} for action in ("none", "pause", "poweroff", "disabled")),
], ids=lambda one: "-".join(f"{key.removeprefix('hw_')}-{value}" for key, value in one.items()))
async def test_libvirt_starts_a_guest_with(
    driver: LibvirtDriver, shared_installation: Installation, empty_disk: Path, properties: dict[str, str]
) -> None:
    """What a host says it can do, it can."""
    guest = empty_guest(image=shared_installation.images.add(empty_disk), properties=properties)
    assert set(devices_shape(Asked({}, properties)).traits) <= set((await driver.inventory()).traits)
    await driver.create_disks(guest)
    await driver.spawn(guest)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_usb_ports_are_redirected_where_there_is_spice(
    shared_installation: Installation, empty_disk: Path
) -> None:
    guest = empty_guest(
        image=shared_installation.images.add(empty_disk), properties={"hw_video_model": "vga"},
        extra_specs={"hw:redirected_usb_ports": "2"},
    )
    for spice in (False, True):
        driver = shared_installation.driver(spice=spice)
        await driver.start(lambda _event: None)
        assert (USB_REDIRECTION in (await driver.inventory()).traits) is spice
        await driver.create_disks(guest)
        if spice:
            await driver.spawn(guest)
            assert await driver.power_state(guest.uuid) is PowerState.RUNNING
        else:
            with pytest.raises(TryElsewhere, match="SPICE"):
                await driver.spawn(guest)
        await driver.destroy(guest.uuid)
        await driver.delete_disks(guest.uuid)
        await driver.close()


async def _in_installation(check: object, image: Path, bridge: str) -> None:
    installation = make_installation()
    driver = installation.driver()
    await driver.start(lambda _event: None)
    try:
        await check(installation, driver, image, bridge)  # type: ignore[operator]
    finally:
        await driver.close()
        await remove_installation(installation)


def _guest(installation: Installation, image: Path, **changes: object) -> Guest:
    guest = empty_guest(image=installation.images.add(image), root_gib=1, config_drive=True, **changes)
    script = base64.b64encode(TELLS.encode()).decode()
    return msgspec.structs.replace(guest, metadata=msgspec.structs.replace(guest.metadata, user_data=script))


async def _facts(driver: LibvirtDriver, guest: Guest) -> dict[str, str]:
    """What the guest tells of itself when it has booted for the first time."""

    async def told() -> bool:
        return b"FACTS TOLD" in await driver.console_output(guest.uuid, 1 << 20)

    await eventually(told, BOOT_LIMIT)
    console = await driver.console_output(guest.uuid, 1 << 20)
    return {name.decode(): value.decode() for name, value in re.findall(rb"FACT (\w+)=([^\r\n]*)\.", console)}


async def _leaves_nothing(installation: Installation, driver: LibvirtDriver, guest: Guest) -> None:
    directory = installation.directory / "guests/instances" / guest.uuid
    assert (directory / "uefi-variables.fd").exists()
    await driver.destroy(guest.uuid)
    assert (directory / "uefi-variables.fd").exists()
    await driver.delete_disks(guest.uuid)
    assert not directory.exists()
    assert not list(installation.directory.rglob(f"*{guest.uuid}*"))
