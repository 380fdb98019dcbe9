"""Actions that a server refuses because of what its guest has. They are looked at before lock and states.

Spec: API-068, API-069.
"""

from __future__ import annotations

from kilonova.api.compute.server_create import DEVICE_PROFILE
from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import Instance
from kilonova.shapes.shape import shape_of


def refuse_with_tpm(instance: Instance, action: str) -> None:
    """Raises InvalidInput: its TPM holds what the action would lose, or lay open to others."""
    if shape_of(instance.flavor, instance.image).devices.tpm is not None:
        raise InvalidInput(f"Operation '{action}' is not supported for server {instance.uuid}, which has a vTPM.")


def refuse_saving_memory(instance: Instance) -> None:
    """Raises InvalidInput: its memory cannot be saved and read again."""
    if DEVICE_PROFILE in instance.flavor.extra_specs:
        raise InvalidInput(f"Server {instance.uuid} has accelerators, so it cannot be suspended.")
    if shape_of(instance.flavor, instance.image).memory.encryption is not None:
        raise InvalidInput(f"The memory of server {instance.uuid} is encrypted, so it cannot be suspended.")
