"""What flavor and image ask of firmware and devices: read, refused, and demanded of the host."""

from __future__ import annotations

import pytest

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.devices import Devices
from kilonova.shapes.machine import EntropyRate
from kilonova.shapes.shape import shape_of
from kilonova.shapes.tpm import Tpm

UEFI = {"hw_firmware_type": "uefi"}


def devices(properties: dict[str, str] | None = None, specs: dict[str, str] | None = None) -> Devices:
    flavor = Flavor(flavor_id="1", name="m", vcpus=1, memory_mib=512, root_gib=1, extra_specs=specs or {})
    return shape_of(flavor, Image(id="i", properties=properties or {})).devices


def test_what_nobody_asks_for_demands_nothing() -> None:
    assert devices() == Devices()
    assert devices().traits == {}


@pytest.mark.spec("EMG-34")
@pytest.mark.parametrize(("name", "value"), [
    ("hw_machine_type", "q35' x='"), ("hw_firmware_type", "coreboot"), ("hw_firmware_stateless", "maybe"),
    ("os_secure_boot", "perhaps"), ("hw_disk_bus", "floppy"), ("hw_cdrom_bus", ""), ("hw_floppy_bus", "x"),
    ("hw_disk_type", "tape"), ("hw_scsi_model", "adaptec"), ("hw_boot_menu", "2"), ("hw_vif_model", "ne3k"),
    ("hw_vif_multiqueue_enabled", "many"), ("hw_pointer_model", "hand"), ("hw_input_bus", "ps2"),
    ("hw_qemu_guest_agent", "perhaps"), ("os_require_quiesce", "?"), ("hw_rng_model", "dice"),
    ("hw_serial_port_count", "-1"), ("hw_serial_port_count", "5"), ("hw_time_hpet", "never"),
    ("hw_video_model", "glass"), ("hw_video_ram", "much"), ("hw_sound_model", "gong"), ("hw_usb_model", "ehci"),
    ("hw_redirected_usb_ports", "16"), ("hw_viommu_model", "amd"), ("hw_virtio_packed_ring", "ja"),
    ("hw_watchdog_action", "bark"), ("hw_tpm_model", "tpm-spi"), ("hw_tpm_version", "3.0"),
    ("hw_ephemeral_encryption", "rot13"), ("hw_ephemeral_encryption_format", "zip"), ("img_config_drive", "always"),
    ("img_hide_hypervisor_id", "no way"), ("hw_emulation_architecture", "vax"),
])
def test_a_value_outside_the_set_is_refused_and_named(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        devices({name: value})


@pytest.mark.spec("EMG-34")
@pytest.mark.parametrize(("properties", "specs"), [
    ({"hw_firmware_stateless": "yes"}, {}),
    ({"os_secure_boot": "required"}, {}),
    (UEFI | {"os_secure_boot": "required", "hw_machine_type": "pc"}, {}),
    (UEFI | {"os_secure_boot": "required", "hw_firmware_stateless": "yes"}, {}),
    (UEFI | {"os_secure_boot": "required"}, {"os:secure_boot": "disabled"}),
    (UEFI | {"os_secure_boot": "disabled"}, {"os:secure_boot": "required"}),
    ({"hw_tpm_version": "2.0"}, {"hw:tpm_version": "1.2"}),
    ({"hw_tpm_model": "tpm-crb"}, {}),
    ({"hw_tpm_model": "tpm-crb", "hw_tpm_version": "1.2"}, {}),
    ({"hw_video_ram": "16"}, {}), ({"hw_video_ram": "16"}, {"hw_video:ram_max_mb": "8"}),
    ({"hw_serial_port_count": "2"}, {"hw:serial_port_count": "1"}),
    ({"hw_vif_multiqueue_enabled": "yes"}, {"hw:vif_multiqueue_enabled": "no"}),
    ({"hw_disk_type": "lun"}, {}), ({"hw_cdrom_bus": "virtio"}, {}),
    ({"hw_disk_bus": "ide"}, {}), ({"hw_cdrom_bus": "ide", "hw_machine_type": "pc-q35-7.2"}, {}),
    ({"hw_usb_model": "none", "hw_input_bus": "usb"}, {}),
    ({"os_command_line": "quiet"}, {}), ({"ramdisk_id": "r"}, {}),
    ({"hw_viommu_model": "intel", "hw_machine_type": "pc"}, {}),
    ({"hw_ephemeral_encryption": "yes"}, {"hw:ephemeral_encryption": "no"}),
])
def test_wishes_that_exclude_each_other_are_refused(properties: dict[str, str], specs: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        devices(properties, specs)


@pytest.mark.parametrize(("properties", "specs", "traits"), [
    (UEFI, {}, {"COMPUTE_FIRMWARE_UEFI"}),
    (UEFI | {"os_secure_boot": "optional"}, {"os:secure_boot": "required"},
     {"COMPUTE_FIRMWARE_UEFI", "COMPUTE_SECURITY_UEFI_SECURE_BOOT"}),
    (UEFI | {"os_secure_boot": "optional"}, {}, {"COMPUTE_FIRMWARE_UEFI"}),
    (UEFI | {"hw_firmware_stateless": "1"}, {}, {"COMPUTE_FIRMWARE_UEFI", "COMPUTE_SECURITY_STATELESS_FIRMWARE"}),
    ({}, {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"},
     {"COMPUTE_SECURITY_TPM_2_0", "COMPUTE_SECURITY_TPM_CRB", "COMPUTE_SECURITY_TPM_SECRET_SECURITY_USER"}),
    ({"hw_disk_bus": "scsi", "hw_scsi_model": "lsilogic"}, {},
     {"COMPUTE_STORAGE_BUS_SCSI", "CUSTOM_SCSI_MODEL_LSILOGIC"}),
    ({"hw_disk_bus": "scsi", "hw_scsi_model": "virtio-scsi"}, {}, {"COMPUTE_STORAGE_BUS_SCSI"}),
    ({"hw_video_model": "gop", "hw_sound_model": "pcspk", "hw_vif_model": "spapr-vlan"}, {},
     {"COMPUTE_GRAPHICS_MODEL_GOP", "COMPUTE_SOUND_MODEL_PCSPK", "COMPUTE_NET_VIF_MODEL_SPAPR_VLAN"}),
    ({}, {"hw:usb_model": "qemu-xhci", "hw:redirected_usb_ports": "2", "hw:virtio_packed_ring": "yes"},
     {"COMPUTE_USB_MODEL_QEMU_XHCI", "CUSTOM_USB_REDIRECTION", "COMPUTE_NET_VIRTIO_PACKED"}),
    ({"hw_viommu_model": "auto"}, {}, {"COMPUTE_VIOMMU_MODEL_INTEL"}),
    ({"hw_viommu_model": "auto", "hw_machine_type": "virt"}, {}, {"COMPUTE_VIOMMU_MODEL_SMMUV3"}),
    ({"hw_emulation_architecture": "aarch64"}, {}, {"COMPUTE_ARCH_AARCH64"}),
    ({"hw_ephemeral_encryption": "yes"}, {},
     {"COMPUTE_EPHEMERAL_ENCRYPTION", "COMPUTE_EPHEMERAL_ENCRYPTION_LUKS"}),
    ({"hw_ephemeral_encryption_format": "luks"}, {}, set()),
])
def test_what_only_some_hosts_can_is_demanded(
    properties: dict[str, str], specs: dict[str, str], traits: set[str]
) -> None:
    assert set(devices(properties, specs).traits) == traits


@pytest.mark.spec("EMG-34")
def test_who_wins_where_flavor_and_image_differ() -> None:
    assert devices({"hw_watchdog_action": "pause"}, {"hw:watchdog_action": "reset"}).machine.watchdog == "pause"
    assert devices({"hw_watchdog_action": "disabled"}, {"hw:watchdog_action": "reset"}).machine.watchdog is None
    assert devices({}, {"hw:watchdog_action": "reset"}).machine.watchdog == "reset"
    assert devices({"hw_boot_menu": "yes"}, {"hw:boot_menu": "no"}).machine.boot_menu is False
    assert devices({"hw_boot_menu": "yes"}).machine.boot_menu is True
    assert devices({"hw_serial_port_count": "1"}, {"hw:serial_port_count": "3"}).machine.serial_ports == 1
    assert devices({}, {"hw:serial_port_count": "3"}).machine.serial_ports == 3
    assert devices({"hw_rng_model": "virtio"}, {"hw_rng:allowed": "False"}).machine.entropy is False
    assert devices({}, {"hw_rng:rate_bytes": "10"}).machine.entropy_rate == EntropyRate(bytes=10, period=1000)
    assert devices({}, {"hw_rng:rate_period": "10"}).machine.entropy_rate is None
    assert devices({"hw_video_ram": "16"}, {"hw_video:ram_max_mb": "16"}).screens.video_ram == 16
    assert devices({"hw_tpm_version": "1.2"}, {"hw:tpm_secret_security": "host"}).tpm == Tpm(
        version="1.2", model="tpm-tis", security="host"
    )


@pytest.mark.spec("EMG-35")
def test_an_old_name_counts_where_the_new_one_is_absent() -> None:
    assert devices({"vmware_adaptertype": "ide", "hw_machine_type": "pc"}).disks.bus == "ide"
    assert devices({"vmware_adaptertype": "lsiLogicsas"}).disks.scsi_model == "lsisas1068"
    assert devices({"vmware_adaptertype": "ide", "hw_disk_bus": "sata"}).disks.bus == "sata"
    assert devices({"vmware_disktype": "thin", "hw_disk_type": "cdrom", "hw_disk_bus": "sata"}).disks.cdrom_root
    assert devices({"my_own": "thing"}) == Devices()
    with pytest.raises(InvalidInput, match="hw_disk_type"):
        devices({"vmware_disktype": "tape"})
