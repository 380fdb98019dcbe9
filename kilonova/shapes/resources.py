"""What a server needs of a host: amounts of resource classes and traits, read from flavor and image."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.network import PortNeed
from kilonova.shapes.shape import shape_of
from kilonova.shapes.traits import needed_traits
from kilonova.shapes.trees import ResourceGroup

PORT_GROUP = "port-"
"""The names of groups that ports ask for begin with this."""
_UUID_LENGTH = 36
_AMOUNT = re.compile(r"resources(?P<group>[a-zA-Z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")
_TRAIT = re.compile(r"trait(?P<group>[a-zA-Z0-9_-]{0,64}):(?P<name>[A-Z0-9_]+)$")


class Traits(msgspec.Struct, frozen=True):
    """Traits that a host must have, and must not have."""

    required: frozenset[str]
    forbidden: frozenset[str]


def is_volume_backed(block_devices: Iterable[BlockDevice]) -> bool:
    """Whether the server boots from a volume, so that its root disk takes nothing of the host."""
    return any(device.boot_index == 0 and device.destination_type == "volume" for device in block_devices)


def local_gib(flavor: Flavor, *, volume_backed: bool) -> int:
    """What the disks of a server take of its host, in GiB; swap counts in whole ones."""
    root_gib = 0 if volume_backed else flavor.root_gib
    return root_gib + flavor.ephemeral_gib + -(-flavor.swap_mib // 1024)


def resources_of(
    flavor: Flavor, image: Image | None = None, *, volume_backed: bool = False
) -> dict[str, int]:
    """Amounts by resource class that a server of this flavor takes of its host; none of them is 0.

    What its groups ask for is part of it, whichever provider of the host gives it.

    Args and raises as of `own_resources_of`.
    """
    amounts = own_resources_of(flavor, image, volume_backed=volume_backed)
    for group in groups_of(flavor):
        for name, amount in group.resources.items():
            amounts[name] = amounts.get(name, 0) + amount
    return amounts


def own_resources_of(
    flavor: Flavor, image: Image | None = None, *, volume_backed: bool = False
) -> dict[str, int]:
    """The same without what its groups ask for.

    `resources:CLASS` in the extra specs replaces what the flavor says of that class; 0 takes it away.

    Args:
        image: its properties may ask for dedicated CPUs too.
        volume_backed: the root disk is a volume.

    Raises:
        InvalidInput: an amount that is not a whole number, or is negative; a shape that cannot be.
    """
    shape = shape_of(flavor, image)
    dedicated = len(shape.cpu.dedicated)
    own_emulator = 1 if shape.cpu.emulator_threads == "isolate" else 0
    amounts = {
        "VCPU": flavor.vcpus - dedicated,
        "PCPU": dedicated + own_emulator,
        "MEMORY_MB": flavor.memory_mib,
        "DISK_GB": local_gib(flavor, volume_backed=volume_backed),
        "MEM_ENCRYPTION_CONTEXT": 1 if shape.memory.encryption is not None else 0,
    }
    amounts |= _amounts(flavor, "")
    return {name: amount for name, amount in amounts.items() if amount}


def _amounts(flavor: Flavor, group: str) -> dict[str, int]:
    """What the extra specs ask for in a group, "" for what is in none."""
    found: dict[str, int] = {}
    for key, value in flavor.extra_specs.items():
        match = _AMOUNT.match(key)
        if match is not None and match["group"] == group:
            if not value.isdecimal():
                raise InvalidInput(f"Extra spec {key} must be a whole number, not {value!r}.")
            found[match["name"]] = int(value)
    return found


def groups_of(flavor: Flavor) -> tuple[ResourceGroup, ...]:
    """The groups that ask for resources, each of one provider. Raises InvalidInput: an amount that is no number."""
    found = []
    for suffix in sorted(granular_groups(flavor.extra_specs)):
        amounts = {name: amount for name, amount in _amounts(flavor, suffix).items() if amount}
        if amounts:
            required, forbidden = _traits(flavor, {suffix})
            found.append(ResourceGroup(
                suffix=suffix, resources=amounts, required=frozenset(required), forbidden=frozenset(forbidden)
            ))
    return tuple(found)


def groups_of_ports(needs: Iterable[PortNeed]) -> tuple[ResourceGroup, ...]:
    """What ports ask for, each of one provider."""
    return tuple(
        ResourceGroup(
            suffix=port_group(need.port_id, group.name), resources=group.resources, required=frozenset(group.traits)
        )
        for need in needs for group in need.groups
    )


def port_group(port_id: str, name: str) -> str:
    """The suffix of a group that a port asks for."""
    return f"{PORT_GROUP}{port_id}-{name}"


def served_ports(providers: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Who serves ports, by port and name of the group. providers: who serves each group of a server, by suffix."""
    found: dict[str, dict[str, str]] = {}
    for suffix, provider in providers.items():
        port_id = port_of_group(suffix)
        if port_id is not None:
            found.setdefault(port_id, {})[suffix.removeprefix(port_group(port_id, ""))] = provider
    return found


def port_of_group(suffix: str) -> str | None:
    """The port that asks for a group, None if it is no port that does."""
    return suffix.removeprefix(PORT_GROUP)[:_UUID_LENGTH] if suffix.startswith(PORT_GROUP) else None


def isolates(flavor: Flavor) -> bool:
    """Whether no two groups may be served by the same provider."""
    return flavor.extra_specs.get("group_policy") == "isolate"


def granular_groups(extra_specs: Mapping[str, str]) -> frozenset[str]:
    """The suffixes of the groups that are asked for beside the one without a suffix."""
    matches = (pattern.match(key) for key in extra_specs for pattern in (_AMOUNT, _TRAIT))
    return frozenset(match["group"] for match in matches if match is not None and match["group"])


def traits_of(flavor: Flavor, image: Image) -> Traits:
    """Traits that flavor (`trait:NAME` = required or forbidden) and image (`trait:NAME` = required) ask for, and those
    without which a host cannot make a guest of this shape. Those of a group that asks for resources are its own.

    Raises:
        InvalidInput: the same trait is required and forbidden; a shape that cannot be.
    """
    granular = granular_groups(flavor.extra_specs) - {group.suffix for group in groups_of(flavor)}
    required, forbidden = _traits(flavor, {"", *granular})
    required |= set(needed_traits(shape_of(flavor, image)))
    for key, value in image.properties.items():
        match = _TRAIT.match(key)
        if match is not None and value == "required":
            required.add(match["name"])
    if required & forbidden:
        names = ", ".join(sorted(required & forbidden))
        raise InvalidInput(f"Traits are both required and forbidden by flavor and image: {names}.")
    return Traits(frozenset(required), frozenset(forbidden))


def _traits(flavor: Flavor, groups: Collection[str]) -> tuple[set[str], set[str]]:
    """Required and forbidden traits in some groups of the extra specs."""
    found: dict[str, set[str]] = {"required": set(), "forbidden": set()}
    for key, value in flavor.extra_specs.items():
        match = _TRAIT.match(key)
        if match is not None and match["group"] in groups and value in found:
            found[value].add(match["name"])
    return found["required"], found["forbidden"]
