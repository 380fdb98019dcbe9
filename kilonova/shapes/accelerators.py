"""What a flavor asks of accelerators: the groups of a device profile, and the requests that come of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.shapes import resources
from kilonova.shapes.trees import ResourceGroup

DEVICE_PROFILE = "accel:device_profile"
"""Extra spec of flavors with accelerators: the name of a device profile. Spec: EMP-09."""

_KEY = re.compile(r"(?P<kind>resources|trait):(?P<name>[A-Z0-9_]+)$")
_SUFFIX = "_device_profile_"


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
                if match["kind"] == "resources" and not str(value).isdecimal():
                    raise InvalidInput(f"Device profile {profile_of(flavor)} asks for {value!r} of {match['name']}.")
                added[f"{match['kind']}{_SUFFIX}{number}:{match['name']}"] = str(value)
    changed = msgspec.structs.replace(flavor, extra_specs=flavor.extra_specs | added)
    if not groups_of(changed):
        raise InvalidInput(f"Device profile {profile_of(flavor)} asks for no device.")
    return changed


def groups_of(flavor: Flavor) -> dict[int, ResourceGroup]:
    """The groups that `with_groups` has added and that ask for devices, by number."""
    return {
        int(group.suffix.removeprefix(_SUFFIX)): group
        for group in resources.groups_of(flavor) if group.suffix.startswith(_SUFFIX)
    }


def requests_expected(flavor: Flavor) -> dict[int, int]:
    """How many accelerator requests each group leads to: one for each device. Spec: BLD-124."""
    return {number: sum(group.resources.values()) for number, group in groups_of(flavor).items()}
