"""The devices of a guest: everything of its shape that is neither processor nor memory."""

from __future__ import annotations

import msgspec

from kilonova.shapes.asked import Asked
from kilonova.shapes.disks import Disks, disks_shape
from kilonova.shapes.firmware import Firmware, firmware_shape
from kilonova.shapes.interfaces import Interfaces, interfaces_shape
from kilonova.shapes.machine import Machine, machine_shape
from kilonova.shapes.screens import Screens, screens_shape
from kilonova.shapes.tpm import Tpm, tpm_shape


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """One topic each. tpm: None for none."""

    firmware: Firmware = Firmware()
    machine: Machine = Machine()
    disks: Disks = Disks()
    interfaces: Interfaces = Interfaces()
    screens: Screens = Screens()
    tpm: Tpm | None = None

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        topics = (self.firmware, self.machine, self.disks, self.interfaces, self.screens, self.tpm)
        return {trait: key for topic in topics if topic is not None for trait, key in topic.traits.items()}


def devices_shape(asked: Asked) -> Devices:
    """Raises InvalidInput: a wrong value, or a contradiction. Spec: EMG-34."""
    return Devices(
        firmware=firmware_shape(asked), machine=machine_shape(asked), disks=disks_shape(asked),
        interfaces=interfaces_shape(asked), screens=screens_shape(asked), tpm=tpm_shape(asked),
    )
