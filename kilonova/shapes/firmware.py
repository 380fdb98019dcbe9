"""How a guest's machine starts: its machine type, BIOS or UEFI, secure boot."""

from __future__ import annotations

import re

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, boolean, word

_MACHINE = re.compile(r"(pc|q35|virt|pc-(i440fx|q35)-[0-9a-z.]+|virt-[0-9.]+)", re.ASCII)
_TYPE: Parse[str] = word("bios", "uefi")
_OF_FLAVOR: Parse[str] = word("required", "disabled")
_OF_IMAGE: Parse[str] = word("required", "optional", "disabled")


class Firmware(msgspec.Struct, frozen=True, kw_only=True):
    """What starts the guest.

    Args:
        machine: as QEMU names it. secure_boot: None for as the host can (only what is signed is started then).
        stateless: the firmware keeps no variables.
    """

    machine: str = "q35"
    uefi: bool = False
    secure_boot: bool | None = False
    stateless: bool = False

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        wanted = (
            (self.uefi, "COMPUTE_FIRMWARE_UEFI", "hw_firmware_type"),
            (self.secure_boot is True, "COMPUTE_SECURITY_UEFI_SECURE_BOOT", "os_secure_boot"),
            (self.stateless, "COMPUTE_SECURITY_STATELESS_FIRMWARE", "hw_firmware_stateless"),
        )
        return {trait: key for needed, trait, key in wanted if needed}


def firmware_shape(asked: Asked) -> Firmware:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    machine = asked.of_image("hw:machine_type", _machine) or Firmware().machine
    uefi = asked.of_image("hw:firmware_type", _TYPE) == "uefi"
    stateless = asked.of_image("hw:firmware_stateless", boolean) or False
    if stateless and not uefi:
        raise InvalidInput("hw_firmware_stateless needs hw_firmware_type=uefi.")
    return Firmware(machine=machine, uefi=uefi, secure_boot=_secure_boot(asked, machine, uefi, stateless),
                    stateless=stateless)


def _machine(key: str, text: str) -> str:
    if not _MACHINE.fullmatch(text):
        raise InvalidInput(f"Invalid value {text!r} of {key}: it is a machine type such as q35 or pc.")
    return text


def _secure_boot(asked: Asked, machine: str, uefi: bool, stateless: bool) -> bool | None:
    flavor = asked.of_flavor("os:secure_boot", _OF_FLAVOR)
    image = asked.of_image("os:secure_boot", _OF_IMAGE)
    if {flavor, image} == {"required", "disabled"}:
        raise InvalidInput(f"Flavor and image disagree about secure boot: {flavor} and {image}.")
    wanted = flavor or image or "disabled"
    fit = uefi and "q35" in machine and not stateless
    if wanted == "required" and not fit:
        raise InvalidInput(
            "Secure boot needs hw_firmware_type=uefi, firmware that keeps its variables, and the machine type q35."
        )
    if wanted == "optional":
        return None if fit else False
    return wanted == "required"
