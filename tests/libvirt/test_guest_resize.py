"""A real guest gets another flavor, through the whole cloud: it sees it, keeps it, or loses it again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from clouds import RealCloud, real_cloud, wait_for

from kilonova import guestimage

BOOTS = 150.0
"""Seconds that a guest may take, emulated on a busy machine."""
READY = "LOGIN READY"


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealCloud]:
    with real_cloud("libvirt") as made:
        yield made


@pytest.fixture(scope="module")
def image(cloud: RealCloud, tmp_path_factory: pytest.TempPathFactory) -> str:
    for number, (vcpus, ram, disk) in enumerate(((1, 128, 1), (2, 256, 2)), start=1):
        flavor = {"id": f"r{number}", "name": f"r{number}", "vcpus": vcpus, "ram": ram, "disk": disk}
        assert cloud.call("POST", "/compute/v2.1/flavors", {"flavor": flavor}).status_code == 200
    return cloud.upload(guestimage.build(tmp_path_factory.mktemp("image") / "guest.qcow2"))


class Server:
    """One server, as its user sees it."""

    def __init__(self, cloud: RealCloud, image: str) -> None:
        self._cloud = cloud
        body = {"server": {"name": "resized", "flavorRef": "r1", "imageRef": image, "networks": "none"}}
        made = cloud.call("POST", "/compute/v2.1/servers", body, version="2.100").json()["server"]["id"]
        self._path = f"/compute/v2.1/servers/{made}"

    def show(self) -> dict[str, Any]:
        found: dict[str, Any] = self._cloud.get(self._path, version="2.100")["server"]
        return found

    def act(self, body: dict[str, Any]) -> int:
        return self._cloud.call("POST", f"{self._path}/action", body).status_code

    def becomes(self, status: str) -> None:
        def there() -> bool:
            shown = self.show()
            assert status == "ERROR" or shown["status"] != "ERROR", shown
            return shown["status"] == status and shown["OS-EXT-STS:task_state"] is None

        wait_for(status, there, BOOTS)

    def console(self) -> str:
        output = self._cloud.call("POST", f"{self._path}/action", {"os-getConsoleOutput": {}}).json()["output"]
        assert isinstance(output, str)
        return output

    def boots(self, times: int) -> tuple[int, int, int]:
        """The CPUs, memory and root disk in MiB that the guest saw when it started for the nth time."""
        wait_for(f"boot {times}", lambda: self.console().count(READY) >= times, BOOTS)
        told = self.console()
        cpus, memory = re.findall(r"cpus (\d+) memory (\d+)MiB", told)[times - 1]
        (disk, *_) = re.findall(r"vda=(\d+)MiB", told)[times - 1 :]
        return int(cpus), int(memory), int(disk)

    def delete(self) -> None:
        self._cloud.call("DELETE", self._path)
        wait_for("delete", lambda: self._cloud.call("GET", self._path).status_code == 404, BOOTS)


def _is_small(seen: tuple[int, int, int]) -> bool:
    return seen[0] == 1 and seen[1] < 128 and seen[2] == 1024


def _is_big(seen: tuple[int, int, int]) -> bool:
    return seen[0] == 2 and 128 < seen[1] < 256 and seen[2] == 2048


@pytest.mark.timeout(900)
@pytest.mark.spec("API-127", "API-128", "MIG-81", "RSZ-10")
def test_a_guest_keeps_its_new_flavor(cloud: RealCloud, image: str) -> None:
    server = Server(cloud, image)
    server.becomes("ACTIVE")
    assert _is_small(server.boots(1))
    assert server.act({"resize": {"flavorRef": "r2"}}) == 202
    server.becomes("VERIFY_RESIZE")
    assert _is_big(server.boots(2))
    kept = [path.name for path in cloud.directory.glob("guests/instances/*/*.kept-*")]
    assert len(kept) == 1
    assert server.act({"confirmResize": None}) == 204
    server.becomes("ACTIVE")
    assert list(cloud.directory.glob("guests/instances/*/*.kept-*")) == []
    assert cloud.differences() == []
    server.delete()
    assert cloud.differences() == []


@pytest.mark.timeout(900)
@pytest.mark.spec("API-129", "RSZ-59")
def test_a_guest_gets_its_old_flavor_back(cloud: RealCloud, image: str) -> None:
    server = Server(cloud, image)
    server.becomes("ACTIVE")
    assert _is_small(server.boots(1))
    assert server.act({"resize": {"flavorRef": "r2"}}) == 202
    server.becomes("VERIFY_RESIZE")
    assert _is_big(server.boots(2))
    assert server.act({"revertResize": None}) == 202
    server.becomes("ACTIVE")
    assert _is_small(server.boots(3))
    assert cloud.differences() == []
    server.delete()
    assert cloud.differences() == []
