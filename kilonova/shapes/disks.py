"""How a guest sees its disks, and whether they are encrypted."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, boolean, word
from kilonova.shapes.firmware import Firmware

Bus = Literal["virtio", "scsi", "sata", "ide", "usb", "fdc", "nvme", "xen", "uml", "lxc"]
"""Buses that the API knows. What a host has of them, it tells by its traits."""
ScsiModel = Literal[
    "virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "buslogic", "vmpvscsi", "ibmvscsi",
]
EncryptionFormat = Literal["plain", "luks", "luksv2"]
_BUS: Parse[Bus] = word(*get_args(Bus))
_SCSI_MODEL: Parse[ScsiModel] = word(*get_args(ScsiModel))
_FORMAT: Parse[EncryptionFormat] = word(*get_args(EncryptionFormat))
_DISK_TYPE: Parse[str] = word(
    "disk", "lun", "cdrom", "preallocated", "thin", "sparse", "streamOptimized", "eagerZeroedThick",
)
"""The first three say what the root disk is; the others how another hypervisor stores it, which says nothing here."""


class Disks(msgspec.Struct, frozen=True, kw_only=True):
    """Disks in general.

    Args:
        bus: None for the usual one. cdrom_bus: of the config drive; None for what suits the machine.
        scsi_model: of the controller, None for the usual one. cdrom_root: the root disk is a CD-ROM.
        encryption: the format in which local disks are encrypted; None for not at all.
    """

    bus: Bus | None = None
    cdrom_bus: Bus | None = None
    floppy_bus: Bus | None = None
    scsi_model: ScsiModel | None = None
    cdrom_root: bool = False
    encryption: EncryptionFormat | None = None

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        buses = (("hw_disk_bus", self.bus), ("hw_cdrom_bus", self.cdrom_bus), ("hw_floppy_bus", self.floppy_bus))
        wanted = {bus_trait(bus): key for key, bus in buses if bus is not None}
        if self.scsi_model not in (None, "virtio-scsi"):
            wanted[f"CUSTOM_SCSI_MODEL_{self.scsi_model.upper()}"] = "hw_scsi_model"
        if self.encryption is not None:
            wanted["COMPUTE_EPHEMERAL_ENCRYPTION"] = "hw:ephemeral_encryption"
            wanted[f"COMPUTE_EPHEMERAL_ENCRYPTION_{self.encryption.upper()}"] = "hw:ephemeral_encryption_format"
        return wanted


def bus_trait(bus: Bus) -> str:
    """The trait of a host whose guests can have that bus."""
    return f"{'CUSTOM' if bus == 'nvme' else 'COMPUTE'}_STORAGE_BUS_{bus.upper()}"


def disks_shape(asked: Asked) -> Disks:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    kind = asked.of_image("hw:disk_type", _DISK_TYPE)
    bus, cdrom_bus = asked.of_image("hw:disk_bus", _BUS), asked.of_image("hw:cdrom_bus", _BUS)
    if kind == "lun":
        raise InvalidInput("hw_disk_type=lun needs a server that boots from a volume.")
    if "virtio" in (cdrom_bus, bus if kind == "cdrom" else None):
        raise InvalidInput("A CD-ROM cannot be attached to the bus virtio.")
    machine = asked.properties.get("hw_machine_type", Firmware().machine)
    for one in (bus, cdrom_bus):
        check_bus(one, machine)
    return Disks(
        bus=bus, cdrom_bus=cdrom_bus, floppy_bus=asked.of_image("hw:floppy_bus", _BUS),
        scsi_model=asked.of_image("hw:scsi_model", _SCSI_MODEL), cdrom_root=kind == "cdrom",
        encryption=_encryption(asked),
    )


def check_bus(bus: Bus | None, machine: str) -> None:
    """Whether guests of a machine type can have a bus. Raises InvalidInput."""
    if bus == "ide" and (not machine.startswith("pc") or "q35" in machine):
        raise InvalidInput(f"The bus ide needs the machine type pc, not {machine}: set hw_machine_type.")


def _encryption(asked: Asked) -> EncryptionFormat | None:
    if "hw_ephemeral_encryption_secret_uuid" in asked.properties:
        raise InvalidInput("An image that is encrypted itself (hw_ephemeral_encryption_secret_uuid) cannot be used.")
    wanted = asked.agreed("hw:ephemeral_encryption", boolean)
    form = asked.agreed("hw:ephemeral_encryption_format", _FORMAT)
    return (form or "luks") if wanted else None
