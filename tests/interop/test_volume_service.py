"""The volume service of a running installation: its place, its catalogue entries, and what lasts when it is killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import RealCloud, wait_for

pytestmark = pytest.mark.servers

POOL = '[[volume.pool]]\nname = "fast"\n'
VERSION = {"OpenStack-API-Version": "volume 3.71"}


@pytest.fixture
def cloud() -> Iterator[RealCloud]:
    cloud = RealCloud(Path(tempfile.mkdtemp(prefix="kilonova-test-")), "fake")
    (cloud.directory / "kilonova.toml").write_text(POOL)
    try:
        cloud.up()
        yield cloud
    finally:
        cloud.purge()
        shutil.rmtree(cloud.directory, ignore_errors=True)


def volume(cloud: RealCloud, volume_id: str, status: str) -> dict[str, Any]:
    """A volume, when it has a status."""
    def look() -> Any:
        found = cloud.get(f"/volume/v3/volumes/{volume_id}", headers=VERSION)["volume"]
        return found if found["status"] == status else None

    found: dict[str, Any] = wait_for(f"volume {volume_id} {status}", look, 60)
    return found


def make(cloud: RealCloud, **body: Any) -> dict[str, Any]:
    answer = cloud.call("POST", "/volume/v3/volumes", {"volume": {"size": 1} | body}, headers=VERSION)
    assert answer.status_code == 202, answer.text
    return volume(cloud, answer.json()["volume"]["id"], "available")


def catalogue(cloud: RealCloud) -> dict[str, set[str]]:
    """The paths of each service, by its type."""
    entries = cloud.get("/identity/v3/auth/catalog")["catalog"]
    root = f"http://127.0.0.1:{cloud.port}"
    return {one["type"]: {end["url"].removeprefix(root) for end in one["endpoints"]} for one in entries}


@pytest.mark.spec("EMI-18", "EMI-21")
def test_volumes_outlive_the_service(cloud: RealCloud) -> None:
    found = catalogue(cloud)
    assert found["block-storage"] == found["volumev3"] == {"/volume/v3"}
    assert not {"volume", "volumev2"} & found.keys()
    first = make(cloud, name="first")
    assert first["os-vol-host-attr:host"].endswith("@fast#fast")
    pool = cloud.directory / "volumes" / "fast" / "volumes"
    assert [path.name for path in pool.glob("*.qcow2")] == [f"{first['id']}.qcow2"]
    cloud.kill()
    cloud.up()
    assert volume(cloud, first["id"], "available")["name"] == "first"
    copy = make(cloud, source_volid=first["id"])
    attachment = {"volume_uuid": copy["id"], "instance_uuid": copy["id"], "connector": {"host": "h"}}
    answer = cloud.call("POST", "/volume/v3/attachments", {"attachment": attachment}, headers=VERSION)
    told = answer.json()["attachment"]["connection_info"]
    assert (told["driver_volume_type"], told["socket"]) == ("nbd", str(cloud.directory / "volumes/fast/nbd.sock"))
    assert Path(told["socket"]).exists()
    path = f"/volume/v3/attachments/{told['attachment_id']}"
    assert cloud.call("DELETE", path, headers=VERSION).status_code == 200
    for one in (first, copy):
        assert cloud.call("DELETE", f"/volume/v3/volumes/{one['id']}").status_code == 202
    wait_for("deletion", lambda: not cloud.get("/volume/v3/volumes")["volumes"], 60)
    assert list(pool.iterdir()) == []
    assert "cinder-scheduler" in cloud.openstack("volume", "service", "list")
    assert cloud.differences() == []


@pytest.mark.spec("EMI-21")
def test_without_pools_there_is_no_volume_service(cloud: RealCloud) -> None:
    assert "block-storage" in catalogue(cloud)
    cloud.kilonova("down")
    (cloud.directory / "kilonova.toml").write_text("")
    cloud.up()
    assert not {"block-storage", "volumev3"} & catalogue(cloud).keys()
    assert cloud.call("GET", "/volume/v3/").status_code == 404
    (cloud.directory / "kilonova.toml").write_text(POOL)
