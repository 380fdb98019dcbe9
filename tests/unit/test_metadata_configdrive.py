"""The config drive as a guest sees it: read back through each of its kinds of names."""

from __future__ import annotations

import base64
import io
import json
import stat
from pathlib import Path

import msgspec
import pycdlib
import pytest

from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import InjectedFile
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata import openstack
from kilonova.metadata.configdrive import build_iso

METADATA = GuestMetadata(
    instance_uuid="6b1f2f0e-1111-4222-8333-444455556666",
    name="one",
    hostname="one",
    project_id="project",
    flavor_name="m1.small",
    user_data="I2Nsb3VkLWNvbmZpZwo=",
    keys={"mine": "ssh-ed25519 AAAA"},
    admin_password="very-secret",
    files=(InjectedFile("/etc/motd", "aGVsbG8="), InjectedFile("/opt/größe", "AP8=")),
)


def read(path: Path, names: str) -> dict[str, bytes]:
    """Every file of the image. names: `rr_path` as Linux reads it, `joliet_path` as Windows does."""
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    assert iso.pvd.volume_identifier.rstrip() == b"config-2"
    files = {}
    for directory, _, members in iso.walk(**{names: "/"}):
        for member in members:
            place = f"{directory.rstrip('/')}/{member}"
            content = io.BytesIO()
            iso.get_file_from_iso_fp(content, **{names: place})
            files[place] = content.getvalue()
    iso.close()
    return files


@pytest.mark.parametrize("names", ["rr_path", "joliet_path"])
def test_drive_holds_every_version(tmp_path: Path, names: str) -> None:
    build_iso(METADATA, tmp_path / "drive.iso")
    files = read(tmp_path / "drive.iso", names)
    for version in openstack.VERSIONS:
        listed = {name for name in openstack.documents(METADATA, version) if name != "password"}
        prefix = f"/openstack/{version}/"
        assert {place.removeprefix(prefix) for place in files if place.startswith(prefix)} == listed
    assert files["/openstack/latest/user_data"] == b"#cloud-config\n"
    assert files["/ec2/latest/user-data"] == b"#cloud-config\n"
    assert json.loads(files["/ec2/2009-04-04/meta-data.json"])["instance-id"] == "i-6b1f2f0e111142228"


def test_injected_files_are_listed_and_present(tmp_path: Path) -> None:
    build_iso(METADATA, tmp_path / "drive.iso")
    files = read(tmp_path / "drive.iso", "rr_path")
    listed = json.loads(files["/openstack/latest/meta_data.json"])["files"]
    assert [one["path"] for one in listed] == ["/etc/motd", "/opt/größe"]
    assert [files[f"/openstack{one['content_path']}"] for one in listed] == [b"hello", b"\x00\xff"]
    assert listed[0]["content_path"] == "/content/0000"


def test_drive_carries_the_password_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    build_iso(METADATA, tmp_path / "drive.iso")
    document = json.loads(read(tmp_path / "drive.iso", "rr_path")["/openstack/2012-08-10/meta_data.json"])
    assert document["admin_pass"] == "very-secret"
    assert stat.S_IMODE((tmp_path / "drive.iso").stat().st_mode) == 0o600


def test_without_password_and_files_nothing_is_said_of_them(tmp_path: Path) -> None:
    bare = msgspec.structs.replace(METADATA, admin_password="", files=(), user_data=None)
    build_iso(bare, tmp_path / "drive.iso")
    files = read(tmp_path / "drive.iso", "rr_path")
    document = json.loads(files["/openstack/latest/meta_data.json"])
    assert {"admin_pass", "files"}.isdisjoint(document)
    assert not [place for place in files if "content" in place or "user" in place]


@pytest.mark.spec("BLD-02")
def test_drive_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "drive.iso"
    build_iso(METADATA, target)
    before = target.read_bytes()
    broken = msgspec.structs.replace(METADATA, files=(InjectedFile("/etc/motd", "not base64!"),))
    with pytest.raises(InvalidInput, match="/etc/motd") as refused:
        build_iso(broken, target)
    assert "not base64!" not in str(refused.value)
    assert target.read_bytes() == before
    build_iso(msgspec.structs.replace(METADATA, hostname="two"), target)
    assert json.loads(read(target, "rr_path")["/openstack/latest/meta_data.json"])["hostname"] == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["drive.iso"]


def test_large_user_data_survives(tmp_path: Path) -> None:
    content = bytes(range(256)) * 190
    large = msgspec.structs.replace(METADATA, user_data=base64.b64encode(content).decode())
    build_iso(large, tmp_path / "drive.iso")
    assert read(tmp_path / "drive.iso", "rr_path")["/openstack/latest/user_data"] == content
