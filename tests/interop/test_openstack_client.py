"""The life of a real guest as a user leads it: with the unmodified `openstack` command and openstacksdk."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import openstack
import pytest
from clouds import RealCloud, real_cloud, wait_for
from openstack.connection import Connection

from kilonova import guestimage

pytestmark = pytest.mark.servers

ADDRESS = "10.20.0.10"
BOOT_LIMIT = 90.0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guestimage.build(tmp_path_factory.mktemp("image") / "guest.qcow2")


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("libvirt") as running:
        yield running


def _status(cloud: RealCloud, name: str) -> str:
    (server,) = [one for one in cloud.servers() if one["name"] == name]
    status: str = server["status"]
    return status


def _volume_status(cloud: RealCloud) -> str:
    (volume,) = cloud.get("/volume/v3/volumes/detail")["volumes"]
    status: str = volume["status"]
    return status


def _booted(cloud: RealCloud, server: str, times: int) -> None:
    """Wait until the guest has booted so often, as its console tells."""
    path = f"/compute/v2.1/servers/{server}/action"
    wait_for(
        "the guest to boot",
        lambda: cloud.call("POST", path, {"os-getConsoleOutput": {}}).json()["output"].count("LOGIN READY") >= times,
        BOOT_LIMIT,
    )


def _echo(address: str) -> bool:
    try:
        with socket.create_connection((address, 7), timeout=1) as connection:
            connection.sendall(b"hello")
            return connection.recv(5) == b"hello"
    except OSError:
        return False


@pytest.mark.spec("API-019")
def test_the_openstack_command(cloud: RealCloud, image: Path) -> None:
    run = cloud.openstack
    run("image", "create", "--file", str(image), "--disk-format", "qcow2", "guest")
    run("network", "create", "mine")
    run("subnet", "create", "--network", "mine", "--subnet-range", "10.20.0.0/24", "mine")
    run("security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "7", "default")
    assert "PRIVATE KEY" in run("keypair", "create", "mine")
    created = run(
        "server", "create", "--flavor", "m1.nano", "--image", "guest", "--key-name", "mine", "--wait",
        "--nic", f"net-id=mine,v4-fixed-ip={ADDRESS}", "-f", "value", "-c", "status", "-c", "id", "first",
    )
    server, status = created.split()
    assert status == "ACTIVE"
    _booted(cloud, server, 1)
    wait_for("the guest to answer", lambda: _echo(ADDRESS), 20)
    assert run("server", "list", "-f", "value", "-c", "Name", "-c", "Status", "-c", "Networks").split() == [
        "first", "ACTIVE", "{'mine':", f"['{ADDRESS}']}}",
    ]
    console = run("console", "log", "show", "first")
    assert f"{ADDRESS}/24" in console
    assert f"uuid={server}" in console
    assert "ssh keys=1" in console

    run("server", "stop", "first")
    wait_for("the server to stop", lambda: _status(cloud, "first") == "SHUTOFF", 60)
    run("server", "start", "first")
    wait_for("the server to start", lambda: _status(cloud, "first") == "ACTIVE", 60)
    assert "Complete" in run("server", "reboot", "--hard", "--wait", "first")
    wait_for("the guest to answer", lambda: _echo(ADDRESS), BOOT_LIMIT)
    assert "Complete" in run("server", "reboot", "--soft", "--wait", "first")
    assert run("server", "show", "-f", "value", "-c", "status", "first").strip() == "ACTIVE"

    actions = run("server", "event", "list", "-f", "value", "-c", "Request ID", "-c", "Action", "first").split()
    assert actions[1::2] == ["reboot", "reboot", "start", "stop", "create"]
    shown = run("server", "event", "show", "first", actions[-2], "-f", "value", "-c", "events")
    assert "compute__do_build_and_run_instance" in shown
    assert "Success" in shown

    run("volume", "create", "--size", "1", "data")  # in the pool of an installation that was told of none
    wait_for("the volume", lambda: _volume_status(cloud) == "available", 30)
    run("server", "add", "volume", "first", "data")
    wait_for("the guest to get it", lambda: _volume_status(cloud) == "in-use", 60)

    run("server", "delete", "--wait", "first")
    assert run("server", "list", "-f", "value") == ""
    wait_for("the volume to be left", lambda: _volume_status(cloud) == "available", 30)
    run("volume", "delete", "data")
    wait_for("the volume to go", lambda: not cloud.get("/volume/v3/volumes")["volumes"], 30)
    for thing in (("network", "mine"), ("keypair", "mine"), ("image", "guest")):
        run(thing[0], "delete", thing[1])
    assert cloud.differences() == []


def test_openstacksdk(cloud: RealCloud, image: Path) -> None:
    config = openstack.config.OpenStackConfig(config_files=[str(cloud.directory / "clouds.yaml")])
    client = Connection(config=config.get_one("kilonova"))
    made = client.create_image("guest", filename=str(image), disk_format="qcow2", container_format="bare", wait=True)
    server = client.create_server("second", image=made, flavor="m1.nano", network="private", wait=True, timeout=120)
    assert server.status == "ACTIVE"
    client.compute.stop_server(server)
    assert client.compute.wait_for_server(server, "SHUTOFF", wait=60).status == "SHUTOFF"
    client.compute.start_server(server)
    assert client.compute.wait_for_server(server, "ACTIVE", wait=60).status == "ACTIVE"
    assert [action.action for action in client.compute.server_actions(server)] == ["start", "stop", "create"]
    (port,) = client.network.ports(device_id=server.id)
    assert port.status == "ACTIVE"
    assert client.delete_server(server.id, wait=True, timeout=60)
    assert list(client.network.ports(device_id=server.id)) == []
    assert client.delete_image(made.id)
    assert cloud.differences() == []
