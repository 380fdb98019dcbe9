"""The volume service of a running installation: its place, its catalogue entries, and what lasts when it is killed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for

pytestmark = pytest.mark.servers

ASKS_ANOTHER = """
[volume_service]
endpoint = "{root}/volume"
auth_url = "{root}/identity/v3"
username = "compute"
password_file = "{password}"
"""
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


@pytest.mark.spec("VOL-17", "VOL-19", "VOL-36", "VOL-39")
def test_servers_take_volumes_of_a_volume_service_elsewhere(cloud: RealCloud, tmp_path: Path) -> None:
    """The Block Storage API of one installation is the Cinder of another."""
    password = tmp_path / "password"
    password.write_text("s3cret")
    cloud.openstack("user", "create", "--password", "s3cret", "compute")
    for role in ("admin", "service"):
        cloud.openstack("role", "add", "--user", "compute", "--project", "service", role)
    kept = make(cloud, name="elsewhere")["id"]
    options = ASKS_ANOTHER.format(root=f"http://127.0.0.1:{cloud.port}", password=password)
    with real_cloud("fake", configuration=options) as other:
        server = make_server(other)
        attachments = f"/compute/v2.1/servers/{server}/os-volume_attachments"
        answer = other.call("POST", attachments, {"volumeAttachment": {"volumeId": kept}}, version="2.89")
        assert answer.status_code == 200, answer.text
        (attached,) = volume(cloud, kept, "in-use")["attachments"]
        assert (attached["server_id"], attached["device"]) == (server, "/dev/vdb")
        assert other.differences() == []
        assert other.call("DELETE", f"{attachments}/{kept}").status_code == 202
        volume(cloud, kept, "available")
        wait_for("detach", lambda: not other.get(attachments)["volumeAttachments"], 60)
    with pytest.raises(AssertionError, match="one volume service"), real_cloud("fake", configuration=POOL + options):
        pass


def make_server(cloud: RealCloud) -> str:
    """A server without interfaces."""
    file = cloud.directory / "image.raw"
    file.write_bytes(bytes(1 << 20))
    body = {"name": "s", "imageRef": cloud.upload(file, disk_format="raw"), "flavorRef": "1", "networks": "none"}
    server: str = cloud.call("POST", "/compute/v2.1/servers", {"server": body}, version="2.37").json()["server"]["id"]
    wait_for("server", lambda: cloud.get(f"/compute/v2.1/servers/{server}")["server"]["status"] == "ACTIVE", 60)
    return server


def test_nothing_of_a_pool_that_was_configured_once_outlives_the_installation(cloud: RealCloud) -> None:
    """Its daemon serves a volume, and so goes on when the service stops."""
    made = make(cloud)["id"]
    daemon = int((cloud.directory / "volumes/fast/daemon/daemon.pid").read_text())
    attachment = {"volume_uuid": made, "instance_uuid": made, "connector": {"host": "h"}}
    answer = cloud.call("POST", "/volume/v3/attachments", {"attachment": attachment}, headers=VERSION)
    assert answer.status_code == 200
    cloud.kilonova("down")
    assert Path(f"/proc/{daemon}").exists()
    (cloud.directory / "kilonova.toml").write_text(POOL.replace("fast", "other"))
    cloud.purge()
    wait_for("the end of the daemon", lambda: not Path(f"/proc/{daemon}").exists(), 10)
