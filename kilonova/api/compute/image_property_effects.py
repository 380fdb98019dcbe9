"""What image properties do to the devices of a guest, for the page that lists them."""

from __future__ import annotations

from typing import get_args

from kilonova.shapes.disks import Bus, EncryptionFormat, ScsiModel
from kilonova.shapes.interfaces import Model
from kilonova.shapes.screens import InputBus, SoundModel, UsbModel, VideoModel

BOOLEAN, TEXT, IMAGE = "true, false", "text", "id of an image"


def _any_of(words: object) -> str:
    return ", ".join(get_args(words))


DEVICES: dict[str, tuple[str, str]] = {
    "hw_machine_type": (TEXT, "the machine, as QEMU names it; q35 if nothing is said"),
    "hw_emulation_architecture": (TEXT, "another architecture than the host's"),
    "hw_firmware_type": ("bios, uefi", "the firmware"),
    "hw_firmware_stateless": (BOOLEAN, "UEFI that keeps no variables"),
    "os_secure_boot": ("required, optional, disabled", "only signed software starts; needs UEFI and q35"),
    "hw_boot_menu": (BOOLEAN, "the firmware shows a boot menu; the flavor wins"),
    "kernel_id": (IMAGE, "a kernel that is started in place of what is on the disk"),
    "ramdisk_id": (IMAGE, "its ramdisk"),
    "os_command_line": (TEXT, "what the kernel is told; the root disk and the consoles if nothing is said"),
    "hw_disk_bus": (_any_of(Bus), "the bus of disks; virtio if nothing is said"),
    "hw_cdrom_bus": (_any_of(Bus), "the bus of the config drive"),
    "hw_floppy_bus": (_any_of(Bus), "only hosts that have this bus"),
    "hw_scsi_model": (_any_of(ScsiModel), "the controller of disks on the bus scsi"),
    "hw_disk_type": ("disk, cdrom, lun", "cdrom: the root disk is one; lun: refused without a volume"),
    "hw_rescue_device": ("disk, cdrom", "of a rescue image: one more device, from which the guest boots"),
    "hw_rescue_bus": (_any_of(Bus), "of a rescue image: the bus of that device"),
    "hw_ephemeral_encryption": (BOOLEAN, "local disks are encrypted; must agree with the flavor"),
    "hw_ephemeral_encryption_format": (_any_of(EncryptionFormat), "how; luks if nothing is said"),
    "hw_ephemeral_encryption_secret_uuid": (TEXT, "refused: images that are encrypted themselves cannot be used"),
    "hw_vif_model": (_any_of(Model), "the model of network cards; virtio if nothing is said"),
    "hw_vif_multiqueue_enabled": (BOOLEAN, "as many queues of each interface as CPUs; must agree with the flavor"),
    "hw_virtio_packed_ring": (BOOLEAN, "packed rings; must agree with the flavor"),
    "hw_video_model": (_any_of(VideoModel), "the screen"),
    "hw_video_ram": ("integer", "MiB of it, within what the flavor allows"),
    "hw_sound_model": (_any_of(SoundModel), "a sound card"),
    "hw_usb_model": (_any_of(UsbModel), "a USB controller"),
    "hw_input_bus": (_any_of(InputBus), "the bus of the tablet"),
    "hw_pointer_model": ("usbtablet, ps2mouse", "usbtablet: a tablet"),
    "hw_redirected_usb_ports": ("integer", "USB ports for a SPICE client"),
    "hw_serial_port_count": ("integer", "serial ports, within what the flavor allows"),
    "hw_rng_model": ("virtio", "a source of randomness, which is there anyway"),
    "hw_watchdog_action": ("none, pause, poweroff, reset, disabled",
                           "what happens to a guest that does not feed its watchdog"),
    "hw_viommu_model": ("intel, virtio, smmuv3, auto", "an IOMMU"),
    "hw_time_hpet": (BOOLEAN, "a high precision event timer"),
    "hw_tpm_version": ("1.2, 2.0", "a virtual TPM"),
    "hw_tpm_model": ("tpm-tis, tpm-crb", "how it is attached"),
    "hw_qemu_guest_agent": (BOOLEAN, "false: no channel to an agent; true: one that comes with the guest's boot, which "
                                     "freezes file systems for images"),
    "os_require_quiesce": (BOOLEAN, "no image of a guest that runs without its file systems held still"),
    "os_type": ("linux, windows", "windows: what that system expects of timers, buses and disks"),
    "img_config_drive": ("mandatory, optional", "mandatory: there is a config drive"),
    "os_shutdown_timeout": ("integer", "seconds in which the guest may shut down"),
    "os_admin_user": (TEXT, "whose password is changed"),
    "auto_disk_config": (TEXT, "disabled: the disk is not resized"),
}
"""By name: values, and what they do."""
