"""What every implementation of the image service promises the compute service."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from image_cloud import ALICE, BOB, PEOPLE, image_cloud

from kilonova.bus.local import LocalBus
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, ImageNotFound, InvalidInput, OverQuota
from kilonova.services.image import ImageCatalogue, ImageService, NewImage
from kilonova.services.image_calls import SIGNATURES, ImageCalls, RemoteImages

DATA = os.urandom(2_500_000)


@dataclass
class Fixture:
    """An implementation, and a way to make an active image of the project ALICE with DATA in it."""

    service: ImageCatalogue
    make: Callable[..., Awaitable[str]]


class OverTheBus:
    """The service as another process of the control plane has it: records over the bus, data not at all."""

    def __init__(self, service: ImageService, remote: RemoteImages) -> None:
        self._service = service
        self._remote = remote

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remote if name in SIGNATURES else self._service, name)


@pytest.fixture(params=["embedded", "over the bus"])
async def image(request: pytest.FixtureRequest, tmp_path) -> AsyncIterator[Fixture]:
    async with image_cloud(tmp_path) as cloud:

        async def make(data: bytes | None = DATA, **body: object) -> str:
            alice = cloud.person("alice")
            made = await alice.create(**body)
            if data is not None:
                assert (await alice.put(made, data)).status_code == 204
            return made["id"]

        bus = LocalBus()
        calls = ImageCalls(cloud.service, bus)
        await calls.start()
        remote: Any = OverTheBus(cloud.service, RemoteImages(bus, SystemClock()))
        yield Fixture(cloud.service if request.param == "embedded" else remote, make)
        await calls.close()
        await bus.close()


def context(person: str) -> RequestContext:
    project, roles = PEOPLE[person]
    return RequestContext(request_id="req-1", user_id=person, project_id=project, roles=roles,
                          is_admin="admin" in roles)


async def read(service: ImageCatalogue, image_id: str) -> bytes:
    return b"".join([chunk async for chunk in service.data(image_id)])


async def test_an_image_is_described(image):
    id_ = await image.make(name="web", min_disk=3, min_ram=64, visibility="private", hw_disk_bus="virtio")
    shown = await image.service.show(context("alice"), id_)
    assert (shown.id, shown.name, shown.status, shown.disk_format) == (id_, "web", "active", "raw")
    assert (shown.container_format, shown.size, shown.min_disk, shown.min_ram) == ("bare", len(DATA), 3, 64)
    assert (shown.owner, shown.visibility, shown.properties) == (ALICE, "private", {"hw_disk_bus": "virtio"})
    assert shown.checksum is not None
    assert shown.created_at.endswith("Z")
    assert await image.service.show(None, id_) == shown


@pytest.mark.spec("EMI-05", "EMG-12")
async def test_an_image_is_hidden_from_others(image):
    id_ = await image.make(visibility="private")
    for person in ("bob", "service"):
        with pytest.raises(ImageNotFound):
            await image.service.show(context(person), id_)
    assert (await image.service.show(context("admin"), id_)).id == id_
    assert (await image.service.show(context("bob"), await image.make(visibility="community"))).owner != BOB
    for unknown in (str(uuid.uuid4()), "name", "", "x\0y"):
        with pytest.raises(ImageNotFound):
            await image.service.show(None, unknown)


async def test_the_data_is_streamed_and_may_lie_on_this_machine(image):
    id_ = await image.make()
    assert await read(image.service, id_) == DATA
    path = image.service.local_path(id_)
    assert path is None or path.read_bytes() == DATA


async def test_there_is_no_data_without_an_active_image(image):
    for id_ in (await image.make(None), str(uuid.uuid4())):
        with pytest.raises(ImageNotFound):
            await read(image.service, id_)
        assert image.service.local_path(id_) is None
    for elsewhere in ("../image.db", "../../image.db", "/etc/passwd", "", "x\0y"):
        assert image.service.local_path(elsewhere) is None


async def test_deleting_twice_is_no_error(image):
    id_ = await image.make()
    await image.service.delete(id_)
    with pytest.raises(ImageNotFound):
        await image.service.show(None, id_)
    assert image.service.local_path(id_) is None
    await image.service.delete(id_)


@pytest.mark.spec("EMG-09")
async def test_a_protected_image_is_not_deleted(image):
    id_ = await image.make(protected=True)
    with pytest.raises(Forbidden):
        await image.service.delete(id_)
    assert (await image.service.show(None, id_)).id == id_


async def test_a_page_of_images(image):
    first = await image.make(name="a", visibility="community", os_distro="debian")
    second = await image.make(name="b", visibility="private")
    everything = await image.service.page(context("alice"), [], limit=10, marker=None)
    assert {one.id for one in everything} >= {first, second}
    before, after = [one.id for one in everything][:2]
    assert [one.id for one in await image.service.page(context("alice"), [], limit=1, marker=before)] == [after]
    assert second not in [one.id for one in await image.service.page(context("bob"), [], limit=10, marker=None)]
    by_property = [("os_distro", "debian"), ("status", "in:active")]
    assert [one.id for one in await image.service.page(context("alice"), by_property, limit=10, marker=None)] == [first]
    with pytest.raises(InvalidInput):
        await image.service.page(context("alice"), [], limit=1, marker="x")


async def test_properties_are_replaced(image):
    id_ = await image.make(visibility="community", a="1", b="2")
    changed = await image.service.set_properties(context("alice"), id_, {"b": "3", "c": "4"})
    assert changed.properties == {"b": "3", "c": "4"}
    assert (await image.service.show(None, id_)).properties == {"b": "3", "c": "4"}
    with pytest.raises(Forbidden):
        await image.service.set_properties(context("bob"), id_, {})
    with pytest.raises(InvalidInput):
        await image.service.set_properties(context("alice"), id_, {"name": "x"})
    with pytest.raises(Forbidden):
        await image.service.set_properties(context("alice"), id_, {"id": "x"})
    with pytest.raises(ImageNotFound):
        await image.service.set_properties(context("alice"), str(uuid.uuid4()), {})


async def test_users_remove_only_their_own(image):
    id_ = await image.make(visibility="community")
    with pytest.raises(Forbidden):
        await image.service.remove(context("bob"), id_)
    await image.service.remove(context("alice"), id_)
    with pytest.raises(ImageNotFound):
        await image.service.remove(context("alice"), id_)


# --- images that the compute service makes ----------------------------------------------------------


def new_image(**fields) -> NewImage:
    return NewImage(**{"id": str(uuid.uuid4()), "name": "snap", "owner": ALICE, "disk_format": "raw"} | fields)


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.spec("EMG-32")
async def test_an_image_is_made_under_its_id_and_gets_its_data_once(image):
    new = new_image(min_disk=2, min_ram=64, properties={"image_type": "snapshot"})
    for _ in range(2):
        await image.service.create(new)
    shown = await image.service.show(context("alice"), new.id)
    assert (shown.status, shown.visibility, shown.owner, shown.name) == ("queued", "private", ALICE, "snap")
    assert (shown.min_disk, shown.min_ram, shown.properties) == (2, 64, {"image_type": "snapshot"})
    with pytest.raises(ImageNotFound):
        await image.service.show(context("bob"), new.id)
    for part in (DATA, b"other"):
        await image.service.upload(new.id, chunks(part[:100], part[100:]))
    assert await read(image.service, new.id) == DATA
    await image.service.create(new)
    assert (await image.service.show(None, new.id)).status == "active"


@pytest.mark.spec("EMG-24")
async def test_an_image_is_shared_with_another_project(image):
    new = new_image(member=BOB)
    await image.service.create(new)
    assert (await image.service.show(context("bob"), new.id)).owner == ALICE
    with pytest.raises(ImageNotFound):
        await image.service.show(context("service"), new.id)


async def test_what_images_do_not_take(image):
    for name in ("status", "id", "visibility", "size", "os_glance_x", "owner"):
        with pytest.raises((InvalidInput, Forbidden)):
            await image.service.create(new_image(properties={name: "x"}))
    with pytest.raises(OverQuota):
        await image.service.create(new_image(properties={str(number): "" for number in range(200)}))
    damaged = new_image(disk_format="qcow2")
    await image.service.create(damaged)
    with pytest.raises(InvalidInput):
        await image.service.upload(damaged.id, chunks(DATA))
    assert (await image.service.show(None, damaged.id)).status == "queued"
    await image.service.delete(damaged.id)
    with pytest.raises(ImageNotFound):
        await image.service.upload(damaged.id, chunks(DATA))


@pytest.mark.spec("SNP-26")
async def test_backups_are_listed_newest_first(image):
    wanted = {"image_type": "backup", "backup_type": "daily", "instance_uuid": "one"}
    backups = [new_image(properties=wanted) for _ in range(3)]
    others = [
        new_image(properties=wanted | {"backup_type": "weekly"}), new_image(properties=wanted | {"image_type": "x"}),
        new_image(properties=wanted | {"instance_uuid": "two"}), new_image(properties=wanted, owner=BOB),
    ]
    for new in (*backups, *others):
        await image.service.create(new)
    await image.service.upload(backups[1].id, chunks(DATA))
    found = await image.service.backups(ALICE, "one", "daily")
    assert [i.id for i in found] == [new.id for new in reversed(backups)]
    assert [i.status for i in found] == ["queued", "active", "queued"]
