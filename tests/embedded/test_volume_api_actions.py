"""What is done with volumes over HTTP: actions, and attachments."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from volume_api_cloud import ALICE, ApiCloud, Person, api_cloud
from volume_cloud import IMAGE, ONE, SERVER, TWO

from kilonova.domain.errors import InvalidInput

CONNECTOR = {"host": "h1", "ip": "192.0.2.1", "mountpoint": "/dev/vdb"}


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ApiCloud]:
    async with api_cloud(tmp_path) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: ApiCloud) -> Person:
    return cloud.person("alice")


@pytest.fixture
def admin(cloud: ApiCloud) -> Person:
    return cloud.person("admin")


async def attach(person: Person, volume: dict[str, Any], server: str = SERVER, **more: Any) -> dict[str, Any]:
    body = {"volume_uuid": volume["id"], "instance_uuid": server, "connector": CONNECTOR} | more
    made: dict[str, Any] = (await person.post("/attachments", {"attachment": body}, 200))["attachment"]
    await person.act(f"/attachments/{made['id']}", "os-complete", {}, 204)
    return made


async def shown(person: Person, volume: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await person.get(f"/volumes/{volume['id']}"))["volume"]
    return found


# --- actions -------------------------------------------------------------------------------------


async def test_an_action_is_one_that_there_is(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    for body in ({}, {"os-unmanage": None}, {"os-nothing": {}}, {"os-reserve": {}, "os-unreserve": {}},
                 {"os-extend": None}, {"os-extend": {"new_size": 2, "color": "red"}}, {"os-extend": 2}):
        await alice.post(f"/volumes/{volume['id']}/action", body, 400)
    for action in ("os-reset_status", "os-force_delete", "os-force_detach", "os-migrate_volume",
                   "os-migrate_volume_completion", "os-extend_volume_completion"):
        await alice.act(volume["id"], action, {}, 403)
    await cloud.person("alice-reader").act(volume["id"], "os-reserve", None, 403)
    await cloud.person("bob").act(volume["id"], "os-reserve", None, 404)
    assert (await shown(alice, volume))["status"] == "available"


@pytest.mark.spec("EMV-26", "EMV-27")
async def test_a_volume_is_extended(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    for size in ("text", 0, 1, "", -2, True, None):
        await alice.act(volume["id"], "os-extend", {"new_size": size}, 400)
    await alice.act(volume["id"], "os-extend", {"new_size": 2000}, 413)
    await alice.act(str(uuid.uuid4()), "os-extend", {"new_size": 2}, 404)
    await alice.act(volume["id"], "os-extend", {"new_size": "2"})
    assert await cloud.status(alice, volume["id"]) == "available"
    await attach(alice, volume)
    await alice.at("3.41").act(volume["id"], "os-extend", {"new_size": 3}, 400)
    await alice.at("3.42").act(volume["id"], "os-extend", {"new_size": 3})
    assert await cloud.status(alice, volume["id"]) == "in-use"
    assert (await shown(alice, volume))["size"] == 3
    assert cloud.compute.heard == [("volume-extended", SERVER, volume["id"], "completed")]


@pytest.mark.spec("EMV-29")
async def test_compute_says_whether_it_saw_the_new_size(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    await attach(alice, volume)
    await admin.at("3.70").act(volume["id"], "os-extend_volume_completion", {"error": False}, 400)
    await admin.act(volume["id"], "os-extend_volume_completion", {"error": False})
    assert await cloud.status(alice, volume["id"]) == "in-use"
    await admin.act(volume["id"], "os-extend_volume_completion", {"error": "true"})
    assert await cloud.status(alice, volume["id"]) == "error_extending"


async def test_an_administrator_says_what_a_volume_is(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    await admin.act(volume["id"], "os-reset_status", {
        "status": "ERROR", "attach_status": "detached", "migration_status": "migrating",
    })
    found = await shown(admin, volume)
    assert (found["status"], found["migration_status"]) == ("error", "migrating")
    await admin.act(volume["id"], "os-reset_status", {"migration_status": "none"})
    assert (await shown(admin, volume))["migration_status"] is None
    for body in ({}, {"status": "gone"}, {"attach_status": "no"}, {"migration_status": "target:x"}, {"status": 1}):
        await admin.act(volume["id"], "os-reset_status", body, 400)
    await admin.act(volume["id"], "os-reset_status", {"status": "uploading"})
    await admin.act(volume["id"], "os-force_delete", {})
    await cloud.settle()
    await alice.get(f"/volumes/{volume['id']}", 404)


@pytest.mark.spec("EMV-25")
async def test_a_volume_is_made_bootable_and_read_only(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    await alice.act(volume["id"], "os-set_bootable", {"bootable": "True"}, 200)
    assert (await shown(alice, volume))["bootable"] == "true"
    await alice.act(volume["id"], "os-set_bootable", {"bootable": False}, 200)
    assert (await shown(alice, volume))["bootable"] == "false"
    await alice.act(volume["id"], "os-set_bootable", {"bootable": "perhaps"}, 400)
    assert (await shown(alice, volume))["metadata"] == {}
    await alice.act(volume["id"], "os-update_readonly_flag", {"readonly": "false"})
    assert (await shown(alice, volume))["metadata"] == {"readonly": "False"}
    await alice.act(volume["id"], "os-update_readonly_flag", {"readonly": True})
    assert (await shown(alice, volume))["metadata"] == {"readonly": "True"}
    body = {"volume_uuid": volume["id"], "instance_uuid": SERVER, "mode": "rw"}
    await alice.post("/attachments", {"attachment": body}, 400)
    made = await attach(alice, volume)
    assert (made["attach_mode"], made["connection_info"]["access_mode"]) == ("ro", "ro")
    await alice.act(volume["id"], "os-update_readonly_flag", {"readonly": False}, 400)


async def test_image_metadata_are_read_and_written(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    assert "volume_image_metadata" not in volume
    set_ = await alice.act(volume["id"], "os-set_image_metadata", {"metadata": {"a": "1", "b": "2"}}, 200)
    assert set_ == {"metadata": {"a": "1", "b": "2"}}
    await alice.act(volume["id"], "os-unset_image_metadata", {"key": "a"}, 200)
    await alice.act(volume["id"], "os-unset_image_metadata", {"key": "a"}, 404)
    reader = cloud.person("alice-reader")
    assert await reader.act(volume["id"], "os-show_image_metadata", None, 200) == {"metadata": {"b": "2"}}
    assert (await shown(alice, volume))["volume_image_metadata"] == {"b": "2"}


@pytest.mark.spec("EMV-31")
async def test_a_volume_becomes_an_image(cloud: ApiCloud, alice: Person) -> None:
    cloud.images.add(b"guest", min_ram=64)
    volume = await cloud.made(alice, imageRef=IMAGE)
    body: dict[str, Any] = {"image_name": "copy", "disk_format": "raw"}
    told = (await alice.act(volume["id"], "os-volume_upload_image", body))["os-volume_upload_image"]
    assert told["image_id"] in cloud.images.images, "its user looks for it at once"
    assert (told["status"], told["image_name"], told["size"], told["visibility"]) == ("uploading", "copy", 1, "private")
    assert told["volume_type"]["name"] == "__DEFAULT__"
    assert await cloud.status(alice, volume["id"]) == "available"
    image = cloud.images.images[told["image_id"]]
    assert (image.status, image.properties) == ("active", {"os_distro": "cirros"})
    assert "visibility" not in (await alice.at("3.0").act(volume["id"], "os-volume_upload_image", body))[
        "os-volume_upload_image"]
    await cloud.settle()
    await attach(alice, volume)
    await alice.act(volume["id"], "os-volume_upload_image", body, 400)
    await alice.act(volume["id"], "os-volume_upload_image", body | {"force": "True"})
    assert await cloud.status(alice, volume["id"]) == "in-use"
    for wrong in ({"visibility": "public"}, {"protected": True}, {"disk_format": "vmdk"}, {"image_name": ""},
                  {"container_format": "ova"}):
        await alice.act(volume["id"], "os-volume_upload_image", body | {"force": True} | wrong, 400)


async def test_who_may_have_no_more_images_is_told(
    cloud: ApiCloud, alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_new: object) -> None:
        raise InvalidInput("There are too many images.")

    volume = await cloud.made(alice)
    monkeypatch.setattr(cloud.images, "create", refuse)
    refused = await alice.act(volume["id"], "os-volume_upload_image", {"image_name": "copy"}, 400)
    assert refused["badRequest"]["message"] == "There are too many images."
    assert (await shown(alice, volume))["status"] == "available"


@pytest.mark.spec("EMV-38", "EMV-39")
async def test_a_volume_gets_the_data_of_an_image(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    cloud.images.add(b"guest")
    await alice.at("3.67").act(volume["id"], "os-reimage", {"image_id": IMAGE}, 400)
    await alice.act(volume["id"], "os-reimage", {"image_id": str(uuid.uuid4())}, 404)
    await alice.act(volume["id"], "os-reimage", {"image_id": IMAGE})
    assert await cloud.status(alice, volume["id"]) == "available"
    assert (await shown(alice, volume))["volume_image_metadata"]["image_id"] == IMAGE
    made = {"volume_uuid": volume["id"], "instance_uuid": SERVER}
    await alice.post("/attachments", {"attachment": made}, 200)
    await alice.act(volume["id"], "os-reimage", {"image_id": IMAGE}, 400)
    await alice.act(volume["id"], "os-reimage", {"image_id": IMAGE, "reimage_reserved": True})
    assert await cloud.status(alice, volume["id"]) == "reserved"
    cloud.images.add(b"guest", min_disk=2)
    await alice.act(volume["id"], "os-reimage", {"image_id": IMAGE, "reimage_reserved": True}, 400)


async def test_a_volume_is_reverted(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    snapshot = (await alice.post("/snapshots", {"snapshot": {"volume_id": volume["id"]}}))["snapshot"]
    await cloud.settle()
    await alice.at("3.39").act(volume["id"], "revert", {"snapshot_id": snapshot["id"]}, 400)
    await alice.act(volume["id"], "revert", {"snapshot_id": str(uuid.uuid4())}, 404)
    await alice.act(volume["id"], "revert", {"snapshot_id": snapshot["id"]})
    assert await cloud.status(alice, volume["id"]) == "available"


@pytest.mark.spec("EMV-34", "EMV-35", "EMV-36", "EMV-37")
async def test_a_volume_gets_another_type_and_another_pool(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    for name, backend in (("t1", "one"), ("t2", "two")):
        body = {"name": name, "extra_specs": {"volume_backend_name": backend}}
        await admin.post("/types", {"volume_type": body}, 200)
    volume = await cloud.made(alice, volume_type="t1")
    for type_, policy, status in (("t1", None, 400), ("none", None, 404), ("t2", "perhaps", 400)):
        await alice.act(volume["id"], "os-retype", {"new_type": type_, "migration_policy": policy}, status)
    await alice.act(volume["id"], "os-retype", {"new_type": "t2", "migration_policy": "on-demand"})
    assert await cloud.status(alice, volume["id"]) == "available"
    found = await shown(admin, volume)
    assert (found["volume_type"], found["os-vol-host-attr:host"]) == ("t2", TWO)
    for body, status in (({"host": TWO}, 400), ({"host": "nowhere"}, 400), ({}, 400), ({"cluster": "c"}, 400)):
        await admin.act(volume["id"], "os-migrate_volume", body, status)
    service = ONE.partition("#")[0]
    body = {"host": service, "lock_volume": "true", "force_host_copy": False}
    await admin.act(volume["id"], "os-migrate_volume", body)
    assert await cloud.status(alice, volume["id"]) == "available"
    found = await shown(admin, volume)
    assert (found["os-vol-host-attr:host"], found["os-vol-mig-status-attr:migstat"]) == (ONE, "success")
    assert found["os-vol-mig-status-attr:name_id"] not in (None, volume["id"])


@pytest.mark.spec("EMV-32", "EMV-35")
async def test_a_volume_in_use_migrates_by_its_server(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    before = (await shown(admin, volume))["os-vol-host-attr:host"]
    await attach(alice, volume)
    await admin.act(volume["id"], "os-migrate_volume", {"host": TWO if before == ONE else ONE})
    assert await cloud.status(alice, volume["id"]) == "in-use"
    found = await shown(admin, volume)
    assert (found["migration_status"], found["os-vol-host-attr:host"] != before) == ("success", True)
    assert len(await alice.names()) == 1
    completion = {"new_volume": str(uuid.uuid4()), "error": False}
    kept = await admin.act(volume["id"], "os-migrate_volume_completion", completion, 200)
    assert kept == {"save_volume_id": volume["id"]}


# --- attachments ---------------------------------------------------------------------------------


@pytest.mark.spec("EMV-13", "EMV-16", "EMV-17", "EMV-18", "EMV-20")
async def test_a_server_gets_a_volume_and_gives_it_back(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    body = {"volume_uuid": volume["id"], "instance_uuid": SERVER}
    made = (await alice.at("3.44").post("/attachments", {"attachment": body}, 200))["attachment"]
    assert made == {
        "id": made["id"], "status": "reserved", "instance": SERVER, "volume_id": volume["id"], "attached_at": "",
        "detached_at": "", "attach_mode": "rw", "connection_info": {},
    }
    path = f"/attachments/{made['id']}"
    assert (await shown(alice, volume))["status"] == "reserved"
    connected = (await alice.put(path, {"attachment": {"connector": CONNECTOR}}))["attachment"]
    info = connected["connection_info"]
    assert (connected["status"], info["driver_volume_type"]) == ("attaching", "nbd")
    assert (info["attachment_id"], info["volume_id"], info["access_mode"]) == (made["id"], volume["id"], "rw")
    assert (info["encrypted"], info["qos_specs"], info["enforce_multipath"]) == (False, None, False)
    await alice.act(path, "os-complete", None, 204)
    await alice.act(path, "os-complete", {}, 204)
    found = await shown(alice, volume)
    assert found["status"] == "in-use"
    [entry] = found["attachments"]
    assert (entry["id"], entry["attachment_id"], entry["server_id"]) == (volume["id"], made["id"], SERVER)
    assert (entry["device"], entry["host_name"]) == ("/dev/vdb", None)
    assert (await shown(admin, volume))["attachments"][0]["host_name"] == "h1"
    again = (await alice.put(path, {"attachment": {"connector": CONNECTOR}}))["attachment"]
    assert (again["status"], again["attached_at"] != "") == ("attached", True)
    await alice.put(path, {"attachment": {"connector": {}}}, 400)
    assert await alice.delete(path, 200) == {"attachments": []}
    assert (await shown(alice, volume))["status"] == "available"
    await alice.delete(path, 404)
    await alice.get(path, 404)
    assert not await cloud.problems()


@pytest.mark.spec("EMV-19")
@pytest.mark.parametrize(("version", "calls"), [("3.26", True), ("3.43", False)])
async def test_attachments_came_with_their_version(
    cloud: ApiCloud, alice: Person, version: str, calls: bool
) -> None:
    volume = await cloud.made(alice)
    made = await attach(alice, volume)
    old, path = alice.at(version), f"/attachments/{made['id']}"
    await old.act(path, "os-complete", {}, 404)
    body = {"volume_uuid": volume["id"], "instance_uuid": SERVER}
    for method, where, sent in (("GET", "/attachments", None), ("GET", path, None),
                                ("GET", "/attachments/detail", None), ("POST", "/attachments", {"attachment": body}),
                                ("PUT", path, {"attachment": {"connector": CONNECTOR}}), ("DELETE", path, None)):
        assert ((await old.call(method, where, sent)).status_code == 404) is calls


@pytest.mark.spec("EMV-14", "EMV-15", "EMV-25")
async def test_one_server_has_a_volume(cloud: ApiCloud, alice: Person) -> None:
    volume, other = await cloud.made(alice), str(uuid.uuid4())
    made = await attach(alice, volume, mode="ro")
    assert made["connection_info"]["access_mode"] == "ro"
    body = {"volume_uuid": volume["id"], "instance_uuid": other}
    await alice.post("/attachments", {"attachment": body}, 400)
    second = (await alice.post("/attachments", {"attachment": body | {"instance_uuid": SERVER}}, 200))["attachment"]
    assert (await shown(alice, volume))["status"] == "in-use"
    assert await alice.get("/attachments?status=attached") == {"attachments": [
        {"id": made["id"], "status": "attached", "instance": SERVER, "volume_id": volume["id"]},
    ]}
    detailed = (await alice.get(f"/{ALICE}/attachments/detail?volume_id={volume['id']}&sort=created_at:asc"))
    assert [one["id"] for one in detailed["attachments"]] == [made["id"], second["id"]]
    assert detailed["attachments"][0]["connection_info"] == made["connection_info"]
    assert await alice.get(f"/attachments?instance_id={other}") == {"attachments": []}
    left = await alice.delete(f"/attachments/{second['id']}", 200)
    assert [one["id"] for one in left["attachments"]] == [made["id"]]
    for wrong in ({}, {"volume_uuid": volume["id"], "mode": "both"}, {"volume_uuid": volume["id"], "color": "red"},
                  {"volume_uuid": volume["id"], "instance_uuid": "x" * 40}):
        await alice.post("/attachments", {"attachment": wrong}, 400)
    free = await cloud.made(alice)
    body = {"volume_uuid": free["id"], "instance_uuid": other}
    await alice.at("3.53").post("/attachments", {"attachment": body | {"mode": "ro"}}, 400)
    by_connector = {"attachment": body | {"connector": CONNECTOR | {"mode": "ro"}}}
    made = (await alice.at("3.53").post("/attachments", by_connector, 200))["attachment"]
    assert made["attach_mode"] == "ro"
    await cloud.person("bob").get(f"/attachments/{made['id']}", 404)
    await alice.post("/attachments", {"attachment": {"volume_uuid": str(uuid.uuid4())}}, 404)


@pytest.mark.spec("EMV-22", "EMV-23", "EMV-24")
async def test_users_do_not_take_away_what_a_server_uses(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume, free = await cloud.made(alice), await cloud.made(alice)
    made = await attach(alice, volume)
    path, named = f"/attachments/{made['id']}", {"attachment_id": made["id"]}
    cloud.compute.uses = {made["id"]}
    await alice.delete(path, 409)
    await alice.act(volume["id"], "os-detach", named, 409)
    await alice.act(volume["id"], "os-detach", {}, 409)
    await admin.act(volume["id"], "os-force_detach", named, 409)
    for connector in (CONNECTOR, {}):
        await alice.act(volume["id"], "os-terminate_connection", {"connector": connector}, 409)
    await alice.act(free["id"], "os-detach", named, 400)
    pretended = Person(cloud.http, "alice", service="bob")
    await pretended.delete(path, 401)
    await Person(cloud.http, "alice", service="nobody").delete(path, 401)
    assert (await shown(alice, volume))["status"] == "in-use"
    assert await alice.vouched().delete(path, 200) == {"attachments": []}
    assert (await shown(alice, volume))["status"] == "available"
    left = await attach(alice, volume)
    cloud.compute.uses = set()
    await alice.delete(f"/attachments/{left['id']}", 200)


@pytest.mark.spec("EMV-20", "EMV-30")
async def test_volumes_are_given_to_servers_as_of_old(cloud: ApiCloud, alice: Person) -> None:
    old, volume = alice.at(None), await cloud.made(alice)
    await old.act(volume["id"], "os-reserve")
    await old.act(volume["id"], "os-reserve", None, 400)
    await old.act(volume["id"], "os-unreserve")
    assert (await shown(alice, volume))["status"] == "available"
    await old.act(volume["id"], "os-reserve")
    told = await old.act(volume["id"], "os-initialize_connection", {"connector": CONNECTOR}, 200)
    assert set(told["connection_info"]) == {"driver_volume_type", "data"}
    assert told["connection_info"]["driver_volume_type"] == "nbd"
    assert told["connection_info"]["data"]["volume_id"] == volume["id"]
    where = {"instance_uuid": SERVER, "mountpoint": "/dev/vdc", "mode": "rw"}
    for wrong in ({"mountpoint": "/dev/vdc"}, where | {"host_name": "h"}, where | {"mode": "wr"},
                  where | {"mountpoint": ""}):
        await old.act(volume["id"], "os-attach", wrong, 400)
    await old.act(volume["id"], "os-attach", where)
    found = await shown(alice, volume)
    assert (found["status"], found["attachments"][0]["device"]) == ("in-use", "/dev/vdc")
    await old.act(volume["id"], "os-begin_detaching")
    assert (await shown(alice, volume))["status"] == "detaching"
    await old.act(volume["id"], "os-begin_detaching", None, 400)
    await old.act(volume["id"], "os-roll_detaching")
    assert (await shown(alice, volume))["status"] == "in-use"
    await old.act(volume["id"], "os-detach", {})
    assert (await shown(alice, volume))["status"] == "available"
    await old.act(volume["id"], "os-initialize_connection", {"connector": CONNECTOR}, 200)
    await old.act(volume["id"], "os-terminate_connection", {"connector": CONNECTOR})
    await old.act(volume["id"], "os-terminate_connection", {"connector": CONNECTOR})
    assert (await shown(alice, volume))["status"] == "available"
    await old.act(volume["id"], "os-attach", {"host_name": "h9", "mountpoint": "/mnt"})
    assert (await shown(cloud.person("admin"), volume))["attachments"][0]["host_name"] == "h9"
    admin = cloud.person("admin")
    await admin.act(volume["id"], "os-reset_status", {"status": "error"})
    await admin.act(volume["id"], "os-force_detach", {"connector": None})
    assert (await shown(alice, volume))["status"] == "available"
    await old.act(volume["id"], "os-detach", {})
    assert not await cloud.problems()
