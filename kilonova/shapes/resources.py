"""What a server needs of a host: amounts of resource classes and traits, read from flavor and image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import BlockDevice
from kilonova.shapes.shape import shape_of
from kilonova.shapes.traits import needed_traits

_AMOUNT = re.compile(r"resources(?P<group>[a-zA-Z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")
_TRAIT = re.compile(r"trait(?P<group>[a-zA-Z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")


class Traits(msgspec.Struct, frozen=True):
    """Traits that a host must have, and must not have."""

    required: frozenset[str]
    forbidden: frozenset[str]


def is_volume_backed(block_devices: Iterable[BlockDevice]) -> bool:
    """Whether the server boots from a volume, so that its root disk takes nothing of the host."""
    return any(device.boot_index == 0 and device.destination_type == "volume" for device in block_devices)


def resources_of(
    flavor: Flavor, image: Image | None = None, *, volume_backed: bool = False
) -> dict[str, int]:
    """Amounts by resource class that a server of this flavor takes of its host; none of them is 0.

    `resources:CLASS` in the extra specs replaces what the flavor says of that class; 0 takes it away.
    Numbered and named groups are asked of the same host and add up.

    Args:
        image: its properties may ask for dedicated CPUs too.
        volume_backed: the root disk is a volume.

    Raises:
        InvalidInput: an amount that is not a whole number, or is negative; a shape that cannot be.
    """
    shape = shape_of(flavor, image)
    dedicated = len(shape.cpu.dedicated)
    own_emulator = 1 if shape.cpu.emulator_threads == "isolate" else 0
    root_gib = 0 if volume_backed else flavor.root_gib
    amounts = {
        "VCPU": flavor.vcpus - dedicated,
        "PCPU": dedicated + own_emulator,
        "MEMORY_MB": flavor.memory_mib,
        "DISK_GB": root_gib + flavor.ephemeral_gib + -(-flavor.swap_mib // 1024),
        "MEM_ENCRYPTION_CONTEXT": 1 if shape.memory.encryption is not None else 0,
    }
    grouped: dict[str, int] = {}
    for key, value in flavor.extra_specs.items():
        match = _AMOUNT.match(key)
        if match is None:
            continue
        if not value.isdecimal():
            raise InvalidInput(f"Extra spec {key} must be a whole number, not {value!r}.")
        if match["group"]:
            grouped[match["name"]] = grouped.get(match["name"], 0) + int(value)
        else:
            amounts[match["name"]] = int(value)
    for name, amount in grouped.items():
        amounts[name] = amounts.get(name, 0) + amount
    return {name: amount for name, amount in amounts.items() if amount}


def granular_groups(extra_specs: Mapping[str, str]) -> frozenset[str]:
    """The suffixes of the groups that are asked for beside the one without a suffix."""
    matches = (pattern.match(key) for key in extra_specs for pattern in (_AMOUNT, _TRAIT))
    return frozenset(match["group"] for match in matches if match is not None and match["group"])


def traits_of(flavor: Flavor, image: Image) -> Traits:
    """Traits that flavor (`trait:NAME` = required or forbidden) and image (`trait:NAME` = required) ask for, and those
    without which a host cannot make a guest of this shape.

    Raises:
        InvalidInput: the same trait is required and forbidden; a shape that cannot be.
    """
    required = set(needed_traits(shape_of(flavor, image)))
    forbidden: set[str] = set()
    for key, value in flavor.extra_specs.items():
        match = _TRAIT.match(key)
        if match is not None and value in ("required", "forbidden"):
            (required if value == "required" else forbidden).add(match["name"])
    for key, value in image.properties.items():
        match = _TRAIT.match(key)
        if match is not None and value == "required":
            required.add(match["name"])
    if required & forbidden:
        names = ", ".join(sorted(required & forbidden))
        raise InvalidInput(f"Traits are both required and forbidden by flavor and image: {names}.")
    return Traits(frozenset(required), frozenset(forbidden))
