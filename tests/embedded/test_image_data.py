"""Image data: uploads that succeed, fail, break off and crash; downloads."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from image_cloud import ADMIN, Cloud, Person, Upload, image_cloud, served

from kilonova.domain.errors import ServiceUnavailable
from kilonova.embedded.image import Limits
from kilonova.embedded.image.files import CHUNK

MIB = 1024 * 1024


@pytest.fixture
async def cloud(tmp_path):
    async with image_cloud(tmp_path, limits=Limits(keep_free=0, image_bytes=8 * MIB, virtual_bytes=1 << 30)) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: Cloud) -> Person:
    return cloud.person("alice")


@pytest.fixture
async def postgres_cloud(tmp_path, postgres_url):
    async with image_cloud(tmp_path, url=postgres_url) as cloud:
        yield cloud


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20)


def qcow2(*, backing: bytes = b"", size: int = MIB) -> bytes:
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 512 if backing else 0, len(backing), 16, size, 0, 1, 3 << 16,
                       1 << 16, 1, 0, 0) + struct.pack(">QQQII", 0, 0, 0, 4, 104)
    return head.ljust(512, b"\0") + backing.ljust(65536 * 4 - 512, b"\0")


@pytest.mark.spec("EMG-02", "EMG-28")
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_uploaded_image_is_active_with_its_hashes(cloud, alice, chunked):
    data = os.urandom(3 * CHUNK + 17)
    image = await alice.create()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start:start + 100_000]

    answer = await alice.put(image, pieces() if chunked else data)
    assert (answer.status_code, answer.content) == (204, b"")
    after = await alice.show(image)
    assert (after["status"], after["size"], after["virtual_size"]) == ("active", len(data), len(data))
    assert after["checksum"] == hashlib.md5(data).hexdigest()
    assert (after["os_hash_algo"], after["os_hash_value"]) == ("sha512", hashlib.sha512(data).hexdigest())
    downloaded = await alice.get(f"/v2/images/{image['id']}/file")
    assert downloaded.content == data
    assert downloaded.headers["content-type"] == "application/octet-stream"
    assert downloaded.headers["content-md5"] == after["checksum"]
    assert downloaded.headers["content-length"] == str(len(data))
    assert (await alice.put(image, b"again")).status_code == 409
    assert cloud.files() == [f"data/{image['id']}"]
    assert cloud.service.local_path(image["id"]).read_bytes() == data


@pytest.mark.spec("EMG-02", "EMG-03")
async def test_uploads_on_postgres(postgres_cloud):
    alice = postgres_cloud.person("alice")
    image = await alice.make(b"data", name="one")
    assert (image["status"], image["size"]) == ("active", 4)
    bad = await alice.create(disk_format="qcow2")
    assert (await alice.put(bad, b"no qcow2")).status_code == 400
    assert (await alice.show(bad))["status"] == "queued"
    await alice.call("DELETE", f"/v2/images/{image['id']}")
    assert postgres_cloud.files() == []


@pytest.mark.spec("EMG-04")
async def test_an_empty_image_is_active(alice):
    image = await alice.create(disk_format=None, container_format=None)
    assert (await alice.put(image, b"")).status_code == 204
    after = await alice.show(image)
    assert (after["status"], after["size"], after["checksum"]) == ("active", 0, hashlib.md5(b"").hexdigest())
    answer = await alice.get(f"/v2/images/{image['id']}/file")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize(("header", "status", "expected"), [
    ("bytes=0-3", 206, b"0123"),
    ("bytes=6-", 206, b"6789"),
    ("bytes=-3", 206, b"789"),
    ("bytes=8-100", 206, b"89"),
    ("bytes=-100", 206, b"0123456789"),
    ("bytes=10-", 416, None),
    ("bytes=-0", 416, None),
    ("bytes=4-2", 200, b"0123456789"),
    ("bytes=0-1,3-4", 200, b"0123456789"),
    ("pages=1-2", 200, b"0123456789"),
])
async def test_a_range_of_the_data_can_be_read(alice, header, status, expected):
    image = await alice.make(b"0123456789")
    answer = await alice.get(f"/v2/images/{image['id']}/file", headers={"Range": header})
    assert answer.status_code == status
    if expected is not None:
        assert answer.content == expected
    if status == 206:
        start = b"0123456789".index(expected)
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(expected) - 1}/10"


async def test_there_is_no_data_before_the_upload(alice):
    image = await alice.create()
    assert (await alice.get(f"/v2/images/{image['id']}/file")).status_code == 204
    assert (await alice.get("/v2/images/none/file")).status_code == 404


@pytest.mark.spec("EMG-03")
@pytest.mark.parametrize(("body", "data", "headers", "status", "reason"), [
    ({}, bytes(8 * MIB + 1), {}, 413, "limit"),
    ({}, b"1234", {"X-OpenStack-Image-Size": "5"}, 400, "not 5 as announced"),
    ({}, b"1234", {"X-OpenStack-Image-Size": "many"}, 400, "Invalid size"),
    ({}, b"1234", {"X-OpenStack-Image-Size": str(1 << 50)}, 413, "limit"),
    ({}, b"1234", {"Content-Type": "text/plain"}, 415, "octet-stream"),
    ({"disk_format": None}, b"1234", {}, 400, "disk_format"),
    ({"container_format": None}, b"1234", {}, 400, "container_format"),
    pytest.param({}, qcow2(), {}, 400, "contents are qcow2", marks=pytest.mark.spec("EMG-22")),
    pytest.param({"disk_format": "qcow2"}, b"raw", {}, 400, "contents are raw", marks=pytest.mark.spec("EMG-22")),
    pytest.param({"disk_format": "qcow2"}, qcow2(backing=b"/etc/shadow"), {}, 400, "backing file",
                 marks=pytest.mark.spec("EMG-22")),
    ({"disk_format": "qcow2"}, qcow2(size=1 << 31), {}, 400, "virtual size"),
])
async def test_a_refused_upload_leaves_a_queued_image_and_no_data(cloud, alice, body, data, headers, status, reason):
    image = await alice.create(**body)
    answer = await alice.put(image, data, **headers)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["message"]
    after = await alice.show(image)
    assert (after["status"], after["size"], after["checksum"]) == ("queued", None, None)
    assert cloud.files() == []


async def test_a_refused_image_can_be_uploaded_again(alice):
    image = await alice.create(disk_format="qcow2")
    assert (await alice.put(image, b"raw")).status_code == 400
    assert (await alice.put(image, qcow2())).status_code == 204
    assert (await alice.show(image))["virtual_size"] == MIB


async def test_what_is_in_other_containers_is_not_looked_at(alice):
    image = await alice.make(b"an archive", disk_format="vmdk", container_format="ova")
    assert (image["status"], image["virtual_size"]) == ("active", None)


@pytest.mark.spec("EMG-03")
async def test_a_full_disk_is_told_and_nothing_stays(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    await asyncio.to_thread(run, "mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk))
    try:
        async with image_cloud(disk, url="sqlite://", limits=Limits(keep_free=0)) as cloud:
            alice = cloud.person("alice")
            image = await alice.create()
            answer = await alice.put(image, os.urandom(6 * MIB))
            assert answer.status_code == 413
            assert "space" in answer.json()["message"]
            assert (await alice.show(image))["status"] == "queued"
            assert cloud.files() == []
            assert (await alice.put(image, os.urandom(MIB))).status_code == 204
    finally:
        await asyncio.to_thread(run, "umount", str(disk))


async def test_an_upload_leaves_the_reserve_of_the_disk_alone(tmp_path):
    free = os.statvfs(tmp_path)
    reserve = free.f_bavail * free.f_frsize + (1 << 40)
    async with image_cloud(tmp_path, limits=Limits(keep_free=reserve)) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        assert (await alice.put(image, b"data")).status_code == 413
        assert cloud.files() == []


async def test_the_data_of_a_project_has_a_limit(tmp_path):
    async with image_cloud(tmp_path, limits=Limits(keep_free=0, project_bytes=10)) as cloud:
        alice = cloud.person("alice")
        await alice.make(b"123456")
        image = await alice.create()
        assert (await alice.put(image, b"12345")).status_code == 413
        assert (await alice.show(image))["status"] == "queued"
        assert (await alice.put(image, b"1234")).status_code == 204
        other = await cloud.person("admin").make(b"1234567890")
        assert other["owner"] == ADMIN


async def test_two_uploads_cannot_exceed_the_limit_together(tmp_path):
    async with image_cloud(tmp_path, limits=Limits(keep_free=0, project_bytes=10)) as cloud:
        alice = cloud.person("alice")
        first, second = Upload(), Upload()
        images = [await alice.create(), await alice.create()]
        running = [asyncio.create_task(alice.put(image, body)) for image, body in
                   zip(images, (first, second), strict=True)]
        for body in (first, second):
            await body.send(b"123456")
        for body in (first, second):
            body.end()
        statuses = [answer.status_code for answer in await asyncio.gather(*running)]
        assert sorted(statuses) == [204, 413]
        assert len(cloud.files()) == 1


@pytest.mark.spec("EMG-10")
async def test_an_image_deleted_during_its_upload_leaves_nothing(cloud, alice):
    image, body = await alice.create(), Upload()
    running = asyncio.create_task(alice.put(image, body))
    await body.send(bytes(2 * CHUNK))
    assert (await alice.show(image))["status"] == "saving"
    assert (await alice.put(image, b"other")).status_code == 409
    assert (await alice.call("DELETE", f"/v2/images/{image['id']}")).status_code == 204
    assert (await alice.get(f"/v2/images/{image['id']}")).status_code == 404
    again = await alice.call("POST", "/v2/images", json={"id": image["id"]})
    assert again.status_code == 409, "an id is not used again while data for it still arrives"
    body.end()
    assert (await running).status_code == 404
    assert cloud.files() == []


@pytest.mark.spec("EMG-10")
async def test_an_image_deleted_while_its_data_is_staged_leaves_nothing(cloud, alice):
    image, body = await alice.create(), Upload()
    running = asyncio.create_task(alice.put(image, body, "stage"))
    await body.send(bytes(2 * CHUNK))
    await alice.call("DELETE", f"/v2/images/{image['id']}")
    body.end()
    assert (await running).status_code == 404
    assert cloud.files() == []


@pytest.mark.spec("EMG-03")
async def test_a_sender_that_goes_away_leaves_a_queued_image(cloud, alice):
    image = await alice.create()
    async with served(cloud.service.application()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"PUT /v2/images/{image['id']}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: alice\r\n"
                     f"Content-Type: application/octet-stream\r\nContent-Length: {4 * MIB}\r\n\r\n".encode())
        writer.write(bytes(2 * MIB))
        await writer.drain()
        await alice.until(image, "saving")
        writer.close()
        await alice.until(image, "queued")
        with contextlib.suppress(ConnectionError):
            await reader.read()
    assert cloud.files() == []


async def test_a_stalled_upload_is_given_up(cloud, alice, monkeypatch):
    monkeypatch.setattr("kilonova.embedded.image.uploads.STALLED", 0.05)
    monkeypatch.setattr("kilonova.embedded.image.uploads.DRAIN_LIMIT", 0.05)
    image, body = await alice.create(), Upload()
    running = asyncio.create_task(alice.put(image, body))
    await body.send(bytes(10))
    answer = await asyncio.wait_for(running, 20)
    assert answer.status_code == 400
    assert "stalled" in answer.json()["message"]
    assert cloud.files() == []
    assert (await alice.show(image))["status"] == "queued"


@pytest.mark.spec("EMG-03")
async def test_an_upload_ends_even_if_the_database_is_away(cloud, alice, monkeypatch):
    """The record goes back to queued once the database answers again, without a restart."""
    monkeypatch.setattr("kilonova.embedded.image.transfers.RETRY_PAUSE", 0.01)
    image, body = await alice.create(disk_format="qcow2"), Upload()
    running = asyncio.create_task(alice.put(image, body))
    await body.send(b"no qcow2")
    write, refused = cloud.database.write, []

    async def away(unit):
        if len(refused) < 3:
            refused.append(unit)
            raise ServiceUnavailable("The database does not answer.")
        return await write(unit)

    monkeypatch.setattr(cloud.database, "write", away)
    body.end()
    assert (await running).status_code == 400
    await alice.until(image, "queued")
    assert len(refused) == 3
    assert cloud.files() == []


@pytest.mark.spec("EMG-33")
async def test_an_upload_needs_constant_memory(tmp_path):
    size = 192 * MIB
    async with image_cloud(tmp_path, limits=Limits(keep_free=0)) as cloud:
        alice = cloud.person("alice")
        image = await alice.create()
        piece = os.urandom(65536)

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(size // len(piece)):
                yield piece

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert (await alice.put(image, pieces())).status_code == 204
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert (await alice.show(image))["size"] == size
        assert grown < 32 * MIB


async def test_a_download_outlives_the_deletion_of_its_image(cloud, alice):
    image = await alice.make(bytes(8 * MIB))
    async with served(cloud.service.application()) as port, httpx.AsyncClient(timeout=20) as http, http.stream(
        "GET", f"http://127.0.0.1:{port}/v2/images/{image['id']}/file", headers={"X-Auth-Token": "alice"}
    ) as answer:
        await alice.call("DELETE", f"/v2/images/{image['id']}")
        assert cloud.files() == []
        assert len(await answer.aread()) == 8 * MIB


SERVER = """
import asyncio, sys
from pathlib import Path
from image_cloud import image_cloud, served

async def main(directory):
    async with image_cloud(Path(directory)) as cloud, served(cloud.service.application()) as port:
        print(port, flush=True)
        await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.spec("EMG-03")
@pytest.mark.parametrize("where", ["file", "stage"])
async def test_a_crash_during_an_upload_is_swept_up_at_the_next_start(tmp_path, where):
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
    )
    try:
        assert server.stdout is not None
        port = int(await asyncio.wait_for(server.stdout.readline(), 30))
        async with httpx.AsyncClient(timeout=20) as http:
            url = f"http://127.0.0.1:{port}/v2/images"
            headers = {"X-Auth-Token": "alice", "Content-Type": "application/octet-stream"}
            formats = {"disk_format": "raw", "container_format": "bare"}
            image = (await http.post(url, headers={"X-Auth-Token": "alice"}, json=formats)).json()
            body = Upload()
            running = asyncio.create_task(http.put(f"{url}/{image['id']}/{where}", headers=headers, content=body))
            await body.send(bytes(2 * MIB))
            partial = tmp_path / "images" / "partial"
            async with asyncio.timeout(20):
                while True:
                    if any(file.stat().st_size for file in partial.iterdir()):
                        break
                    await asyncio.sleep(0.01)
            server.send_signal(signal.SIGKILL)
            await server.wait()
            body.end()
            await asyncio.gather(running, return_exceptions=True)
        assert list(partial.iterdir())
        async with image_cloud(tmp_path) as cloud:
            alice = cloud.person("alice")
            assert (await alice.show(image))["status"] == "queued"
            assert cloud.files() == []
            assert (await alice.put(image, b"data")).status_code == 204
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


@pytest.mark.spec("EMG-03")
async def test_data_without_an_image_is_swept_and_data_with_one_stays(tmp_path):
    async with image_cloud(tmp_path) as cloud:
        alice = cloud.person("alice")
        kept = await alice.make(b"data")
        deactivated = await alice.make(b"withheld")
        await alice.call("POST", f"/v2/images/{deactivated['id']}/actions/deactivate")
        staged = await alice.create()
        await alice.put(staged, b"staged", "stage")
        queued = await alice.create()
    root = tmp_path / "images"
    for stray in (f"data/{queued['id']}", "data/unknown", "staged/unknown", f"staged/{kept['id']}", "partial/x"):
        (root / stray).write_bytes(b"stray")
    async with image_cloud(tmp_path) as cloud:
        assert set(cloud.files()) == {f"data/{kept['id']}", f"data/{deactivated['id']}", f"staged/{staged['id']}"}
        assert (await cloud.person("alice").show(staged))["status"] == "uploading"


async def test_files_and_directories_are_private(cloud, alice):
    await alice.make(b"data")
    for path in [cloud.directory / "images", *(cloud.directory / "images").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
