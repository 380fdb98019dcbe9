"""What a guest's network interfaces are."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from kilonova.shapes.asked import Asked, Parse, boolean, word

Model = Literal[
    "virtio", "e1000", "e1000e", "igb", "rtl8139", "ne2k_pci", "pcnet", "vmxnet", "vmxnet3", "lan9118", "netfront",
    "spapr-vlan", "sriov",
]
"""Models that the API knows. What a host has of them, it tells by its traits."""
_MODEL: Parse[Model] = word(*get_args(Model))


class Interfaces(msgspec.Struct, frozen=True, kw_only=True):
    """Interfaces in general.

    Args:
        model: None for the usual one. multiqueue: as many queues as the guest has CPUs.
        packed: virtio devices, disks among them, use packed rings.
    """

    model: Model | None = None
    multiqueue: bool = False
    packed: bool = False

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        wanted = {"COMPUTE_NET_VIRTIO_PACKED": "hw_virtio_packed_ring"} if self.packed else {}
        if self.model is not None:
            wanted[f"COMPUTE_NET_VIF_MODEL_{self.model.upper().replace('-', '_')}"] = "hw_vif_model"
        return wanted


def interfaces_shape(asked: Asked) -> Interfaces:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    return Interfaces(
        model=asked.of_image("hw:vif_model", _MODEL),
        multiqueue=asked.agreed("hw:vif_multiqueue_enabled", boolean) or False,
        packed=asked.agreed("hw:virtio_packed_ring", boolean) or False,
    )
