"""What storage pools are, as types of volumes ask for it by their extra specs. Spec: EMV-11."""

from __future__ import annotations

from collections.abc import Mapping

PROTOCOL = "nbd"
VENDOR = "Kilonova"
DRIVER_VERSION = "1.0"
SCOPE = "capabilities:"
"""What extra specs may begin with that ask for one of these."""


def backend_of(host: str) -> str:
    """The backend in `host@backend#pool`."""
    return host.partition("#")[0].partition("@")[2]


def description(host: str) -> dict[str, str]:
    """What a pool says of itself, by the names that extra specs have."""
    return {
        "volume_backend_name": backend_of(host), "vendor_name": VENDOR, "driver_version": DRIVER_VERSION,
        "storage_protocol": PROTOCOL,
    }


def fits(host: str, extra_specs: Mapping[str, str]) -> bool:
    """Whether a pool may have volumes of a type. Extra specs that ask for nothing of this are met by all."""
    offered = description(host)
    return all(
        offered.get(name.removeprefix(SCOPE), wanted) == wanted for name, wanted in extra_specs.items()
    )
