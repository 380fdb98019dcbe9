"""Tempest, unpatched, against a fresh `kilonova up`: nothing fails, and nothing is left out without a reason.

With real guests under pure emulation the whole selection takes an hour or so, so a part of it runs unless
`KILONOVA_TEMPEST=all`. `KILONOVA_TEMPEST_TESTS` gives a selection of one's own, by a regular expression.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import tempest_runs
from clouds import RealCloud, real_cloud
from tempest_cloud import MULTIATTACH, POOLS, VOLUMES, Guests, Settings, register_limits, write_configuration

from kilonova import guestimage

WHOLE = os.environ.get("KILONOVA_TEMPEST") == "all"
OWN_SELECTION = os.environ.get("KILONOVA_TEMPEST_TESTS")
PART = (
    r"^tempest\.(scenario\.test_server_basic_ops|api\.compute\.servers\.(test_attach_interfaces|"
    r"test_server_personality|test_server_actions\.ServerActionsTestJSON\.test_change_server_password))[.[]"
)
"""With real guests, unless more is asked for: logging in by floating IPs, metadata, files, interfaces, passwords."""
VOLUMES_PART = (
    "tempest.scenario.test_volume_boot_pattern.TestVolumeBootPattern.test_boot_server_from_encrypted_volume_luks",
    "tempest.scenario.test_volume_boot_pattern.TestVolumeBootPattern.test_volume_boot_pattern",
    "tempest.scenario.test_volume_migrate_attached.TestVolumeMigrateRetypeAttached.test_volume_retype_attached",
)
"""With real guests and volumes, unless more is asked for: booting from a volume, from a copy of its snapshot and from
an encrypted one, and moving a volume while its guest runs from it."""


POOLS_TABLE = "".join(f'[[volume.pool]]\nname = "{pool}"\n' for pool in POOLS)
"""The configuration of an installation with storage pools."""
NO_POOL = "[volume]\ndefault_pool = false\n"
"""Of one that has no volumes."""
LIMITS = {
    "nova": {"servers": 10, "class:VCPU": 20, "class:MEMORY_MB": 51200, "class:DISK_GB": 100},
    "glance": dict.fromkeys(
        ("image_size_total", "image_stage_total", "image_count_total", "image_count_uploading"), 1000
    ),
}
"""Unified limits of every project, by service, where they hold."""


def check(name: str, results: tempest_runs.Results, selection: str, *, whole: bool) -> None:
    """Whether a run went as the page says of the one of this name. Spec: TMP-10, TMP-11, TMP-13."""
    failures = "\n\n".join(f"{test}\n{details[-3000:]}" for test, details in sorted(results.failed.items()))
    assert not results.failed, f"{len(results.failed)} failed, {len(results.passed)} passed:\n{failures}"
    assert results.passed
    known = {test for test, why in tempest_runs.omitted(name).items() if not why.ours}
    unexplained = {test: why for test, why in results.skipped.items() if test not in known}
    assert unexplained == {}, f"{tempest_runs.PAGE.name} gives no reason for these skips"
    expected = {test for test in known if re.search(selection, f"{test}.")}
    assert expected - results.skipped.keys() == set(), f"{tempest_runs.PAGE.name} explains skips that do not happen"
    if whole:
        assert (len(results.passed), len(results.skipped)) == tempest_runs.counted(name)


def without_success(names: Iterable[str], results: tempest_runs.Results) -> list[str]:
    """Those of the tests and classes of which nothing has passed."""
    return [name for name in names if not any(f"{test}.".startswith(f"{name}.") for test in results.passed)]


def check_nothing_is_left(cloud: RealCloud) -> None:
    """Spec: TMP-07."""
    assert cloud.servers() == []
    assert cloud.differences() == []
    networks = cloud.get("/network/v2.0/networks")["networks"]
    assert sorted(network["name"] for network in networks) == ["external", "private"]
    assert cloud.get("/network/v2.0/floatingips")["floatingips"] == []
    assert cloud.get("/network/v2.0/routers")["routers"] == []
    assert {image["name"] for image in cloud.get("/image/v2/images")["images"]} == {"first", "second", "certified"}


def check_no_volumes_are_left(cloud: RealCloud) -> None:
    """Spec: TMP-07."""
    for resource in ("volumes", "snapshots", "backups"):
        assert cloud.get(f"/volume/v3/{resource}?all_tenants=1")[resource] == []
    types = cloud.get("/volume/v3/types?is_public=None")["volume_types"]
    assert {one["name"] for one in types} == {"__DEFAULT__", MULTIATTACH}


def run(name: str, cloud: RealCloud, programs: Path, guests: Guests, directory: Path, selection: str, own: Settings, *,
        workers: int, limit: float) -> tempest_runs.Results:
    """The run of this name, without what the page leaves out of it."""
    configuration = write_configuration(cloud, guests, directory, own)
    assert tempest_runs.complaints(programs, configuration) == ""
    left_out = {name for name, why in tempest_runs.omitted(name).items() if why.ours}
    return tempest_runs.run(programs, configuration, selection, left_out, workers, limit)


@pytest.mark.timeout(1800)
@pytest.mark.spec(
    "TMP-01", "TMP-02", "TMP-03", "TMP-05", "TMP-06", "TMP-07", "TMP-09", "TMP-10", "TMP-11", "TMP-12", "TMP-13",
)
def test_with_two_simulated_hosts(
    tempest_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option, value in {"INTERFACE": "eth0", "EGRESS_KBPS": "1000000", "INGRESS_KBPS": "1000000"}.items():
        monkeypatch.setenv(f"KILONOVA__AGENT__PHYSICAL_NETWORKS__PHYSNET0__{option}", value)
    monkeypatch.setenv("KILONOVA__AGENT__NETWORK_KPPS", "1000000")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    guests = Guests(image, "raw", 64, ssh=False)
    selection = OWN_SELECTION or tempest_runs.SELECTION
    own: Settings = {
        "compute": {"min_compute_nodes": 2, "build_timeout": 60},
        "network-feature-enabled": {"qos_placement_physnet": "physnet0", "qos_min_bw_and_pps": True},
    }
    with real_cloud("fake", "--hosts", "2") as cloud:
        results = run("fake", cloud, tempest_programs, guests, tmp_path, selection, own, workers=4, limit=1500)
        check("fake", results, selection, whole=OWN_SELECTION is None)
        if OWN_SELECTION is None:
            assert without_success(tempest_runs.of_reason("libvirt", "host"), results) == []
        check_nothing_is_left(cloud)


def test_each_omission_has_a_reason() -> None:
    for name in ("fake", "libvirt", "volumes", "attached"):
        used = {omission.reason for omission in tempest_runs.omitted(name).values()}
        assert used - tempest_runs.reasons() == set()


@pytest.fixture
def real_guests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guests:
    """Guests that can be logged into, on a host that takes more of them than it has room for."""
    monkeypatch.setenv("KILONOVA__SCHEDULER__INITIAL_CPU_ALLOCATION_RATIO", "64")
    monkeypatch.setenv("KILONOVA__SCHEDULER__INITIAL_DISK_ALLOCATION_RATIO", "8")
    return Guests(guestimage.build(tmp_path / "guest.qcow2"), "qcow2", 128, ssh=True)


@pytest.mark.timeout(7200)
@pytest.mark.spec("TMP-04", "TMP-10")
def test_with_real_guests(tempest_programs: Path, tmp_path: Path, real_guests: Guests) -> None:
    selection = OWN_SELECTION or (tempest_runs.SELECTION if WHOLE else PART)
    own: Settings = {"compute-feature-enabled": {"ide_bus": False}}
    with real_cloud("libvirt", configuration=NO_POOL) as cloud:
        results = run("libvirt", cloud, tempest_programs, real_guests, tmp_path, selection, own, workers=2, limit=7000)
        check("libvirt", results, selection, whole=selection == tempest_runs.SELECTION)
        check_nothing_is_left(cloud)


@pytest.mark.timeout(5400)
@pytest.mark.spec("TMP-04", "TMP-07", "TMP-10")
def test_with_volumes_of_real_guests(tempest_programs: Path, tmp_path: Path, real_guests: Guests) -> None:
    names = tempest_runs.of_reason("libvirt", "attached") if WHOLE or OWN_SELECTION else VOLUMES_PART
    names = [name for name in names if re.search(OWN_SELECTION or "", name)]
    if not names:
        return  # not what was selected
    selection = f"^({'|'.join(map(re.escape, names))})[.[]"
    with real_cloud("libvirt", configuration=POOLS_TABLE) as cloud:
        results = run("attached", cloud, tempest_programs, real_guests, tmp_path, selection, VOLUMES, workers=2,
                      limit=5200)
        check("attached", results, selection, whole=WHOLE and OWN_SELECTION is None)
        assert without_success(names, results) == []
        check_nothing_is_left(cloud)
        check_no_volumes_are_left(cloud)


@pytest.mark.timeout(1200)
@pytest.mark.spec("TMP-10", "EMI-25")
def test_with_other_settings(tempest_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the settings of the other runs rule out. Its guests have a screen, and nothing to boot."""
    names = [name for name in tempest_runs.of_reason("libvirt", "settings") if re.search(OWN_SELECTION or "", name)]
    if not names:
        return  # not what was selected
    monkeypatch.setenv("KILONOVA__API__QUOTA_LIMITS", "identity")
    monkeypatch.setenv("KILONOVA__CONSOLES__SPICE_ENABLED", "true")
    monkeypatch.setenv("KILONOVA__CONSOLES__SPICE_DIRECT_PROXY_BASE_URL", "http://127.0.0.1/direct")
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    guests = Guests(image, "raw", 64, ssh=False)
    selection = f"^({'|'.join(map(re.escape, names))})[.[]"
    own: Settings = {
        "compute": {"fixed_network_name": "private"},
        "compute-feature-enabled": {"unified_limits": True, "spice_console": True},
    }
    with real_cloud("libvirt", configuration=NO_POOL) as cloud:
        register_limits(cloud, LIMITS)
        results = run("settings", cloud, tempest_programs, guests, tmp_path, selection, own, workers=2, limit=900)
        check("settings", results, selection, whole=OWN_SELECTION is None)
        assert without_success(names, results) == []
        check_nothing_is_left(cloud)
        assert cloud.get("/identity/v3/limits")["limits"] == []


@pytest.mark.timeout(1500)
@pytest.mark.spec("TMP-02", "TMP-06", "TMP-07", "TMP-10")
def test_with_storage_pools(tempest_programs: Path, tmp_path: Path) -> None:
    """Simulated guests with volumes of real pools, and all of the volume API."""
    names = [tempest_runs.VOLUME_API, *tempest_runs.of_reason("fake", "pools")]
    names = [name for name in names if re.search(OWN_SELECTION or "", name)]
    if not names:
        return  # not what was selected
    image = tmp_path / "disk.img"
    image.write_bytes(b"disk" * (1 << 18))
    selection = f"^({'|'.join(map(re.escape, names))})[.[]"
    with real_cloud("fake", configuration=POOLS_TABLE) as cloud:
        guests = Guests(image, "raw", 64, ssh=False)
        results = run("volumes", cloud, tempest_programs, guests, tmp_path, selection, VOLUMES, workers=4, limit=1100)
        check("volumes", results, selection, whole=OWN_SELECTION is None)
        assert without_success(names, results) == []
        check_nothing_is_left(cloud)
        check_no_volumes_are_left(cloud)
