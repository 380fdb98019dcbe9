"""Actions that a server refuses because of what its guest has. They are looked at before lock and states.

Spec: API-068, API-069.
"""

from __future__ import annotations

from kilonova.domain.errors import Conflict, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.shapes.accelerators import DEVICE_PROFILE
from kilonova.shapes.disks import EncryptionFormat
from kilonova.shapes.shape import shape_of


def refuse_with_tpm(instance: Instance, action: str) -> None:
    """Raises InvalidInput: its TPM holds what the action would lose, or lay open to others."""
    if shape_of(instance.flavor, instance.image).devices.tpm is not None:
        raise InvalidInput(f"Operation '{action}' is not supported for server {instance.uuid}, which has a vTPM.")


def refuse_rebuild_with_shares(instance: Instance) -> None:
    """Raises InvalidInput."""
    if instance.shares:
        raise InvalidInput(f"Server {instance.uuid} has shares, so it cannot be rebuilt.")


def refuse_with_shares(instance: Instance, action: str) -> None:
    """Raises Conflict: what the guest has mounted can neither be saved nor follow it."""
    if instance.shares:
        raise Conflict(f"Operation '{action}' is not supported for server {instance.uuid}, which has shares.")


def refuse_with_devices(instance: Instance, action: str) -> None:
    """Raises Conflict: what the guest's own devices of its host hold can neither be saved nor follow it."""
    if instance.flavor.pci_requests or any(vif.is_device for vif in instance.network_info):
        raise Conflict(f"Operation '{action}' is not supported for server {instance.uuid}, which has PCI devices.")


def refuse_with_encrypted_disks(instance: Instance) -> None:
    """Raises InvalidInput: an image of the server's disk would not be encrypted."""
    if _encryption(instance.flavor, instance.image) is not None:
        raise InvalidInput(f"The disks of server {instance.uuid} are encrypted, so no image can be made of them.")


def refuse_other_encryption(instance: Instance, flavor: Flavor, image: Image | None) -> None:
    """Raises InvalidInput: the disks that the server keeps are encrypted and its new ones would not be, or the other
    way round."""
    if _encryption(flavor, image) != _encryption(instance.flavor, instance.image):
        raise InvalidInput(f"Whether the disks of server {instance.uuid} are encrypted cannot be changed.")


def _encryption(flavor: Flavor, image: Image | None) -> EncryptionFormat | None:
    return shape_of(flavor, image).devices.disks.encryption


def refuse_saving_memory(instance: Instance) -> None:
    """Raises InvalidInput: its memory cannot be saved and read again."""
    if DEVICE_PROFILE in instance.flavor.extra_specs:
        raise InvalidInput(f"Server {instance.uuid} has accelerators, so it cannot be suspended.")
    if shape_of(instance.flavor, instance.image).memory.encryption is not None:
        raise InvalidInput(f"The memory of server {instance.uuid} is encrypted, so it cannot be suspended.")
