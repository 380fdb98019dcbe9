"""What a flavor asks of accelerators: the groups of a device profile, and the requests that come of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor

DEVICE_PROFILE = "accel:device_profile"
"""Extra spec of flavors with accelerators: the name of a device profile. Spec: EMP-09."""

_KEY = re.compile(r"(?P<kind>resources|trait):(?P<name>[A-Z0-9_]+)$")
_SUFFIX = "_device_profile_"


class DeviceGroup(msgspec.Struct, frozen=True, kw_only=True):
    """A group of a device profile: all of it comes from one resource provider.

    Args:
        resources: amounts by resource class. required: traits that its provider must have.
    """

    resources: dict[str, int]
    required: tuple[str, ...] = ()


def profile_of(flavor: Flavor) -> str | None:
    """The name of the device profile that a flavor asks for."""
    return flavor.extra_specs.get(DEVICE_PROFILE) or None


def with_groups(flavor: Flavor, groups: Sequence[Mapping[str, str]]) -> Flavor:
    """The flavor as hosts are chosen by it: with the groups of its device profile, each under a suffix of its own.

    Args:
        groups: as the accelerator service tells them. What only that service understands is left out.

    Raises:
        InvalidInput: the profile asks for no device, or for an amount that is not a whole number.
    """
    added: dict[str, str] = {}
    for number, group in enumerate(groups):
        for key, value in group.items():
            match = _KEY.match(key)
            if match is not None:
                added[f"{match['kind']}{_SUFFIX}{number}:{match['name']}"] = str(value)
    changed = msgspec.structs.replace(flavor, extra_specs=flavor.extra_specs | added)
    if not any(sum(group.resources.values()) for group in groups_of(changed).values()):
        raise InvalidInput(f"Device profile {profile_of(flavor)} asks for no device.")
    return changed


def groups_of(flavor: Flavor) -> dict[int, DeviceGroup]:
    """The groups that `with_groups` has added, by number.

    Raises:
        InvalidInput: an amount is not a whole number.
    """
    found: dict[int, DeviceGroup] = {}
    for key, value in sorted(flavor.extra_specs.items()):
        kind, _, rest = key.partition(_SUFFIX)
        number, _, name = rest.partition(":")
        if not number.isdecimal():
            continue
        group = found.get(int(number)) or DeviceGroup(resources={})
        if kind == "resources":
            if not value.isdecimal():
                raise InvalidInput(f"Device profile {profile_of(flavor)} asks for {value!r} of {name}.")
            group = msgspec.structs.replace(group, resources=group.resources | {name: int(value)})
        elif value == "required":
            group = msgspec.structs.replace(group, required=(*group.required, name))
        found[int(number)] = group
    return found


def requests_expected(flavor: Flavor) -> dict[int, int]:
    """How many accelerator requests each group leads to: one for each device. Spec: BLD-124."""
    return {number: sum(group.resources.values()) for number, group in groups_of(flavor).items()}
