"""Faults of the machine under a running cloud: a clear answer, and everything goes on once they have passed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for

from kilonova import guestimage

pytestmark = pytest.mark.servers

LIMIT = 60.0


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guestimage.build(tmp_path_factory.mktemp("image") / "guest.qcow2")


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("libvirt") as running:
        yield running


@pytest.fixture(scope="module")
def body(cloud: RealCloud, image_file: Path) -> dict[str, Any]:
    return _body(cloud, cloud.upload(image_file))


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever happened, everything agrees afterwards."""
    yield
    if "cloud" in request.fixturenames:
        shared: RealCloud = request.getfixturevalue("cloud")
        for server in shared.servers():
            shared.call("DELETE", f"/compute/v2.1/servers/{server['id']}")
        wait_for("all servers to go", lambda: not shared.servers(), LIMIT)
        wait_for("a clean audit", lambda: shared.differences() == [], LIMIT)


def _body(cloud: RealCloud, image: str) -> dict[str, Any]:
    flavors = {one["name"]: one["id"] for one in cloud.get("/compute/v2.1/flavors")["flavors"]}
    return {"name": "one", "imageRef": image, "flavorRef": flavors["m1.nano"], "networks": [{"uuid": cloud.network()}]}


def _ask(cloud: RealCloud, body: dict[str, Any]) -> str:
    answer = cloud.call("POST", "/compute/v2.1/servers", {"server": body})
    assert answer.status_code == 202, answer.text
    server: str = answer.json()["server"]["id"]
    return server


def _server(cloud: RealCloud, server: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.get(f"/compute/v2.1/servers/{server}", version="2.79")["server"]
    return found


def _built(cloud: RealCloud, server: str) -> dict[str, Any]:
    """The server when it is no longer being built."""
    wait_for("the build to end", lambda: _server(cloud, server)["status"] != "BUILD", LIMIT)
    return _server(cloud, server)


def _fault(cloud: RealCloud, server: str) -> str:
    found = _built(cloud, server)
    assert (found["status"], found["OS-EXT-STS:task_state"]) == ("ERROR", None), found
    message: str = found["fault"]["message"]
    return message


def _active(cloud: RealCloud, server: str) -> None:
    found = _built(cloud, server)
    assert found["status"] == "ACTIVE", found.get("fault")


def _booted(cloud: RealCloud, server: str) -> None:
    path = f"/compute/v2.1/servers/{server}/action"
    wait_for(
        "the guest to boot",
        lambda: "LOGIN READY" in cloud.call("POST", path, {"os-getConsoleOutput": {}}).json()["output"], LIMIT,
    )


def _qemu(cloud: RealCloud, server: str) -> int:
    """The process of its guest."""
    (file,) = (cloud.directory / "libvirt" / "run" / "qemu").glob(f"instance-{server.replace('-', '')[:12]}.pid")
    return int(file.read_text())


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- images -------------------------------------------------------------------------------------------------------


def _qemu_img(*arguments: str) -> None:
    subprocess.run(["qemu-img", *arguments], check=True, capture_output=True)


def _with_backing_file(file: Path) -> None:
    _qemu_img("create", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(file), "1M")


def _with_data_file(file: Path) -> None:
    _qemu_img("create", "-f", "qcow2", "-o", f"data_file={file}.raw", str(file), "1M")


def _too_large(file: Path) -> None:
    _qemu_img("create", "-f", "qcow2", str(file), "500G")


def _with_a_bad_header(file: Path) -> None:
    file.write_bytes(b"QFI\xfb" + bytes([255]) * 2000)


def _of_another_format(file: Path) -> None:
    file.write_bytes(b"not a disk at all" * 100)


@pytest.mark.parametrize(("make", "told"), [
    (_with_backing_file, "depends on a backing file"), (_with_data_file, "keeps its data in another file"),
    (_with_a_bad_header, "qcow2 version 4294967295 is not known"), (_of_another_format, "its contents are raw"),
])
def test_an_image_that_cannot_be_trusted_is_not_taken(cloud: RealCloud, tmp_path: Path, make: Any, told: str) -> None:
    make(tmp_path / "image")
    described = {"name": "bad", "disk_format": "qcow2", "container_format": "bare"}
    image = cloud.call("POST", "/image/v2/images", described).json()["id"]
    uploaded = cloud.call("PUT", f"/image/v2/images/{image}/file", content=(tmp_path / "image").read_bytes(),
                          headers={"Content-Type": "application/octet-stream"})
    assert uploaded.status_code == 400
    assert told in uploaded.json()["message"]
    refused = cloud.call("POST", "/compute/v2.1/servers", {"server": _body(cloud, image)})
    assert refused.status_code == 400, refused.text
    assert "is not active" in refused.json()["badRequest"]["message"]


def test_an_image_that_becomes_corrupt_is_told(cloud: RealCloud, image_file: Path) -> None:
    """Its file is changed behind the back of the image service."""
    image = cloud.upload(image_file, "corrupt")
    (kept,) = (cloud.directory / "images" / "data").rglob(image)
    with kept.open("r+b") as file:
        file.write(b"QFI\xfb" + bytes([255]) * 2000)
    fault = _fault(cloud, _ask(cloud, _body(cloud, image)))
    assert "qcow2" in fault or "checksum" in fault, fault


def test_an_image_that_is_larger_than_the_disk_is_told(cloud: RealCloud, tmp_path: Path) -> None:
    _too_large(tmp_path / "image")
    fault = _fault(cloud, _ask(cloud, _body(cloud, cloud.upload(tmp_path / "image", "large"))))
    assert "virtual size of the image, 536870912000 bytes, exceeds" in fault


# --- what the cloud stands on -------------------------------------------------------------------------------------


def test_libvirtd_dies_while_a_server_is_built(cloud: RealCloud, body: dict[str, Any]) -> None:
    first = _ask(cloud, body)
    _active(cloud, first)
    guest = _qemu(cloud, first)
    pidfile = cloud.directory / "libvirt" / "run" / "libvirtd.pid"
    second = _ask(cloud, body | {"name": "two"})
    killed = int(pidfile.read_text())
    os.kill(killed, signal.SIGKILL)
    _active(cloud, second)
    assert int(pidfile.read_text()) != killed
    assert _is_alive(guest)
    assert _qemu(cloud, first) == guest
    stop = cloud.call("POST", f"/compute/v2.1/servers/{first}/action", {"os-stop": None})
    assert stop.status_code == 202
    wait_for("the first to stop", lambda: _server(cloud, first)["status"] == "SHUTOFF", LIMIT)


def test_libvirtd_dies_while_nothing_happens(cloud: RealCloud, body: dict[str, Any]) -> None:
    """It is started again by itself, and finds the guest that went on running."""
    server = _ask(cloud, body)
    _active(cloud, server)
    guest = _qemu(cloud, server)
    pidfile = cloud.directory / "libvirt" / "run" / "libvirtd.pid"
    killed = int(pidfile.read_text())
    os.kill(killed, signal.SIGKILL)

    def started_again() -> bool:
        found = pidfile.read_text() if pidfile.exists() else ""
        return found.strip().isdecimal() and int(found) != killed and _is_alive(int(found))

    wait_for("libvirtd to be started again", started_again, LIMIT)
    path = f"/compute/v2.1/servers/{server}/action"
    assert cloud.call("POST", path, {"reboot": {"type": "HARD"}}).status_code == 202
    wait_for("the guest to be another", lambda: not _is_alive(guest), LIMIT)
    wait_for("the reboot to end", lambda: _server(cloud, server)["OS-EXT-STS:task_state"] is None, LIMIT)
    assert _server(cloud, server)["status"] == "ACTIVE"
    assert _is_alive(_qemu(cloud, server))


def _dhcp_servers(cloud: RealCloud) -> set[int]:
    """Those of this installation, by its directory on their command lines."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"dnsmasq" in command and os.fsencode(cloud.directory) in command:
            found.add(int(process.name))
    return found


def test_dhcp_servers_die_and_filters_are_flushed(cloud: RealCloud, body: dict[str, Any]) -> None:
    _active(cloud, _ask(cloud, body | {"name": "first"}))  # a network is made for its first port
    before = wait_for("a DHCP server", lambda: _dhcp_servers(cloud), LIMIT)
    tables = _tables(cloud)
    assert tables
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for("new DHCP servers", lambda: len(_dhcp_servers(cloud) - before) == len(before), LIMIT)
    for table in tables:
        subprocess.run(["nft", "delete", "table", *table.split()], check=True)
    wait_for("the filters", lambda: _tables(cloud) == tables, LIMIT)
    server = _ask(cloud, body)
    _active(cloud, server)
    _booted(cloud, server)
    console = cloud.call("POST", f"/compute/v2.1/servers/{server}/action", {"os-getConsoleOutput": {}}).json()["output"]
    (address,) = [one["addr"] for ports in _server(cloud, server)["addresses"].values() for one in ports]
    assert f"network eth0 {address}/" in console


def _tables(cloud: RealCloud) -> set[str]:
    """Its tables of the packet filter."""
    token = json.loads((cloud.directory / "installation.json").read_text())["token"]
    listed = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return {line.removeprefix("table ") for line in listed.splitlines() if line.endswith(f"kilonova_{token}")}


def test_the_database_is_locked(cloud: RealCloud, body: dict[str, Any]) -> None:
    """Requests wait, and none is lost."""
    answers: list[str] = []
    with closing(sqlite3.connect(cloud.directory / "kilonova.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asking = threading.Thread(target=lambda: answers.append(_ask(cloud, body)))
        asking.start()
        asking.join(3)
        assert asking.is_alive()
        other.execute("ROLLBACK")
    asking.join(LIMIT)
    _active(cloud, answers[0])


def test_the_disk_is_full(image_file: Path) -> None:
    """The server tells; when there is room again, the next one is built."""
    directory = Path(tempfile.mkdtemp(prefix="kilonova-test-"))
    guests = directory / "guests"
    guests.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "tmpfs", str(guests)], check=True)
    cloud = RealCloud(directory, "libvirt")
    try:
        cloud.up()
        body = _body(cloud, cloud.upload(image_file))
        filler = guests / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(guests).free - (4 << 20))
        fault = _fault(cloud, _ask(cloud, body))
        assert "space" in fault or "No valid host" in fault, fault
        filler.unlink()
        roomy = wait_for("a server that is built", lambda: _try(cloud, body), LIMIT, pause=2.0)
        _booted(cloud, roomy)
        for server in cloud.servers():
            cloud.call("DELETE", f"/compute/v2.1/servers/{server['id']}")
        wait_for("all servers to go", lambda: not cloud.servers(), LIMIT)
        assert cloud.differences() == []
    finally:
        cloud.kilonova("down", "--purge", "--yes", check=False)
        subprocess.run(["umount", str(guests)], check=False)
        cloud.purge()


def _try(cloud: RealCloud, body: dict[str, Any]) -> str | None:
    server = _ask(cloud, body)
    if _built(cloud, server)["status"] == "ACTIVE":
        return server
    cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
    return None


# --- starting -----------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_and_a_directory_in_use(cloud: RealCloud, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        other = RealCloud(tmp_path / "data", "fake")
        other.port = port
        ended = other.kilonova("up", "--detach", "--driver", "fake", "--port-base", str(port), check=False)
    assert ended.returncode == 1
    assert str(port) in ended.stderr
    assert "--port-base" in ended.stderr
    again = cloud.kilonova("up", "--detach", "--driver", "libvirt", check=False)
    assert again.returncode == 1
    assert "already runs" in again.stderr


@pytest.mark.spec("INI-093", "RBT-24")
def test_a_soft_reboot_is_cut_off_after_the_guest_has_shut_down(cloud: RealCloud, body: dict[str, Any]) -> None:
    """The control plane dies between the guest's shutdown and its start: the guest runs again, and the history tells
    that it was rebooted hard. Another guest runs all the time."""
    server, bystander = _ask(cloud, body), _ask(cloud, body | {"name": "bystander"})
    _active(cloud, server)
    _active(cloud, bystander)
    _booted(cloud, server)
    guest, other = _qemu(cloud, server), _qemu(cloud, bystander)
    path = f"/compute/v2.1/servers/{server}"
    assert cloud.call("POST", f"{path}/action", {"reboot": {"type": "SOFT"}}).status_code == 202
    console = cloud.directory / "guests" / "instances" / server / "console.log"
    wait_for("the guest to obey", lambda: b"guest: shutting down" in console.read_bytes(), LIMIT, pause=0.005)
    cloud.kill()
    wait_for("the guest to shut down", lambda: not _is_alive(guest), LIMIT)
    cloud.up()
    wait_for(
        "the reboot to end",
        lambda: (one := _server(cloud, server))["status"] == "ACTIVE" and one["OS-EXT-STS:task_state"] is None, LIMIT,
    )
    assert _is_alive(_qemu(cloud, server))
    assert _qemu(cloud, server) != guest
    assert _qemu(cloud, bystander) == other
    assert _is_alive(other)
    actions = cloud.get(f"{path}/os-instance-actions")["instanceActions"]
    (rebooted,) = [action["request_id"] for action in actions if action["action"] == "reboot"]
    told = cloud.get(f"{path}/os-instance-actions/{rebooted}", version="2.84")["instanceAction"]["events"]
    assert "The service stopped meanwhile; the guest was rebooted hard." in [event["details"] for event in told]
