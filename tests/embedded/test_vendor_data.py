"""What the operator tells guests: by the metadata service, and on config drives, from services that may fail."""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from kilonova.domain.errors import InvalidInput, ServiceUnavailable
from kilonova.hypervisor.guest import Guest, GuestMetadata
from kilonova.hypervisor.libvirt.daemon import SystemDaemon
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.images import ImageCache
from kilonova.metadata.service import MetadataService
from kilonova.metadata.vendor_data import VendorData, VendorDataOptions, vendor_data

UUID = "11111111-1111-4111-8111-111111111111"
METADATA = GuestMetadata(
    instance_uuid=UUID, name="one", hostname="one.example.org", project_id="p", flavor_name="small", user_data="eA==",
    metadata={"role": "web"}, image_ref="image", boot_roles="member,reader",
)
STATIC, DYNAMIC = "/openstack/latest/vendor_data.json", "/openstack/latest/vendor_data2.json"


class Vendor:
    """A service, and an identity service that gives tokens. silent: it takes requests and says nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None, Any]] = []
        self.status, self.answer = 200, b'{"licence": "abc"}'
        self.silent = False
        self.ended = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers, status, answer = {}, service.status, service.answer
                if self.path == "/v3/auth/tokens":
                    headers, status, answer = {"X-Subject-Token": "the-token"}, 201, b"{}"
                else:
                    service.asked.append((self.path, self.headers["X-Auth-Token"], body))
                    if service.silent:
                        service.ended.wait(30)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    service = Vendor()
    thread = threading.Thread(target=service.server.serve_forever)
    thread.start()
    yield service
    service.ended.set()
    service.server.shutdown()
    thread.join()
    service.server.server_close()


def options(vendor: Vendor, **fields: Any) -> VendorDataOptions:
    """Two services, of which the second is not there."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    targets = (f"licences@{vendor.url}/join?cell=1", f"gone@http://127.0.0.1:{port}/")
    return VendorDataOptions(**{"vendordata_dynamic_targets": targets, **fields})


@asynccontextmanager
async def guest(data: VendorData) -> AsyncIterator[httpx.AsyncClient]:
    """A client that the service takes for the guest."""

    async def instance_at(_network: str, _address: str) -> str:
        return UUID

    async def lookup(_instance: str) -> GuestMetadata:
        return METADATA

    async def keep(_instance: str, _password: str) -> bool:
        return False

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    service = MetadataService(instance_at, lookup, keep, data, address="127.0.0.1", port=port)
    await service.opened("net", "")
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        await service.close()


@pytest.mark.spec("BLD-83")
async def test_services_learn_of_a_guest_what_it_was_asked_for_with(vendor: Vendor, tmp_path: Path) -> None:
    (tmp_path / "static.json").write_text('{"support": "call us"}')
    (tmp_path / "password").write_text("s3cret\n")
    data = vendor_data(options(
        vendor, vendordata_jsonfile_path=str(tmp_path / "static.json"), auth_url=f"{vendor.url}/v3", username="nova",
        password_file=str(tmp_path / "password"), vendordata_dynamic_targets=(f"licences@{vendor.url}/join?cell=1",),
    ))
    async with guest(data) as client:
        assert (await client.get(STATIC)).json() == {"support": "call us"}
        assert vendor.asked == []
        answer = await client.get(DYNAMIC)
        assert answer.json() == {"static": {"support": "call us"}, "licences": {"licence": "abc"}}
        assert (await client.get("/openstack/2015-10-15/vendor_data2.json")).status_code == 404
    assert vendor.asked == [("/join?cell=1", "the-token", {
        "project-id": "p", "instance-id": UUID, "image-id": "image", "user-data": "eA==",
        "hostname": "one.example.org", "metadata": {"role": "web"}, "boot-roles": "member,reader",
    })]


@pytest.mark.parametrize(("status", "answer"), [(500, b"{}"), (403, b"no"), (200, b"<html>")])
async def test_a_service_that_fails_takes_its_part_alone(vendor: Vendor, status: int, answer: bytes) -> None:
    data = vendor_data(options(vendor))
    with capture_logs() as lines:
        async with guest(data) as client:
            assert (await client.get(DYNAMIC)).json() == {"licences": {"licence": "abc"}, "gone": {}}
            vendor.status, vendor.answer = status, answer
            assert (await client.get(DYNAMIC)).json() == {"licences": {}, "gone": {}}
    missing = [(line["service"], line["instance"]) for line in lines if line["event"] == "vendor data are missing"]
    assert sorted(missing) == [("gone", UUID), ("gone", UUID), ("licences", UUID)]


async def test_a_failure_may_be_fatal(vendor: Vendor) -> None:
    data = vendor_data(options(vendor, vendordata_dynamic_failure_fatal=True))
    async with guest(data) as client:
        assert (await client.get(DYNAMIC)).status_code == 503
        assert (await client.get(STATIC)).json() == {}
    with pytest.raises(ServiceUnavailable, match="The vendor data of gone are missing"):
        await data.of(METADATA)


async def test_a_silent_service_holds_nobody_up(vendor: Vendor) -> None:
    vendor.silent = True
    data = vendor_data(options(
        vendor, vendordata_dynamic_timeout=0.3,
        vendordata_dynamic_targets=tuple(f"s{number}@{vendor.url}/" for number in range(5)),
    ))
    began = time.monotonic()
    async with guest(data) as client:
        assert (await client.get(DYNAMIC)).json() == {f"s{number}": {} for number in range(5)}
    assert time.monotonic() - began < 5
    assert len(vendor.asked) == 5


async def test_config_drives_hold_them(vendor: Vendor, tmp_path: Path) -> None:
    described = Guest(
        uuid=str(uuid.uuid4()), name="one", project_id="p", user_id="u", vcpus=1, memory_mib=64, root_gib=0,
        config_drive=True, metadata=METADATA,
    )
    workers = ThreadPoolExecutor(4)
    cache = ImageCache(tmp_path / "images", None, None, workers)  # type: ignore[arg-type]  # there is no image
    drive = tmp_path / "instances" / described.uuid / "disk.config"
    for fatal in (True, False):
        data = vendor_data(options(vendor, vendordata_dynamic_failure_fatal=fatal))
        disks = GuestDisks(tmp_path, SystemDaemon(), cache, workers, data)
        disks.make_directories()
        if fatal:
            with pytest.raises(ServiceUnavailable, match="gone"):
                await disks.create(described, key=None)
            assert not drive.exists()
        else:
            await disks.create(described, key=None)
            assert b'{"licences":{"licence":"abc"},"gone":{}}' in drive.read_bytes()
    workers.shutdown()


@pytest.mark.parametrize("fields", [
    {"vendordata_dynamic_targets": ("http://192.0.2.1/",)},
    {"vendordata_dynamic_targets": ("one@ftp://192.0.2.1/",)},
    {"vendordata_dynamic_targets": ("static@http://192.0.2.1/",)},
    {"vendordata_dynamic_targets": ("one@http://192.0.2.1/", "one@http://192.0.2.2/")},
    {"vendordata_dynamic_timeout": 0.0},
    {"vendordata_dynamic_timeout": 9.0},
    {"vendordata_jsonfile_path": "/nonexistent/file"},
    {"vendordata_jsonfile_path": "/etc/hostname"},
    {"vendordata_dynamic_targets": ("one@http://192.0.2.1/",), "username": "nova"},
])  # fmt: skip
def test_options_that_mean_nothing_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="vendor_data"):
        vendor_data(VendorDataOptions(**fields))
