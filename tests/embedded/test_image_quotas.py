"""Quotas of images by unified limits: what they refuse, what they leave behind, and that no race passes them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from image_cloud import ADMIN, ALICE, Cloud, Person, Upload, image_cloud, served
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.errors import OverQuota
from kilonova.embedded.image import ImportRules, schema
from kilonova.embedded.image.files import ImageFiles, Received
from kilonova.services.image import NewImage

MIB = 1 << 20
LOOPBACK = ImportRules(ports=(), networks=("127.0.0.0/8",))

both_databases = pytest.mark.parametrize("cloud", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    on_postgres = getattr(request, "param", "sqlite") == "postgres"
    url = request.getfixturevalue("postgres_url") if on_postgres else None
    async with image_cloud(tmp_path, url=url, rules=LOOPBACK, unified_limits=True) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: Cloud) -> Person:
    return cloud.person("alice")


async def usage(person: Person) -> dict[str, tuple[int, int]]:
    """Usage and limit of each resource, without `image_`."""
    answer = await person.get("/v2/info/usage")
    assert answer.status_code == 200, answer.text
    return {
        name.removeprefix("image_"): (each["usage"], each["limit"]) for name, each in answer.json()["usage"].items()
    }


async def begin(person: Person, image: dict[str, Any], **method: Any) -> Any:
    return await person.call("POST", f"/v2/images/{image['id']}/import", json={"method": method})


def check_refused(answer: Any, resource: str) -> None:
    assert (answer.status_code, resource in answer.json()["message"]) == (413, True), answer.text


async def test_usage_is_told_with_its_limits(cloud: Cloud, alice: Person) -> None:
    assert await usage(alice) == {
        "size_total": (0, -1), "stage_total": (0, -1), "count_total": (0, -1), "count_uploading": (0, -1),
    }
    cloud.identity.unified = {
        "image_size_total": 10, "image_stage_total": 9, "image_count_total": 8, "image_count_uploading": 7,
    }
    await alice.make(bytes(2 * MIB + 1))
    await alice.create()
    for _ in range(2):
        await alice.put(await alice.create(), bytes(MIB * 3 // 4), "stage")
    expected = {"size_total": (2, 10), "stage_total": (1, 9), "count_total": (4, 8), "count_uploading": (2, 7)}
    assert await usage(cloud.person("alice-reader")) == expected
    assert (await usage(cloud.person("bob")))["count_total"] == (0, 8)


async def test_without_quotas_no_usage_is_told(tmp_path: Path) -> None:
    async with image_cloud(tmp_path) as cloud:
        cloud.identity.unified = {"image_count_total": 0}
        alice = cloud.person("alice")
        await alice.make()
        assert (await alice.get("/v2/info/usage")).json() == {"usage": {}}


async def test_a_project_makes_no_more_images_than_it_may(cloud: Cloud, alice: Person) -> None:
    cloud.identity.unified = {"image_count_total": 1}
    image = await alice.create()
    check_refused(await alice.call("POST", "/v2/images", json={}), "image_count_total")
    assert len(await alice.names()) == 1
    await cloud.person("bob").create()
    await alice.call("DELETE", f"/v2/images/{image['id']}")
    await alice.create()


@both_databases
async def test_images_made_at_once_do_not_pass_the_limit(cloud: Cloud, alice: Person) -> None:
    cloud.identity.unified = {"image_count_total": 3}
    answers = await asyncio.gather(*(alice.call("POST", "/v2/images", json={}) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [413] * 5
    assert (await usage(alice))["count_total"] == (3, 3)


@pytest.mark.parametrize(("where", "resource"), [("file", "image_size_total"), ("stage", "image_stage_total")])
async def test_one_transfer_may_pass_a_size_and_the_next_is_refused(
    cloud: Cloud, alice: Person, where: str, resource: str
) -> None:
    cloud.identity.unified = {resource: 1}
    images = [await alice.create() for _ in range(3)]
    for image in images[:2]:
        assert (await alice.put(image, bytes(MIB), where)).status_code == 204
    check_refused(await alice.put(images[2], bytes(MIB), where), resource)
    assert (await alice.show(images[2]))["status"] == "queued"
    assert len(cloud.files()) == 2
    if where == "stage":
        assert (await alice.put(await alice.create(), b"data")).status_code == 204, "an upload stages nothing"
    await alice.call("DELETE", f"/v2/images/{images[0]['id']}")
    assert (await alice.put(images[2], bytes(MIB), where)).status_code == 204


@both_databases
@pytest.mark.spec("EMG-03")
@pytest.mark.parametrize(("where", "resource"), [("file", "image_size_total"), ("stage", "image_stage_total")])
async def test_of_transfers_at_once_only_one_passes_a_size(
    cloud: Cloud, alice: Person, where: str, resource: str
) -> None:
    cloud.identity.unified = {resource: 1}
    images, bodies = [await alice.create() for _ in range(4)], [Upload() for _ in range(4)]
    running = [asyncio.create_task(alice.put(*each, where)) for each in zip(images, bodies, strict=True)]
    for body in bodies:
        await body.send(bytes(MIB))
    assert (await usage(alice))["count_uploading"] == (4, -1)
    for body in bodies:
        body.end()
    answers = await asyncio.gather(*running)
    assert sorted(answer.status_code for answer in answers) == [204, 204, 413, 413]
    late = [image for image, answer in zip(images, answers, strict=True) if answer.status_code == 413]
    assert [(await alice.show(image))["status"] for image in late] == ["queued", "queued"]
    assert len(cloud.files()) == 2
    assert (await usage(alice))[resource.removeprefix("image_")] == (2, 1)


@both_databases
@pytest.mark.parametrize("where", ["file", "stage"])
async def test_no_more_data_is_under_way_than_may_be(cloud: Cloud, alice: Person, where: str) -> None:
    cloud.identity.unified = {"image_count_uploading": 2}
    images, bodies = [await alice.create() for _ in range(4)], [Upload() for _ in range(4)]
    running = [asyncio.create_task(alice.put(*each, where)) for each in zip(images, bodies, strict=True)]
    for body in bodies:
        await body.send(b"data")
    assert (await usage(alice))["count_uploading"] == (2, 2)
    statuses = [(await alice.show(image))["status"] for image in images]
    (busy, *_), (queued, *_) = ([image for image, status in zip(images, statuses, strict=True)
                                 if (status == "queued") is refused] for refused in (False, True))
    assert (await alice.put(busy, b"other")).status_code == 409, "that is no matter of quotas"
    for body in bodies:
        body.end()
    answers = await asyncio.gather(*running)
    assert sorted(answer.status_code for answer in answers) == [204, 204, 413, 413]
    # Uploads are over; what is staged is under way until it is imported.
    assert (await alice.put(queued, b"data", where)).status_code == (204 if where == "file" else 413)


@pytest.mark.spec("EMG-05")
async def test_an_import_of_staged_data_must_fit(cloud: Cloud, alice: Person) -> None:
    cloud.identity.unified = {"image_size_total": 2, "image_count_uploading": 1}
    await alice.make(bytes(MIB))
    image = await alice.create()
    await alice.put(image, bytes(2 * MIB), "stage")
    check_refused(await begin(alice, image, name="glance-direct"), "image_size_total")
    after = await alice.show(image)
    assert (after["status"], f"staged/{image['id']}" in cloud.files()) == ("uploading", True)
    cloud.identity.unified["image_size_total"] = 3
    assert (await begin(alice, image, name="glance-direct")).status_code == 202
    await alice.until(image, "active")
    assert await usage(alice) == {
        "size_total": (3, 3), "stage_total": (0, -1), "count_total": (2, -1), "count_uploading": (0, 1),
    }


@both_databases
@pytest.mark.spec("EMG-05")
async def test_of_two_imports_that_fit_alone_one_fails(
    cloud: Cloud, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.identity.unified = {"image_size_total": 1}
    images, digest, begun = [await alice.create() for _ in range(2)], ImageFiles.digest, threading.Event()

    def held(files: ImageFiles, path: Path, stopped: threading.Event) -> Received:
        assert begun.wait(20)
        return digest(files, path, stopped)

    monkeypatch.setattr(ImageFiles, "digest", held)
    for image in images:
        await alice.put(image, bytes(MIB), "stage")
        assert (await begin(alice, image, name="glance-direct")).status_code == 202
    assert (await usage(alice))["stage_total"] == (2, -1)
    begun.set()
    async with asyncio.timeout(20):
        while True:
            shown = [await alice.show(image) for image in images]
            if "importing" not in {image["status"] for image in shown}:
                break
            await asyncio.sleep(0.01)
    after = {image["status"]: image for image in shown}
    assert after.keys() == {"active", "queued"}
    assert after["queued"]["os_glance_failed_import"] == "file"
    (task,) = (await alice.get(f"/v2/images/{after['queued']['id']}/tasks")).json()["tasks"]
    assert "image_size_total" in task["message"]
    assert f"staged/{after['queued']['id']}" not in cloud.files()
    assert await usage(alice) == {
        "size_total": (1, 1), "stage_total": (0, -1), "count_total": (2, -1), "count_uploading": (0, -1),
    }


@pytest.mark.spec("EMG-05")
async def test_a_download_begins_only_within_all_limits(cloud: Cloud, alice: Person) -> None:
    await alice.make(bytes(2 * MIB))
    await alice.put(await alice.create(), bytes(2 * MIB), "stage")
    image = await alice.create()
    async with served(Starlette(routes=[Route("/image", lambda _: Response(bytes(MIB)))])) as port:
        method = {"name": "web-download", "uri": f"http://127.0.0.1:{port}/image"}
        for resource in ("image_size_total", "image_stage_total", "image_count_uploading"):
            cloud.identity.unified = {resource: 1}
            check_refused(await begin(alice, image, **method), resource)
            assert (await alice.show(image))["status"] == "queued"
            assert (await alice.get(f"/v2/images/{image['id']}/tasks")).json() == {"tasks": []}
        cloud.identity.unified = {"image_size_total": 2, "image_stage_total": 2, "image_count_uploading": 2}
        assert (await begin(alice, image, **method)).status_code == 202
        await alice.until(image, "active")
    assert (await usage(alice))["size_total"] == (3, 2)


@pytest.mark.spec("EMG-03")
async def test_staged_data_counts_on_after_a_restart(tmp_path: Path) -> None:
    async with image_cloud(tmp_path, unified_limits=True) as cloud:
        alice = cloud.person("alice")
        kept, broken = await alice.create(), await alice.create()
        for image in (kept, broken):
            await alice.put(image, bytes(MIB), "stage")
        # As a crash leaves it between the file and its record.
        image_id = schema.images.c.id
        await cloud.database.write(lambda conn: conn.execute(
            schema.images.update().where(image_id == broken["id"]).values(staged_size=None)))
    async with image_cloud(tmp_path, unified_limits=True) as cloud:
        alice = cloud.person("alice")
        assert (await alice.show(broken))["status"] == "queued"
        assert cloud.files() == [f"staged/{kept['id']}"]
        assert (await usage(alice))["stage_total"] == (1, -1)
        assert (await usage(alice))["count_uploading"] == (1, -1)


@pytest.mark.spec("EMG-03")
async def test_a_failed_upload_uses_nothing(cloud: Cloud, alice: Person) -> None:
    cloud.identity.unified = {"image_count_uploading": 1}
    for where, announced in (("file", "5"), ("stage", "5")):
        image = await alice.create()
        assert (await alice.put(image, b"1234", where, **{"X-OpenStack-Image-Size": announced})).status_code == 400
        assert (await usage(alice))["count_uploading"] == (0, 1)
    assert (await alice.put(image, b"1234")).status_code == 204


async def test_the_compute_service_is_told_over_quota(cloud: Cloud, alice: Person) -> None:
    async def data() -> AsyncIterator[bytes]:
        yield b"data"

    def new(number: int) -> NewImage:
        return NewImage(id=f"0000000{number}-0000-4000-8000-000000000000", name="snapshot", owner=ALICE,
                        disk_format="raw", container_format="bare", min_disk=0, min_ram=0, properties={})

    cloud.identity.unified = {"image_count_total": 1, "image_count_uploading": 0}
    await cloud.service.create(new(1))
    await cloud.service.create(new(1))  # again, after a crash
    with pytest.raises(OverQuota, match="image_count_total"):
        await cloud.service.create(new(2))
    with pytest.raises(OverQuota, match="image_count_uploading"):
        await cloud.service.upload(new(1).id, data())
    assert (await usage(alice))["count_total"] == (1, 1)


async def test_the_project_of_the_image_is_charged(cloud: Cloud, alice: Person) -> None:
    """Not that of an administrator who works on it."""
    cloud.identity.unified = {"image_count_total": 1}
    admin = cloud.person("admin")
    image = await admin.create(owner=ALICE)
    assert (await admin.create())["owner"] == ADMIN
    check_refused(await admin.call("POST", "/v2/images", json={"owner": ALICE}), "image_count_total")
    check_refused(await alice.call("POST", "/v2/images", json={}), "image_count_total")
    assert (await usage(alice))["count_total"] == (1, 1)
    cloud.identity.unified = {"image_count_uploading": 0}
    check_refused(await admin.put(image, b"data"), "image_count_uploading")
