"""Flavors: what a server is made of."""

from __future__ import annotations

import msgspec

from kilonova.domain.pci import DeviceRequest


class Flavor(msgspec.Struct, frozen=True, kw_only=True):
    """A flavor, also as the copy embedded in each instance record.

    Args:
        id: row number; flavor_id: the public id.
        memory_mib: memory in MiB. root_gib, ephemeral_gib: disks in GiB. swap_mib: swap in MiB.
        pci_requests: what the aliases in its extra specs meant when the server got it; only in such a copy.
    """

    id: int = 0
    flavor_id: str
    name: str
    vcpus: int
    memory_mib: int
    root_gib: int
    ephemeral_gib: int = 0
    swap_mib: int = 0
    rxtx_factor: float = 1.0
    vcpu_weight: int = 0
    disabled: bool = False
    is_public: bool = True
    description: str | None = None
    extra_specs: dict[str, str] = {}
    pci_requests: tuple[DeviceRequest, ...] = ()
