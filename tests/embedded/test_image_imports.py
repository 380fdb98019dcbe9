"""Imports: staged data, data from the web, and where the service refuses to fetch from."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
from contextlib import asynccontextmanager
from typing import Any

import pytest
from image_cloud import Cloud, Person, image_cloud, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.image import ImportRules, Limits
from kilonova.embedded.image.import_rules import check_address, check_uri
from kilonova.embedded.image.import_tasks import KEPT_PER_IMAGE

DATA = os.urandom(3_000_000)
LOOPBACK = ImportRules(ports=(), networks=("127.0.0.0/8",))


class Mirror:
    """A web server with an image, and with the ways in which web servers fail."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.asked = asyncio.Event()
        self.port = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def application(self) -> Starlette:
        return Starlette(routes=[
            Route("/image", lambda request: Response(DATA)),
            Route("/moved", lambda request: RedirectResponse("/image")),
            Route("/loop", lambda request: RedirectResponse("/loop")),
            Route("/away", lambda request: RedirectResponse("http://169.254.169.254/latest/meta-data/")),
            Route("/to-file", lambda request: RedirectResponse("file:///etc/passwd")),
            Route("/broken", self._broken),
            Route("/slow", self._slow),
        ])

    async def _broken(self, request: Request) -> Response:
        async def some() -> Any:
            yield DATA[:100]

        return StreamingResponse(some(), headers={"Content-Length": str(len(DATA))})

    async def _slow(self, request: Request) -> Response:
        async def slowly() -> Any:
            yield DATA[:2_000_000]
            self.asked.set()
            await self.released.wait()
            yield DATA[2_000_000:]

        return StreamingResponse(slowly())


@asynccontextmanager
async def serving():
    mirror = Mirror()
    async with served(mirror.application()) as mirror.port:
        try:
            yield mirror
        finally:
            mirror.released.set()


@pytest.fixture
async def mirror():
    async with serving() as mirror:
        yield mirror


@pytest.fixture
async def cloud(tmp_path):
    async with image_cloud(tmp_path, rules=LOOPBACK, limits=Limits(keep_free=0, image_bytes=4_000_000)) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: Cloud) -> Person:
    return cloud.person("alice")


async def begin(person: Person, image: dict[str, Any], **method: Any) -> Any:
    return await person.call("POST", f"/v2/images/{image['id']}/import", json={"method": method})


async def last_task(person: Person, image: dict[str, Any]) -> dict[str, Any]:
    return (await person.get(f"/v2/images/{image['id']}/tasks")).json()["tasks"][-1]


async def task_until(person: Person, image: dict[str, Any], status: str) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            task = await last_task(person, image)
            if task["status"] == status:
                return task
            await asyncio.sleep(0.01)


@pytest.mark.spec("EMG-05", "EMG-19")
async def test_staged_data_becomes_the_image(cloud, alice):
    image = await alice.create()
    assert (await alice.get(f"/v2/images/{image['id']}/tasks")).json() == {"tasks": []}
    assert (await alice.put(image, DATA, "stage")).status_code == 204
    staged = await alice.show(image)
    assert (staged["status"], staged["size"], "stores" in staged) == ("uploading", None, False)
    assert cloud.files() == [f"staged/{image['id']}"]
    assert (await alice.put(image, b"again", "stage")).status_code == 409
    assert (await alice.put(image, b"again")).status_code == 409
    assert (await begin(alice, image, name="glance-direct")).status_code == 202
    after = await alice.until(image, "active")
    assert (after["size"], after["os_hash_value"]) == (len(DATA), hashlib.sha512(DATA).hexdigest())
    assert after["stores"] == "file"
    task = await task_until(alice, image, "success")
    assert (task["image_id"], task["type"], task["message"]) == (image["id"], "api_image_import", "")
    assert (await alice.get(f"/v2/tasks/{task['id']}")).json() == task
    assert [other["id"] for other in (await alice.get("/v2/tasks")).json()["tasks"]] == [task["id"]]
    assert (await cloud.person("bob").get(f"/v2/tasks/{task['id']}")).status_code == 404
    assert (await cloud.person("bob").get("/v2/tasks")).json()["tasks"] == []
    assert cloud.files() == [f"data/{image['id']}"]


@pytest.mark.spec("EMG-05")
async def test_imports_on_postgres(tmp_path, postgres_url):
    async with image_cloud(tmp_path, url=postgres_url) as cloud:
        alice = cloud.person("alice")
        image = await alice.create(disk_format="qcow2")
        for _ in range(KEPT_PER_IMAGE + 2):
            assert (await alice.put(image, b"no qcow2", "stage")).status_code == 204
            assert (await begin(alice, image, name="glance-direct")).status_code == 202
            await alice.until(image, "queued")
        await task_until(alice, image, "failure")
        assert len((await alice.get(f"/v2/images/{image['id']}/tasks")).json()["tasks"]) == KEPT_PER_IMAGE
        good = await alice.create()
        await alice.put(good, DATA, "stage")
        await begin(alice, good, name="glance-direct")
        await alice.until(good, "active")
        await task_until(alice, good, "success")
        assert cloud.files() == [f"data/{good['id']}"]


@pytest.mark.spec("EMG-05")
@pytest.mark.parametrize("path", ["/image", "/moved"])
async def test_an_image_is_fetched_from_the_web(cloud, alice, mirror, path):
    image = await alice.create()
    assert (await begin(alice, image, name="web-download", uri=mirror.url(path))).status_code == 202
    after = await alice.until(image, "active")
    assert after["checksum"] == hashlib.md5(DATA).hexdigest()
    assert after["os_glance_failed_import"] == ""
    assert after["os_glance_importing_to_stores"] == ""
    await task_until(alice, image, "success")
    assert cloud.files() == [f"data/{image['id']}"]


@pytest.mark.spec("EMG-05")
@pytest.mark.parametrize(("path", "reason"), [
    ("/nothing", "answered 404"),
    ("/broken", "failed|broke off"),
    ("/loop", "redirects more than"),
    ("/away", "address is not allowed"),
    ("/to-file", "directory is not allowed"),
])
async def test_a_failed_download_gives_the_image_back(cloud, alice, mirror, path, reason):
    image = await alice.create()
    assert (await begin(alice, image, name="web-download", uri=mirror.url(path))).status_code == 202
    task = await task_until(alice, image, "failure")
    assert any(word in task["message"] for word in reason.split("|")), task["message"]
    after = await alice.show(image)
    assert (after["status"], after["os_glance_failed_import"]) == ("queued", "file")
    assert cloud.files() == []
    assert (await begin(alice, image, name="web-download", uri=mirror.url("/image"))).status_code == 202
    await alice.until(image, "active")


async def test_a_server_that_is_not_there_fails_the_import(alice):
    image = await alice.create()
    await begin(alice, image, name="web-download", uri="http://127.0.0.1:1/image")
    assert "cannot be reached" in (await task_until(alice, image, "failure"))["message"]


async def test_a_download_keeps_to_the_size_limit(cloud, mirror, tmp_path):
    async with image_cloud(tmp_path / "small", url="sqlite://", rules=LOOPBACK,
                           limits=Limits(keep_free=0, image_bytes=1000)) as small:
        alice = small.person("alice")
        image = await alice.create()
        await begin(alice, image, name="web-download", uri=mirror.url("/image"))
        assert "limit of 1000 bytes" in (await task_until(alice, image, "failure"))["message"]
        assert small.files() == []


@pytest.mark.spec("EMG-22")
async def test_imported_data_must_be_what_is_declared(cloud, alice, mirror):
    image = await alice.create(disk_format="qcow2")
    await begin(alice, image, name="web-download", uri=mirror.url("/image"))
    assert "declared as qcow2" in (await task_until(alice, image, "failure"))["message"]
    await alice.put(image, b"no qcow2", "stage")
    await begin(alice, image, name="glance-direct")
    after = await alice.until(image, "queued")
    assert after["os_glance_failed_import"] == "file"
    await task_until(alice, image, "failure")
    assert cloud.files() == []


@pytest.mark.spec("EMG-05", "EMG-06", "EMG-25")
async def test_an_import_that_cannot_begin_is_refused(cloud, alice, mirror):
    image = await alice.create()
    for method, status in (
        ({"name": "glance-direct"}, 409),
        ({"name": "copy-image"}, 400),
        ({"name": "glance-download"}, 400),
        ({}, 400),
        ({"name": "web-download"}, 400),
        ({"name": "web-download", "uri": "ftp://mirror.test/image"}, 400),
    ):
        assert (await begin(alice, image, **method)).status_code == status, method
    path = f"/v2/images/{image['id']}/import"
    assert (await alice.call("POST", path, json={"method": "web-download"})).status_code == 400
    body = {"method": {"name": "web-download", "uri": mirror.url("/image")}}
    assert (await alice.call("POST", path, json=body | {"stores": ["elsewhere"]})).status_code == 400
    assert (await cloud.person("bob").call("POST", path, json=body)).status_code == 404
    shapeless = await alice.create(disk_format=None)
    assert (await begin(alice, shapeless, **body["method"])).status_code == 400
    active = await alice.make()
    assert (await begin(alice, active, **body["method"])).status_code == 409
    assert (await alice.call("POST", path, json=body | {"stores": ["file"]})).status_code == 202
    await alice.until(image, "active")


@pytest.mark.spec("EMG-10")
async def test_an_image_deleted_during_its_import_leaves_nothing(cloud, alice, mirror):
    image = await alice.create()
    await begin(alice, image, name="web-download", uri=mirror.url("/slow"))
    await asyncio.wait_for(mirror.asked.wait(), 20)
    assert (await alice.show(image))["status"] == "importing"
    assert (await alice.call("DELETE", f"/v2/images/{image['id']}")).status_code == 204
    mirror.released.set()
    async with asyncio.timeout(20):
        while True:
            if cloud.files() == []:
                break
            await asyncio.sleep(0.01)
    assert (await alice.get(f"/v2/images/{image['id']}")).status_code == 404


@pytest.mark.spec("EMG-05")
async def test_an_interrupted_import_goes_on_after_a_restart(tmp_path, mirror):
    async with image_cloud(tmp_path, rules=LOOPBACK) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        await begin(alice, image, name="web-download", uri=mirror.url("/slow"))
        await asyncio.wait_for(mirror.asked.wait(), 20)
    mirror.released.set()
    async with image_cloud(tmp_path, rules=LOOPBACK) as cloud:
        alice = cloud.person("alice")
        assert (await alice.until(image, "active"))["size"] == len(DATA)
        await task_until(alice, image, "success")
        assert cloud.files() == [f"data/{image['id']}"]


@pytest.mark.spec("EMG-05")
async def test_a_crash_between_data_and_record_repeats_the_import(tmp_path, monkeypatch):
    """The data is in place but the process ends before the record says so."""
    async with image_cloud(tmp_path) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        await alice.put(image, DATA, "stage")
        reached, never = asyncio.Event(), asyncio.Event()
        write = cloud.database.write

        async def crash_at_activation(unit):
            if (tmp_path / "images" / "data" / image["id"]).exists():
                reached.set()
                await never.wait()
            return await write(unit)

        monkeypatch.setattr(cloud.database, "write", crash_at_activation)
        await begin(alice, image, name="glance-direct")
        await asyncio.wait_for(reached.wait(), 20)
    assert (tmp_path / "images" / "data" / image["id"]).exists()
    async with image_cloud(tmp_path) as cloud:
        alice = cloud.person("alice")
        assert (await alice.until(image, "active"))["size"] == len(DATA)
        await task_until(alice, image, "success")
        assert cloud.files() == [f"data/{image['id']}"]


@pytest.mark.spec("EMG-26")
async def test_a_location_is_fetched_and_its_hash_checked(cloud, alice, mirror):
    service = cloud.person("service")
    good = hashlib.sha512(DATA).hexdigest()
    image = await alice.create(visibility="community")
    path = f"/v2/images/{image['id']}/locations"

    def body(value: str, algorithm: str = "sha512") -> dict[str, Any]:
        return {"url": mirror.url("/image"),
                "validation_data": {"os_hash_algo": algorithm, "os_hash_value": value}}

    assert (await alice.call("POST", path, json=body("00" * 64))).status_code == 202
    assert "hash" in (await task_until(alice, image, "failure"))["message"]
    assert (await alice.show(image))["status"] == "queued"
    for wrong in (body("00"), body(good, "md5"), {"url": 5}, {}):
        assert (await alice.call("POST", path, json=wrong)).status_code == 400
    answer = await alice.call("POST", path, json=body(good.upper()))
    assert (answer.status_code, answer.json()["status"]) == (202, "importing")
    assert (await alice.until(image, "active"))["os_hash_value"] == good

    assert (await alice.get(path)).status_code == 403
    listed = (await service.get(path)).json()
    assert [location["url"] for location in listed] == [cloud.service.local_path(image["id"]).as_uri()]
    assert (await service.call("POST", path, json=body(good))).status_code == 403


async def test_the_last_copy_stays_in_the_store(alice):
    image = await alice.make()
    assert (await alice.call("DELETE", f"/v2/stores/file/{image['id']}")).status_code == 403
    assert (await alice.call("DELETE", f"/v2/stores/other/{image['id']}")).status_code == 404


async def test_files_are_read_only_below_allowed_directories(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "image").write_bytes(b"from a file")
    (allowed / "way-out").symlink_to("/etc/passwd")
    os.mkfifo(allowed / "pipe")
    async with image_cloud(tmp_path, rules=ImportRules(directories=(allowed,))) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        for refused in ("/etc/passwd", f"{allowed}/../../etc/passwd", f"{allowed}/way-out", f"{allowed}-not/image"):
            assert (await begin(alice, image, name="web-download", uri=f"file://{refused}")).status_code == 400
        assert (await begin(alice, image, name="web-download", uri=f"file://{allowed}/pipe")).status_code == 202
        assert "regular file" in (await task_until(alice, image, "failure"))["message"]
        assert (await begin(alice, image, name="web-download", uri=f"file://{allowed}/image")).status_code == 202
        assert (await alice.until(image, "active"))["size"] == len(b"from a file")


@pytest.mark.parametrize("uri", [
    "", "image", "ftp://a.test/x", "gopher://a.test/", "http://", "http:///x", "http://user:pw@a.test/", "file:///x",
    "http://a.test:22/", "http://a.test:8774/", "http://a.test:x/", "http://a.test/a b", "http://a.test/\r\nX: y",
    "http://[::1/", "file://other.test/x", "file://x",
])
def test_uris_outside_the_default_rules_are_refused(uri):
    with pytest.raises(InvalidInput):
        check_uri(uri, ImportRules())


@pytest.mark.parametrize("uri", ["http://a.test/x?y=1", "https://a.test:443/x", "HTTP://a.test"])
def test_ordinary_uris_are_allowed(uri):
    check_uri(uri, ImportRules())


@pytest.mark.parametrize("address", [
    "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "169.254.169.254", "::ffff:169.254.169.254", "fe80::1",
    "0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "fd00:ec2::254", "100.100.100.200",
])
def test_addresses_that_only_this_machine_reaches_are_refused(address):
    with pytest.raises(InvalidInput):
        check_address(ipaddress.ip_address(address), ImportRules())


def test_other_addresses_and_allowed_networks_are_not_refused():
    for address in ("192.0.2.1", "10.0.0.5", "93.184.216.34", "2001:db8::1"):
        check_address(ipaddress.ip_address(address), ImportRules())
    check_address(ipaddress.ip_address("127.0.0.1"), LOOPBACK)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0177.0.0.1", "2130706433", "[::1]", "0"])
async def test_names_and_spellings_of_this_machine_are_refused(tmp_path, mirror, host):
    async with image_cloud(tmp_path, rules=ImportRules(ports=())) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        await begin(alice, image, name="web-download", uri=f"http://{host}:{mirror.port}/image")
        task = await task_until(alice, image, "failure")
        assert "not allowed" in task["message"], task["message"]
