"""What a device profile asks of hosts, and which of the providers a server holds it gets its devices of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.placement.granted import providers_of_groups
from kilonova.db.placement.tables import allocations, consumers, provider_traits, providers
from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.accelerators import DEVICE_PROFILE, DeviceGroup, groups_of, requests_expected, with_groups
from kilonova.shapes.resources import resources_of, traits_of

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
    assert ("CUSTOM_FAST" in traits.required, traits.forbidden) == (True, frozenset({"CUSTOM_OLD"}))
    assert groups_of(asked) == {
        0: DeviceGroup(resources={"FPGA": 2}, required=("CUSTOM_FAST",)),
        1: DeviceGroup(resources={"FPGA": 1, "CUSTOM_X": 1}),
    }
    assert requests_expected(asked) == {0: 2, 1: 2}
    assert groups_of(FLAVOR) == {}


@pytest.mark.parametrize("groups", [[], [{"accel:x": "1"}], [{"resources:FPGA": "0"}], [{"resources:FPGA": "many"}]])
def test_a_profile_without_devices_is_refused(groups: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidInput, match="Device profile two asks for"):
        with_groups(FLAVOR, groups)


@pytest.fixture
def connection() -> Iterator[sa.Connection]:
    engine = sa.create_engine("sqlite://")
    api_metadata.create_all(engine)
    with engine.begin() as opened:
        opened.execute(sa.insert(consumers).values(
            uuid=SERVER, project_id="p", user_id="u", type="INSTANCE", generation=1, instance=SERVER
        ))
        yield opened


def hold(conn: sa.Connection, number: int, traits: tuple[str, ...] = (), **held: int) -> str:
    """The server holds something of one more provider."""
    uuid = f"{number}".zfill(8) + "-0000-4000-8000-000000000000"
    conn.execute(sa.insert(providers).values(id=number, uuid=uuid, name=uuid, generation=0, changed=number))
    for name, used in held.items():
        conn.execute(sa.insert(allocations).values(
            consumer=SERVER, provider_id=number, resource_class=name, used=used
        ))
    for trait in traits:
        conn.execute(sa.insert(provider_traits).values(provider_id=number, trait=trait))
    return uuid


def test_each_group_gets_a_provider_that_has_enough(connection: sa.Connection) -> None:
    hold(connection, 1, VCPU=1)
    plain = hold(connection, 2, FPGA=2)
    fast = hold(connection, 3, ("CUSTOM_FAST",), FPGA=2)
    one, quick = DeviceGroup(resources={"FPGA": 2}), DeviceGroup(resources={"FPGA": 2}, required=("CUSTOM_FAST",))
    assert providers_of_groups(connection, SERVER, {0: one, 1: quick}) == {0: plain, 1: fast}
    assert providers_of_groups(connection, SERVER, {0: quick, 1: one}) == {0: fast, 1: plain}
    half = DeviceGroup(resources={"FPGA": 1})
    assert providers_of_groups(connection, SERVER, {0: half, 1: half, 2: quick}) == {0: plain, 1: plain, 2: fast}
    with pytest.raises(KilonovaError, match="does not hold the devices"):
        providers_of_groups(connection, SERVER, {0: quick, 1: quick})
