"""Tempest, unpatched, against a fresh `kilonova up`: nothing fails, and nothing is left out without a reason.

With real guests under pure emulation the whole selection takes an hour or so, so a part of it runs unless
`KILONOVA_TEMPEST=all`. `KILONOVA_TEMPEST_TESTS` gives a selection of one's own, by a regular expression.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import tempest_runs
from clouds import RealCloud, real_cloud
from tempest_cloud import Guests, Settings, write_configuration

from kilonova import guestimage

WHOLE = os.environ.get("KILONOVA_TEMPEST") == "all"
OWN_SELECTION = os.environ.get("KILONOVA_TEMPEST_TESTS")
PART = (
    r"^tempest\.(scenario\.test_server_basic_ops|api\.compute\.servers\.(test_attach_interfaces|test_server_personality))\."
)
"""With real guests, unless more is asked for: logging in by floating IPs, metadata, files, interfaces."""


def check(driver: str, results: tempest_runs.Results, selection: str) -> None:
    """Spec: TMP-10, TMP-11, TMP-13."""
    failures = "\n\n".join(f"{name}\n{details[-3000:]}" for name, details in sorted(results.failed.items()))
    assert not results.failed, f"{len(results.failed)} failed, {len(results.passed)} passed:\n{failures}"
    assert results.passed
    known = {name for name, why in tempest_runs.omitted(driver).items() if not why.ours}
    unexplained = {name: why for name, why in results.skipped.items() if name not in known}
    assert unexplained == {}, f"{tempest_runs.PAGE.name} gives no reason for these skips"
    expected = {name for name in known if re.search(selection, f"{name}.")}
    assert expected - results.skipped.keys() == set(), f"{tempest_runs.PAGE.name} explains skips that do not happen"
    if selection == tempest_runs.SELECTION:
        assert (len(results.passed), len(results.skipped)) == tempest_runs.counted(driver)


def check_nothing_is_left(cloud: RealCloud) -> None:
    """Spec: TMP-07."""
    assert cloud.servers() == []
    assert cloud.differences() == []
    networks = cloud.get("/network/v2.0/networks")["networks"]
    assert sorted(network["name"] for network in networks) == ["external", "private"]
    assert cloud.get("/network/v2.0/floatingips")["floatingips"] == []
    assert cloud.get("/network/v2.0/routers")["routers"] == []
    assert {image["name"] for image in cloud.get("/image/v2/images")["images"]} == {"first", "second", "certified"}


def run(cloud: RealCloud, programs: Path, guests: Guests, directory: Path, selection: str, own: Settings, *,
        workers: int, limit: float) -> tempest_runs.Results:
    configuration = write_configuration(cloud, guests, directory, own)
    assert tempest_runs.complaints(programs, configuration) == ""
    left_out = {name for name, why in tempest_runs.omitted(cloud.driver).items() if why.ours}
    return tempest_runs.run(programs, configuration, selection, left_out, workers, limit)


@pytest.mark.timeout(1800)
@pytest.mark.spec("TMP-01", "TMP-02", "TMP-03", "TMP-05", "TMP-06", "TMP-07", "TMP-09", "TMP-10", "TMP-11", "TMP-13")
def test_with_two_simulated_hosts(tempest_programs: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    guests = Guests(image, "raw", 64, ssh=False)
    selection = OWN_SELECTION or tempest_runs.SELECTION
    own: Settings = {"compute": {"min_compute_nodes": 2, "build_timeout": 60}}
    with real_cloud("fake", "--hosts", "2") as cloud:
        results = run(cloud, tempest_programs, guests, tmp_path, selection, own, workers=4, limit=1500)
        check("fake", results, selection)
        check_nothing_is_left(cloud)


def test_each_omission_has_a_reason() -> None:
    for driver in ("fake", "libvirt"):
        used = {omission.reason for omission in tempest_runs.omitted(driver).values()}
        assert used - tempest_runs.reasons() == set()


@pytest.mark.timeout(7200)
@pytest.mark.spec("TMP-04", "TMP-10")
def test_with_real_guests(tempest_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILONOVA__SCHEDULER__INITIAL_CPU_ALLOCATION_RATIO", "64")
    monkeypatch.setenv("KILONOVA__SCHEDULER__INITIAL_DISK_ALLOCATION_RATIO", "8")
    guests = Guests(guestimage.build(tmp_path / "guest.qcow2"), "qcow2", 128, ssh=True)
    selection = OWN_SELECTION or (tempest_runs.SELECTION if WHOLE else PART)
    own: Settings = {"compute-feature-enabled": {"ide_bus": False}}
    with real_cloud("libvirt") as cloud:
        results = run(cloud, tempest_programs, guests, tmp_path, selection, own, workers=2, limit=7000)
        check("libvirt", results, selection)
        check_nothing_is_left(cloud)
