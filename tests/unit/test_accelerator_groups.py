"""What a device profile asks of hosts."""

from __future__ import annotations

import pytest

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.accelerators import DEVICE_PROFILE, groups_of, requests_expected, with_groups
from kilonova.shapes.resources import resources_of, traits_of
from kilonova.shapes.trees import ResourceGroup

FLAVOR = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1, extra_specs={DEVICE_PROFILE: "two"})
SERVER = "44444444-4444-4444-8444-444444444444"
GROUPS = [
    {"resources:FPGA": "2", "trait:CUSTOM_FAST": "required", "trait:CUSTOM_OLD": "forbidden", "accel:function_id": "x"},
    {"resources:FPGA": "1", "resources:CUSTOM_X": "1"},
]


def test_the_groups_of_a_profile_are_asked_of_hosts() -> None:
    asked = with_groups(FLAVOR, GROUPS)
    assert FLAVOR.extra_specs == {DEVICE_PROFILE: "two"}
    assert resources_of(asked) == {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1, "FPGA": 3, "CUSTOM_X": 1}
    traits = traits_of(asked, Image(id=SERVER))
    assert ("CUSTOM_FAST" in traits.required, traits.forbidden) == (False, frozenset())  # the host need not have them
    assert groups_of(asked) == {
        0: ResourceGroup(
            suffix="_device_profile_0", resources={"FPGA": 2}, required=frozenset({"CUSTOM_FAST"}),
            forbidden=frozenset({"CUSTOM_OLD"}),
        ),
        1: ResourceGroup(suffix="_device_profile_1", resources={"FPGA": 1, "CUSTOM_X": 1}),
    }
    assert requests_expected(asked) == {0: 2, 1: 2}
    assert groups_of(FLAVOR) == {}


@pytest.mark.parametrize("groups", [[], [{"accel:x": "1"}], [{"resources:FPGA": "0"}], [{"resources:FPGA": "many"}]])
def test_a_profile_without_devices_is_refused(groups: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidInput, match="Device profile two asks for"):
        with_groups(FLAVOR, groups)
