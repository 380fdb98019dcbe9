"""Volumes of storage pools in real guests, as a user gives, enlarges and takes them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for
from guest_shell import GuestShell

from kilonova import guestimage

POOLS = '[[volume.pool]]\nname = "one"\n\n[[volume.pool]]\nname = "two"\nformat = "raw"\n'
VOLUMES = "/volume/v3/volumes"
SNAPSHOTS = "/volume/v3/snapshots"
VERSION = {"OpenStack-API-Version": "volume 3.71"}
EXTEND = {"os-extend": {"new_size": 2}}
LIMIT = 300.0


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("libvirt", configuration=POOLS) as made:
        yield made


def _server(cloud: RealCloud, image: str, **more: Any) -> tuple[str, GuestShell]:
    body = {"name": "guest", "imageRef": image, "flavorRef": "1", "networks": "none", **more}
    made: str = cloud.call("POST", "/compute/v2.1/servers", {"server": body}, version="2.37").json()["server"]["id"]
    shell = GuestShell(cloud.directory, made)
    wait_for("the guest's agent", shell.answers, LIMIT)
    return made, shell


def _files(cloud: RealCloud, volume: str) -> set[Path]:
    """The files of an encrypted volume, which do not tell what it holds."""
    name = cloud.get(f"{VOLUMES}/{volume}")["volume"]["os-vol-mig-status-attr:name_id"] or volume
    found = {path for path in (cloud.directory / "volumes").rglob(f"{name}.*") if path.is_file()}
    assert found and all(b"known text" not in path.read_bytes() for path in found)
    return found


def _rebuild(cloud: RealCloud, server: str, image: str, shell: GuestShell) -> None:
    """The image is written into the volume that the server boots from."""
    shown, body = f"/compute/v2.1/servers/{server}", {"rebuild": {"imageRef": image}}
    assert cloud.call("POST", f"{shown}/action", body, version="2.93").status_code == 202
    wait_for("the end of the rebuild", lambda: cloud.get(shown)["server"]["status"] != "REBUILD", LIMIT)
    assert cloud.get(shown)["server"]["status"] == "ACTIVE"
    wait_for("the new guest's agent", shell.answers, LIMIT)


def _volume(cloud: RealCloud, volume_id: str, status: str, size: int) -> None:
    def reached() -> bool:
        found: dict[str, Any] = cloud.get(f"{VOLUMES}/{volume_id}")["volume"]
        return (found["status"], found["size"]) == (status, size)

    wait_for(f"volume {status} with {size} GiB", reached, 60)


@pytest.mark.timeout(400)
def test_what_is_on_a_volume_stays_there(cloud: RealCloud, tmp_path: Path) -> None:
    """Attached, extended, detached, attached again; its storage daemon is killed while the guest writes."""
    image = cloud.upload(guestimage.build(tmp_path / "guest.qcow2"), hw_qemu_guest_agent="yes")
    server, shell = _server(cloud, image)
    run = cloud.openstack
    made = cloud.call("POST", VOLUMES, {"volume": {"size": 1}}).json()["volume"]["id"]
    _volume(cloud, made, "available", 1)
    run("server", "add", "volume", server, made)
    _volume(cloud, made, "in-use", 1)
    shell.sees("/dev/vdb")
    shell.run("mkfs.ext4 -q /dev/vdb && mount -t ext2 /dev/vdb /mnt && echo kept >/mnt/file && sync")
    daemon = cloud.directory / "volumes/one/daemon/daemon.pid"
    killed = int(daemon.read_text())
    os.kill(killed, signal.SIGKILL)
    wait_for("another daemon", lambda: int(daemon.read_text()) != killed, 30)
    wait_for("the guest to go on", shell.answers, 60)
    shell.run("echo and more >>/mnt/file && sync")
    assert cloud.call("POST", f"{VOLUMES}/{made}/action", EXTEND, headers=VERSION).status_code == 202
    _volume(cloud, made, "in-use", 2)
    shell.run("echo and yet more >>/mnt/file && sync && umount /mnt")
    run("server", "remove", "volume", server, made)
    _volume(cloud, made, "available", 2)
    assert "vdb" not in shell.run("ls /sys/block")
    run("server", "add", "volume", server, made)
    shell.sees("/dev/vdb")
    assert shell.run("cat /sys/block/vdb/size").strip() == str(2 << 21)
    assert shell.run("mount -t ext2 /dev/vdb /mnt && cat /mnt/file") == "kept\nand more\nand yet more\n"
    taken = cloud.call("DELETE", f"/compute/v2.1/servers/{server}/os-volume_attachments/{made}")
    assert taken.status_code == 202
    _volume(cloud, made, "available", 2)
    assert cloud.call("DELETE", f"{VOLUMES}/{made}").status_code == 202
    assert cloud.call("DELETE", f"/compute/v2.1/servers/{server}").status_code == 204
    wait_for("the end of the server", lambda: not cloud.servers(), 60)
    wait_for("a clean audit", lambda: not cloud.differences(), 30)


@pytest.mark.timeout(600)
@pytest.mark.spec("API-126", "API-593", "RBD-38", "RBD-41", "EMV-38")
def test_a_server_boots_from_a_volume_that_goes_with_it(cloud: RealCloud, tmp_path: Path) -> None:
    """A rebuild writes the volume anew. From a snapshot of it, taken while the guest is held still, another one boots.
    """
    image = cloud.upload(
        guestimage.build(tmp_path / "guest.qcow2"), hw_qemu_guest_agent="yes", os_require_quiesce="yes"
    )
    disk = {"uuid": image, "source_type": "image", "destination_type": "volume", "boot_index": 0, "volume_size": 1,
            "delete_on_termination": True}
    made, shell = _server(cloud, "", block_device_mapping_v2=[disk])
    [volume] = cloud.get(VOLUMES)["volumes"]
    _volume(cloud, volume["id"], "in-use", 1)
    assert shell.run("cat /sys/block/vda/serial") == volume["id"][:20]
    shell.run("echo lost >/data/mark && sync")
    _rebuild(cloud, made, image, shell)
    assert "mark" not in shell.run("ls /data")
    root = cloud.get(f"{VOLUMES}/{volume['id']}")["volume"]
    assert (root["status"], root["volume_image_metadata"]["image_id"]) == ("in-use", image)
    assert [one["server_id"] for one in root["attachments"]] == [made]
    shell.run("echo known >/data/mark")  # in the guest's memory only, if it is not held still
    action = {"createImage": {"name": "still"}}
    taken = cloud.call("POST", f"/compute/v2.1/servers/{made}/action", action, version="2.45").json()["image_id"]
    wait_for("the image", lambda: cloud.get(f"/image/v2/images/{taken}")["status"] == "active", LIMIT)
    [snapshot] = cloud.get(SNAPSHOTS)["snapshots"]
    shown = f"{SNAPSHOTS}/{snapshot['id']}"
    wait_for("the snapshot", lambda: cloud.get(shown)["snapshot"]["status"] == "available", LIMIT)
    again, other = _server(cloud, taken)
    assert other.run("cat /data/mark") == "known\n"
    for server in (made, again):
        assert cloud.call("DELETE", f"/compute/v2.1/servers/{server}").status_code == 204
    wait_for("the end of the servers", lambda: not cloud.servers(), LIMIT)
    assert cloud.call("DELETE", shown).status_code == 202
    wait_for("the end of the snapshot", lambda: not cloud.get(SNAPSHOTS)["snapshots"], LIMIT)
    wait_for("the end of the volumes", lambda: not cloud.get(VOLUMES)["volumes"], LIMIT)
    wait_for("a clean audit", lambda: not cloud.differences(), 30)


@pytest.mark.timeout(400)
@pytest.mark.spec("EMV-45", "EMV-46")
def test_an_encrypted_volume_is_open_in_the_guest_alone(cloud: RealCloud, tmp_path: Path) -> None:
    image = cloud.upload(guestimage.build(tmp_path / "guest.qcow2"), hw_qemu_guest_agent="yes")
    server, shell = _server(cloud, image)
    type_ = cloud.call("POST", "/volume/v3/types", {"volume_type": {"name": "secret"}}).json()["volume_type"]["id"]
    encryption = {"provider": "luks", "control_location": "front-end", "cipher": "aes-xts-plain64", "key_size": 256}
    made = cloud.call("POST", f"/volume/v3/types/{type_}/encryption", {"encryption": encryption})
    assert made.status_code == 200, made.text
    body = {"volume": {"size": 1, "volume_type": "secret"}}
    volume = cloud.call("POST", VOLUMES, body, headers=VERSION).json()["volume"]["id"]
    _volume(cloud, volume, "available", 1)
    cloud.openstack("server", "add", "volume", server, volume)
    _volume(cloud, volume, "in-use", 1)
    shell.sees("/dev/vdb")
    shell.run("yes 'known text' | head -c 65536 >/dev/vdb && sync")
    assert shell.run("head -c 11 /dev/vdb") == "known text\n"
    cloud.openstack("server", "reboot", "--hard", "--wait", server)
    wait_for("the guest's agent", shell.answers, LIMIT)
    assert shell.run("head -c 11 /dev/vdb") == "known text\n"
    before = _files(cloud, volume)
    host, _, pool = cloud.get(f"{VOLUMES}/{volume}")["volume"]["os-vol-host-attr:host"].rpartition("#")
    other = next(name for name in ("one", "two") if name != pool)
    there = f"{host.removesuffix(pool)}{other}#{other}"
    move = {"os-migrate_volume": {"host": there, "force_host_copy": False, "lock_volume": False}}
    assert cloud.call("POST", f"{VOLUMES}/{volume}/action", move, headers=VERSION).status_code == 202
    wait_for(
        "the move", lambda: cloud.get(f"{VOLUMES}/{volume}")["volume"]["os-vol-host-attr:host"] == there, LIMIT
    )
    _volume(cloud, volume, "in-use", 1)
    assert shell.run("echo 3 >/proc/sys/vm/drop_caches && head -c 11 /dev/vdb") == "known text\n"
    after = _files(cloud, volume)
    assert not before & after
    cloud.openstack("server", "delete", "--wait", server)
    assert cloud.call("DELETE", f"{VOLUMES}/{volume}").status_code == 202
    wait_for("a clean audit", lambda: not cloud.differences(), 60)
