"""The password that a guest makes and tells the metadata service, encrypted."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import httpx
import pytest

from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.service import MAX_PASSWORD, MetadataService
from kilonova.metadata.vendor_data import VendorData

UUID = "11111111-1111-4111-8111-111111111111"
PLACE = "/openstack/latest/password"


class Kept:
    """What guests have told."""

    def __init__(self) -> None:
        self.known = True
        self.passwords: dict[str, str] = {}

    async def instance_at(self, _network: str, _address: str) -> str | None:
        return UUID if self.known else None

    async def lookup(self, instance_uuid: str) -> GuestMetadata:
        return GuestMetadata(
            instance_uuid=instance_uuid, name="one", hostname="one", project_id="p", flavor_name="small",
            told_password=self.passwords.get(instance_uuid, ""),
        )

    async def keep(self, instance_uuid: str, password: str) -> bool:
        if self.passwords.get(instance_uuid):
            return False
        self.passwords[instance_uuid] = password
        return True


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
async def guest(kept: Kept) -> AsyncIterator[httpx.AsyncClient]:
    """A client that the service takes for the guest."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = MetadataService(kept.instance_at, kept.lookup, kept.keep, VendorData(), address="127.0.0.1", port=port)
    await service.opened("net", "")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        yield client
    await service.close()


async def test_a_guest_tells_its_password_once(guest: httpx.AsyncClient, kept: Kept) -> None:
    assert (await guest.get(PLACE)).content == b""
    answer = await guest.post(PLACE, content=b"Q2lwaGVy")
    assert (answer.status_code, answer.content) == (200, b"")
    assert kept.passwords == {UUID: "Q2lwaGVy"}
    assert (await guest.post(PLACE, content=b"other")).status_code == 409
    assert (await guest.get(PLACE)).text == "Q2lwaGVy"
    kept.passwords.clear()  # the user has cleared it
    assert (await guest.post("/openstack/2013-04-04/password", content=b"other")).status_code == 200
    assert kept.passwords == {UUID: "other"}


async def test_what_is_no_password_is_not_kept(guest: httpx.AsyncClient, kept: Kept) -> None:
    for content in (b"x" * (MAX_PASSWORD + 1), "é".encode()):
        assert (await guest.post(PLACE, content=content)).status_code == 400
    for place in ("/openstack/2012-08-10/password", "/openstack/latest/user_data", "/latest/password", "/"):
        assert (await guest.post(place, content=b"x")).status_code == 405
    assert (await guest.put(PLACE, content=b"x")).status_code == 405
    kept.known = False
    assert (await guest.post(PLACE, content=b"x")).status_code == 404
    assert kept.passwords == {}
    kept.known = True
    assert (await guest.post(PLACE, content=b"x" * MAX_PASSWORD)).status_code == 200
