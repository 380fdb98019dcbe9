"""The clients that people use, against the image service on a real port."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import openstack
import pytest
from image_cloud import BOB, Cloud, image_cloud, served
from keystone_stand_in import stand_in_keystone
from openstack.connection import Connection
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.embedded.image import ImportRules, Limits

T = TypeVar("T")
DATA = os.urandom(2_500_000)


class Prefixed:
    """Serves exactly the prefix of an application, which a Mount leaves out."""

    def __init__(self, application: ASGIApp, prefix: str) -> None:
        self._application = application
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application({**scope, "root_path": self._prefix}, receive, send)


@dataclass
class Region:
    """A cloud of two services on one port."""

    cloud: Cloud
    root: str

    def connect(self, user: str) -> Connection:
        return openstack.connect(
            auth_url=f"{self.root}/identity/v3", username=user, password="any", project_name=user,
            user_domain_name="Default", project_domain_name="Default", region_name="RegionOne",
            load_yaml_config=False, load_envvars=False,
        )

    def cli(self, *arguments: str) -> Any:
        """Run `openstack ...` as alice; returns its JSON output."""
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.cloud.directory), "OS_AUTH_URL": f"{self.root}/identity/v3",
            "OS_USERNAME": "alice", "OS_PASSWORD": "any", "OS_PROJECT_NAME": "alice", "OS_IDENTITY_API_VERSION": "3",
            "OS_USER_DOMAIN_NAME": "Default", "OS_PROJECT_DOMAIN_NAME": "Default", "OS_REGION_NAME": "RegionOne",
        }
        done = subprocess.run([str(Path(sys.executable).with_name("openstack")), *arguments], env=environment,
                              capture_output=True, timeout=120, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "json" in arguments else done.stdout


@asynccontextmanager
async def region_in(directory: Path):
    rules = ImportRules(ports=(), networks=("127.0.0.0/8",))
    async with image_cloud(directory, limits=Limits(keep_free=0), rules=rules) as cloud:
        region = Region(cloud, "")
        application = Starlette(routes=[
            Mount("/identity", stand_in_keystone(lambda: region.root, ("glance", "image", "/image"))),
            Route("/image", Prefixed(cloud.service.application(), "/image")),
            Mount("/image", cloud.service.application()),
            Route("/mirror", lambda request: Response(DATA)),
        ])
        async with served(application) as port:
            region.root = f"http://127.0.0.1:{port}"
            yield region


@pytest.fixture
async def region(tmp_path):
    async with region_in(tmp_path) as region:
        yield region


async def in_thread(work: Callable[[], T]) -> T:
    return await asyncio.wait_for(asyncio.to_thread(work), 240)


@pytest.mark.spec("EMG-02", "EMG-07", "EMG-28", "EMI-15", "EMI-16")
async def test_the_command_line_manages_images(region, tmp_path):
    source, target = tmp_path / "disk.raw", tmp_path / "copy.raw"
    source.write_bytes(DATA)

    def work() -> None:
        made = region.cli("image", "create", "web", "--file", str(source), "--disk-format", "raw", "--property",
                          "hw_disk_bus=virtio", "--tag", "t1", "--min-disk", "1", "-f", "json")
        assert (made["status"], made["size"]) == ("active", len(DATA))
        assert [image["Name"] for image in region.cli("image", "list", "-f", "json")] == ["web"]
        region.cli("image", "set", "web", "--name", "renamed", "--property", "os_type=linux", "--min-ram", "64")
        region.cli("image", "unset", "renamed", "--property", "hw_disk_bus", "--tag", "t1")
        shown = region.cli("image", "show", "renamed", "-f", "json")
        assert (shown["min_ram"], shown["min_disk"], shown["tags"]) == (64, 1, [])
        assert shown["properties"]["os_type"] == "linux"
        assert "hw_disk_bus" not in shown["properties"]
        region.cli("image", "save", "renamed", "--file", str(target))
        assert target.read_bytes() == DATA
        region.cli("image", "delete", "renamed")
        assert region.cli("image", "list", "-f", "json") == []

    await in_thread(work)
    assert region.cloud.files() == []


@pytest.mark.spec("EMG-05", "EMG-06", "EMG-15", "EMG-20", "EMG-28")
async def test_the_sdk_manages_images(region, tmp_path):
    source = tmp_path / "disk.raw"
    source.write_bytes(DATA)

    def work() -> None:
        image_api = region.connect("alice").image
        image = image_api.create_image("sdk", filename=str(source), disk_format="raw", container_format="bare",
                                       wait=True, timeout=60, validate_checksum=True)
        assert image.status == "active"
        assert image.hash_value == hashlib.sha512(DATA).hexdigest()
        assert image_api.find_image("sdk").id == image.id
        assert image_api.find_image("sd") is None
        assert image_api.download_image(image).content == DATA
        image_api.update_image(image, name="hidden", is_hidden=True, extra="x")
        found = image_api.find_image("hidden")
        assert (found.id, found.properties["extra"]) == (image.id, "x")
        assert [other.id for other in image_api.images(limit=1, is_hidden=True)] == [image.id]
        image_api.add_tag(image, "t")
        assert image_api.get_image(image).tags == ["t"]
        assert set(image_api.get_import_info().import_methods["value"]) == {
            "glance-direct", "web-download"}
        assert [store.id for store in image_api.stores()] == ["file"]
        assert image_api.get_image_schema().properties["disk_format"]["enum"]
        image_api.deactivate_image(image)
        image_api.reactivate_image(image)
        image_api.delete_image(image)

    await in_thread(work)


@pytest.mark.spec("EMG-05", "EMG-13", "EMI-07")
async def test_the_sdk_imports_shares_and_pages(region, tmp_path):
    source = tmp_path / "disk.raw"
    source.write_bytes(DATA)
    formats = {"disk_format": "raw", "container_format": "bare"}

    def work() -> None:
        alice, bob = region.connect("alice").image, region.connect("bob").image
        fetched = alice.create_image("fetched", **formats)
        assert fetched.status == "queued"
        alice.import_image(fetched, method="web-download", uri=f"{region.root}/mirror")
        alice.wait_for_status(fetched, "active", interval=0.05, wait=30)
        staged = alice.create_image("staged", filename=str(source), use_import=True, **formats)
        staged = alice.wait_for_status(staged, "active", interval=0.05, wait=30)
        assert staged.hash_value == hashlib.sha512(DATA).hexdigest()

        alice.add_member(fetched, member_id=BOB)
        assert list(bob.images()) == []
        bob.update_member(BOB, fetched, status="accepted")
        assert [image.name for image in bob.images()] == ["fetched"]
        assert [(member.member_id, member.status) for member in alice.members(fetched)] == [(BOB, "accepted")]
        alice.remove_member(BOB, fetched)

        for number in range(3):
            alice.create_image(f"more-{number}", **formats)
        assert [image.name for image in alice.images(limit=2, sort="name:asc")] == [
            "fetched", "more-0", "more-1", "more-2", "staged"]

    await in_thread(work)
