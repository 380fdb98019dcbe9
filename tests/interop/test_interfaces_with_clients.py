"""Interfaces and addresses with the unmodified `openstack` command, over simulated hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("fake") as running:
        described = {"name": "tiny", "disk_format": "raw", "container_format": "bare"}
        image = running.call("POST", "/image/v2/images", described).json()["id"]
        running.call("PUT", f"/image/v2/images/{image}/file", headers={"content-type": "application/octet-stream"})
        yield running


def boot(cloud: RealCloud, name: str) -> str:
    """A server on the bootstrap network; returns its id."""
    image = cloud.get("/image/v2/images")["images"][0]["id"]
    asked = {"name": name, "flavorRef": "1", "imageRef": image, "networks": [{"uuid": cloud.network()}]}
    answer = cloud.call("POST", "/compute/v2.1/servers", {"server": asked})
    assert answer.status_code == 202, answer.text
    server: str = answer.json()["server"]["id"]
    wait_for("the server to run", lambda: show(cloud, server)["status"] == "ACTIVE", 60)
    return server


def show(cloud: RealCloud, server: str) -> dict[str, Any]:
    found: dict[str, Any] = cloud.get(f"/compute/v2.1/servers/{server}")["server"]
    return found


def interfaces(cloud: RealCloud, server: str) -> list[dict[str, Any]]:
    path = f"/compute/v2.1/servers/{server}/os-interface"
    found: list[dict[str, Any]] = cloud.get(path, version="2.70")["interfaceAttachments"]
    return found


@pytest.mark.spec("API-170", "API-171", "API-172", "API-173", "IFC-11", "IFC-32")
def test_the_openstack_command_attaches_and_detaches(cloud: RealCloud) -> None:
    run = cloud.openstack
    server = boot(cloud, "vm")
    run("network", "create", "second")
    run("subnet", "create", "--network", "second", "--subnet-range", "10.30.0.0/24", "second")
    run("port", "create", "--network", "second", "brought")
    run("server", "add", "network", "--tag", "fast", "vm", "second")
    run("server", "add", "port", "vm", "brought")
    found = interfaces(cloud, server)
    assert sorted(str(one["tag"]) for one in found) == ["None", "None", "fast"]
    addresses = show(cloud, server)["addresses"]["second"]
    assert [one["addr"] for one in addresses] == [ip["ip_address"] for one in found[1:] for ip in one["fixed_ips"]]
    assert "still in use" in run("server", "add", "port", "vm", "brought", check=False)
    run("server", "remove", "port", "vm", "brought")
    wait_for("the port to be free", lambda: len(interfaces(cloud, server)) == 2, 20)
    assert run("port", "show", "brought", "-f", "value", "-c", "status", "-c", "device_id").split() == ["DOWN"]
    run("server", "remove", "network", "vm", "second")
    wait_for("the interface to go", lambda: len(interfaces(cloud, server)) == 1, 20)
    wait_for("the address to go", lambda: "second" not in show(cloud, server)["addresses"], 20)
    ports = cloud.get("/network/v2.0/ports")["ports"]
    left = [port for port in ports if port["network_id"] != cloud.network() and port["device_owner"] != "network:dhcp"]
    assert [port["name"] for port in left] == ["brought"]
    assert cloud.differences() == []


@pytest.mark.spec("EMN-50", "EMN-51", "EMN-53", "EMN-55")
def test_the_openstack_command_gives_a_server_a_floating_ip(cloud: RealCloud) -> None:
    run = cloud.openstack
    server = boot(cloud, "floated")
    run("network", "create", "--external", "public")
    run("subnet", "create", "--network", "public", "--subnet-range", "203.0.113.0/24", "--no-dhcp", "public")
    run("router", "create", "--external-gateway", "public", "r")
    run("router", "add", "subnet", "r", "private-subnet")
    address = run("floating", "ip", "create", "public", "-f", "value", "-c", "floating_ip_address").strip()
    run("server", "add", "floating", "ip", "floated", address)
    mac = interfaces(cloud, server)[0]["mac_addr"]
    expected = {"version": 4, "addr": address, "OS-EXT-IPS:type": "floating", "OS-EXT-IPS-MAC:mac_addr": mac}
    wait_for("the server to show it", lambda: expected in show(cloud, server)["addresses"]["private"], 20)
    run("server", "remove", "floating", "ip", "floated", address)
    wait_for("the server to lose it", lambda: expected not in show(cloud, server)["addresses"]["private"], 20)
    assert run("floating", "ip", "list", "-f", "value", "-c", "Floating IP Address", "-c", "Port").split() == [
        address, "None"]
