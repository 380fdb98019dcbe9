"""Rebuilding a server: what is accepted, what is answered, and what is refused."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from compute_cloud import CIRROS, PROJECT, ComputeCloud, compute_cloud, link

from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.quota_check import Limits
from kilonova.db import keypairs
from kilonova.db.keypairs import Keypair
from kilonova.domain.image import Image
from kilonova.domain.instance import InjectedFile, Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.rebuild import RebuildServer

GIB = 1 << 30


async def ask(
    cloud: ComputeCloud, server: Instance, version: int = 1, as_: str = "member", **fields: Any
) -> httpx.Response:
    body = {"rebuild": {"imageRef": CIRROS, **fields}}
    return await cloud.post(f"/servers/{server.uuid}/action", body, version=f"2.{version}", as_=as_)


def asked(cloud: ComputeCloud) -> RebuildServer:
    name, _, request = cloud.compute.asked[-1]
    assert name == "rebuild"
    assert isinstance(request, RebuildServer)
    return request


async def refused(cloud: ComputeCloud, server: Instance, code: int, version: int = 1, **fields: Any) -> str:
    answer = await ask(cloud, server, version, **fields)
    assert answer.status_code == code, answer.text
    assert cloud.compute.asked == []
    (fault,) = answer.json().values()
    message: str = fault["message"]
    return message


@pytest.mark.spec("API-126", "API-447", "API-449", "API-484")
async def test_answer(cloud: ComputeCloud) -> None:
    server = await cloud.boot(metadata={"a": "1"}, key_name="mine", user_data="eA==")
    answer = await ask(cloud, server)
    assert answer.status_code == 202
    assert answer.headers["location"] == f"http://cloud.test/compute/v2.1/servers/{server.uuid}"
    shown = answer.json()["server"]
    assert (shown["id"], shown["status"], shown["metadata"]) == (server.uuid, "REBUILD", {"a": "1"})
    assert set(shown) == {
        "id", "name", "status", "tenant_id", "user_id", "created", "updated", "hostId", "accessIPv4", "accessIPv6",
        "addresses", "image", "flavor", "links", "metadata", "OS-DCF:diskConfig", "progress", "adminPass",
    }
    assert re.fullmatch(r"[a-zA-Z0-9]{12}", shown["adminPass"])
    assert asked(cloud).admin_password == shown["adminPass"]
    assert link(shown, "self").endswith(server.uuid)
    assert (await cloud.stored(server.uuid)).task_state is TaskState.REBUILDING


@pytest.mark.spec("API-417", "API-431", "API-448", "API-449", "API-554", "API-557", "API-575")
async def test_answer_by_version(cloud: ComputeCloud) -> None:
    async def shown(version: int) -> dict[str, Any]:
        server = await cloud.boot(key_name="mine", user_data="eA==")
        found: dict[str, Any] = (await ask(cloud, server, version, as_="admin")).json()["server"]
        return found

    assert "key_name" not in await shown(53)
    at_54 = await shown(54)
    assert (at_54["key_name"], "user_data" in at_54) == ("mine", False)
    assert (await shown(57))["user_data"] == "eA=="
    reduced, full = await shown(74), await shown(75)
    assert (reduced["server_groups"], reduced["locked_reason"]) == ([], None)
    assert "OS-EXT-STS:task_state" not in reduced
    assert (full["OS-EXT-STS:task_state"], full["key_name"], full["user_data"]) == ("rebuilding", "mine", "eA==")
    assert "OS-EXT-SRV-ATTR:user_data" not in full
    assert full["OS-EXT-SRV-ATTR:host"] == "host-1"


@pytest.mark.spec("API-447")
async def test_password_option_off() -> None:
    async with compute_cloud(options=ApiOptions(enable_instance_password=False)) as cloud:
        answer = await ask(cloud, await cloud.boot(), adminPass="secret")
        assert "adminPass" not in answer.json()["server"]


async def test_a_kernel_that_is_not_there_is_refused(cloud: ComputeCloud) -> None:
    image = cloud.images.add(properties={"kernel_id": "nowhere"})
    answer = await ask(cloud, await cloud.boot(), imageRef=image.id)
    assert answer.status_code == 400
    assert "nowhere" in answer.json()["badRequest"]["message"]


@pytest.mark.spec("API-616", "API-126", "API-519", "API-590", "RBD-07")
async def test_another_image_and_new_names(cloud: ComputeCloud) -> None:
    cloud.images.add(id="k", disk_format="aki")
    image = cloud.images.add(name="other", min_ram=64, properties={"kernel_id": "k", "hw_disk_bus": "scsi"})
    server = await cloud.boot(
        image=cloud.images.images[CIRROS], system_metadata={"image_hw_vif_model": "e1000", "kept": "x"},
        metadata={"a": "1"},
    )
    answer = await ask(
        cloud, server, 90, imageRef=image.id, name="new", description=None, hostname="new-host",
        accessIPv4="192.0.2.7", accessIPv6="2001:db8::7", metadata={"b": "2"}, preserve_ephemeral="true",
        adminPass="secret", **{"OS-DCF:diskConfig": "MANUAL"},
    )
    shown = answer.json()["server"]
    assert (shown["adminPass"], shown["image"]["id"], shown["name"]) == ("secret", image.id, "new")
    stored = await cloud.stored(server.uuid)
    assert (stored.image, stored.image_ref, stored.kernel_id, stored.ramdisk_id) == (image, image.id, "k", "")
    assert (stored.display_name, stored.display_description, stored.hostname) == ("new", None, "new-host")
    assert (stored.access_ip_v4, stored.access_ip_v6) == ("192.0.2.7", "2001:db8::7")
    assert (stored.metadata, stored.auto_disk_config) == ({"b": "2"}, False)
    assert stored.system_metadata == {
        "kept": "x", "image_min_ram": "64", "image_min_disk": "0", "image_disk_format": "qcow2",
        "image_container_format": "bare", "image_kernel_id": "k", "image_hw_disk_bus": "scsi",
    }
    request = asked(cloud)
    assert (request.keep_ephemeral, request.admin_password) == (True, "secret")
    assert request.before.image == cloud.images.images[CIRROS]


@pytest.mark.spec("API-616", "API-554", "API-557", "API-563", "API-442")
async def test_what_is_left_out_stays_and_null_removes(cloud: ComputeCloud) -> None:
    public = Keypair(user_id="user-of-member", name="mine", public_key="ssh-rsa AAAA", fingerprint="aa")
    await cloud.cells.api.write(lambda conn: keypairs.create(conn, public))
    given = {"key_name": "old", "key_data": "ssh-rsa OLD", "user_data": "eA==", "trusted_certs": ("one",)}

    async def made(**fields: Any) -> tuple[Any, ...]:
        server = await cloud.boot(**given)
        assert (await ask(cloud, server, 63, **fields)).status_code == 202
        stored = await cloud.stored(server.uuid)
        return stored.key_name, stored.key_data, stored.user_data, stored.trusted_certs

    assert await made() == ("old", "ssh-rsa OLD", "eA==", ("one",))
    assert await made(key_name=None, user_data=None, trusted_image_certificates=None) == (None,) * 4
    assert await made(key_name="mine", user_data="eQ==", trusted_image_certificates=["a", "b"]) == (
        "mine", "ssh-rsa AAAA", "eQ==", ("a", "b"))


@pytest.mark.spec("API-616", "BLD-04")
async def test_files(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    contents = base64.b64encode(b"hello").decode()
    file = {"path": "/etc/motd", "contents": contents}
    assert "personality" in await refused(cloud, server, 400, 57, personality=[file])
    assert (await ask(cloud, server, 56, personality=[file])).status_code == 202
    assert asked(cloud).files == (InjectedFile("/etc/motd", contents),)


@pytest.mark.spec("RBD-26")
async def test_files_that_do_not_decode(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    await refused(cloud, server, 400, personality=[{"path": "/etc/motd", "contents": "not base64!"}])


@pytest.mark.spec("API-616")
@pytest.mark.parametrize(("version", "field"), [
    (18, {"description": "x"}), (53, {"key_name": "k"}), (56, {"user_data": "eA=="}),
    (62, {"trusted_image_certificates": ["c"]}), (89, {"hostname": "new-host"}), (104, {"color": "red"}),
    (104, {"flavorRef": "1"}), (104, {"name": ""}), (104, {"accessIPv4": "x"}), (104, {"metadata": {"k": 1}}),
    (104, {"imageRef": "http://images/x"}), (104, {"imageRef": ""}), (104, {"imageRef": None}),
    (104, {"preserve_ephemeral": "maybe"}), (104, {"user_data": "not base64!"}), (104, {"adminPass": 5}),
    (104, {"OS-DCF:diskConfig": "auto"}), (104, {"key_name": "unknown"}),
])
async def test_bad_bodies(cloud: ComputeCloud, version: int, field: dict[str, Any]) -> None:
    await refused(cloud, await cloud.boot(), 400, version, **field)


@pytest.mark.spec("API-616")
async def test_an_image_must_be_named(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"rebuild": {"name": "x"}})
    assert answer.status_code == 400


@pytest.mark.spec("API-126")
async def test_images_that_do_not_do(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    missing = "99999999-9999-4999-8999-999999999999"
    assert await refused(cloud, server, 400, imageRef=missing) == "Can not find requested image"
    bad: list[Image] = [
        cloud.images.add(status="queued"), cloud.images.add(min_ram=1024), cloud.images.add(min_disk=2),
        cloud.images.add(size=2 * GIB), cloud.images.add(visibility="private", owner="somebody"),
    ]
    for image in bad:
        await refused(cloud, server, 400, imageRef=image.id)
    rigid = cloud.images.add(properties={"auto_disk_config": "disabled"})
    await refused(cloud, server, 400, imageRef=rigid.id, **{"OS-DCF:diskConfig": "AUTO"})
    assert (await cloud.stored(server.uuid)).task_state is None


@pytest.mark.spec("API-060", "API-061", "API-126")
async def test_quotas() -> None:
    async with compute_cloud(limits=Limits(metadata_items=1, injected_files=1)) as cloud:
        server = await cloud.boot()
        file = {"path": "/a", "contents": "eA=="}
        assert "metadata items exceeds 1" in await refused(cloud, server, 403, metadata={"a": "1", "b": "2"})
        assert "file limit exceeded" in await refused(cloud, server, 403, personality=[file, file])


@pytest.mark.spec("API-126", "API-062", "API-063", "API-064", "API-068")
async def test_states_and_locks(cloud: ComputeCloud) -> None:
    for state in (VmState.ACTIVE, VmState.STOPPED, VmState.ERROR):
        assert (await ask(cloud, await cloud.boot(vm_state=state))).status_code == 202
    cloud.compute.asked.clear()
    paused = await cloud.boot(vm_state=VmState.PAUSED)
    missing = "99999999-9999-4999-8999-999999999999"
    assert await refused(cloud, paused, 409, imageRef=missing) == (
        f"Cannot 'rebuild' instance {paused.uuid} while it is in vm_state paused")
    busy = await cloud.boot(task_state=TaskState.POWERING_OFF)
    assert "task_state powering-off" in await refused(cloud, busy, 409)
    unlaunched = await cloud.boot(vm_state=VmState.ERROR, launched_at=None)
    assert "invalid state for 'rebuild'" in await refused(cloud, unlaunched, 409)
    locked = await cloud.boot(vm_state=VmState.PAUSED, locked_by="owner")
    assert await refused(cloud, locked, 409) == f"Instance {locked.uuid} is locked"
    locked = await cloud.boot(locked_by="owner")
    assert (await ask(cloud, locked, as_="admin")).status_code == 202


@pytest.mark.spec("API-126", "API-042")
async def test_policy(tmp_path: Path) -> None:
    rules = tmp_path / "policy.yaml"
    rules.write_text('"os_compute_api:servers:rebuild:trusted_certs": "role:admin"\n')
    async with compute_cloud(policy_file=rules) as cloud:
        server = await cloud.boot()
        assert (await ask(cloud, server, as_="reader")).status_code == 403
        assert (await ask(cloud, server, as_="stranger")).status_code == 404
        assert (await ask(cloud, server, 63, trusted_image_certificates=["c"])).status_code == 403
        assert (await ask(cloud, server, 63, trusted_image_certificates=None)).status_code == 202
        assert server.project_id == PROJECT
