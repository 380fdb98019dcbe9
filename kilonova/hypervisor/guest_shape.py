"""The shape of a guest, checked against the place that it was given."""

from __future__ import annotations

from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.guest import Guest
from kilonova.shapes.asked import Asked
from kilonova.shapes.legacy import modern
from kilonova.shapes.pci_requests import ALIAS
from kilonova.shapes.shape import Shape, read_shape


def checked_shape(guest: Guest) -> Shape:
    """What flavor and image ask of a guest.

    Raises:
        InvalidInput: they contradict each other. KilonovaError: it needs CPUs, NUMA cells or PCI devices of its own and
            has none; it is not started on those of others, or without. Spec: INI-030.
    """
    shape = read_shape(guest.vcpus, guest.memory_mib, Asked(guest.extra_specs, modern(guest.properties)))
    if shape.cells and guest.layout is None:
        raise KilonovaError(
            f"Instance {guest.uuid} has no CPUs and NUMA cells on its host.", hint="resize it, or delete it"
        )
    if ALIAS in guest.extra_specs and not guest.host_devices:
        raise KilonovaError(
            f"Instance {guest.uuid} has none of the PCI devices that it was built with.", hint="resize it, or delete it"
        )
    lost = next((vif.id for vif in guest.vifs if vif.is_device and not vif.address), None)
    if lost is not None:
        raise KilonovaError(
            f"Port {lost} of instance {guest.uuid} has no PCI device of its host.",
            hint="detach it and attach it again",
        )
    return shape
