"""What is beside volumes over HTTP: snapshots, types, quotas, backups, transfers, messages, and the service itself."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from image_cloud import BOB
from volume_api_cloud import ALICE, ApiCloud, Person, api_cloud
from volume_cloud import ONE, SERVER, TWO

from kilonova.domain.errors import KilonovaError

NOBODYS = str(uuid.uuid4())


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ApiCloud]:
    async with api_cloud(tmp_path) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: ApiCloud) -> Person:
    return cloud.person("alice")


@pytest.fixture
def bob(cloud: ApiCloud) -> Person:
    return cloud.person("bob")


@pytest.fixture
def admin(cloud: ApiCloud) -> Person:
    return cloud.person("admin")


async def snap(cloud: ApiCloud, person: Person, volume: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"snapshot": {"volume_id": volume["id"]} | more}
    made: dict[str, Any] = (await person.post("/snapshots", body))["snapshot"]
    await cloud.settle()
    return made


async def new_type(admin: Person, name: str, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await admin.post("/types", {"volume_type": {"name": name} | more}, 200))["volume_type"]
    return made


# --- snapshots -----------------------------------------------------------------------------------


@pytest.mark.spec("EMI-14")
async def test_a_snapshot_has_the_keys_of_its_version(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    made = await snap(cloud, alice, volume, name="s", description="d", metadata={"a": "1"})
    brief = {"id", "name", "description", "volume_id", "status", "size", "created_at", "updated_at", "metadata"}
    more = {"os-extended-snapshot-attributes:progress", "os-extended-snapshot-attributes:project_id"}
    for version, added in (("3.0", set()), ("3.14", {"group_snapshot_id"}), ("3.41", {"user_id"}),
                           ("3.65", {"consumes_quota"})):
        brief = brief | added
        asking = alice.at(version)
        shown = (await asking.get(f"/snapshots/{made['id']}"))["snapshot"]
        assert set(shown) == brief | more
        assert set((await asking.get("/snapshots?sort_key=display_name"))["snapshots"][0]) == brief
        assert (await asking.get("/snapshots/detail"))["snapshots"] == [shown]
    assert set(made) == brief
    assert (shown["status"], shown["size"], shown["metadata"]) == ("available", 1, {"a": "1"})
    assert shown["os-extended-snapshot-attributes:progress"] == "100%"
    assert shown["os-extended-snapshot-attributes:project_id"] == ALICE
    await cloud.person("bob").get(f"/snapshots/{made['id']}", 404)


@pytest.mark.spec("EMV-07")
async def test_a_snapshot_of_a_volume_in_use_is_forced(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice)
    body: dict[str, Any] = {"volume_uuid": volume["id"], "instance_uuid": SERVER, "connector": {"host": "h"}}
    made = (await alice.post("/attachments", {"attachment": body}, 200))["attachment"]
    await alice.act(f"/attachments/{made['id']}", "os-complete", {}, 204)
    body = {"volume_id": volume["id"]}
    before, after = alice.at("3.65"), alice.at("3.66")
    for force in ({}, {"force": False}, {"force": "perhaps"}):
        await before.post("/snapshots", {"snapshot": body | force}, 400)
    await before.post("/snapshots", {"snapshot": body | {"force": "True"}})
    await cloud.settle()
    await after.post("/snapshots", {"snapshot": body | {"force": False}}, 400)
    await after.post("/snapshots", {"snapshot": {"volume_id": None}}, 404)
    await after.get(f"/snapshots?marker={uuid.uuid4()}", 404)
    await after.post("/snapshots", {"snapshot": body | {"force": True}})
    await cloud.settle()
    await after.post("/snapshots", {"snapshot": body})
    await cloud.settle()
    assert len(await alice.names(plural="snapshots")) == 3


async def test_snapshots_are_listed_changed_and_deleted(
    cloud: ApiCloud, alice: Person, bob: Person, admin: Person
) -> None:
    volume, other = await cloud.made(alice), await cloud.made(alice)
    first = await snap(cloud, alice, volume, display_name="s1", metadata={"a": "1"})
    await snap(cloud, alice, other, name="s2")
    for query, names in {
        "": ["s2", "s1"], "?name=s1": ["s1"], f"?volume_id={volume['id']}": ["s1"], "?status=error": [],
        "?metadata={'a': '1'}": ["s1"], "?sort=name:asc&limit=1": ["s1"], "?name~=s": ["s2", "s1"],
    }.items():
        assert await alice.names(query, "snapshots") == names, query
    assert await bob.names("", "snapshots") == []
    assert await admin.names(f"?all_tenants=1&project_id={ALICE}", "snapshots") == ["s2", "s1"]
    path = f"/snapshots/{first['id']}"
    changed = (await alice.put(path, {"snapshot": {"name": "s3", "description": "d"}}))["snapshot"]
    assert (changed["name"], changed["description"]) == ("s3", "d")
    for body in ({"snapshot": {}}, {"snapshot": {"volume_id": volume["id"]}}, {}):
        await alice.put(path, body, 400)
    for body in ({"volume_id": NOBODYS}, {"volume_id": volume["id"]}):
        await bob.post("/snapshots", {"snapshot": body}, 404)
    for wrong in ({}, {"volume_id": volume["id"], "color": "red"}, {"volume_id": volume["id"], "name": "x" * 256}):
        await alice.post("/snapshots", {"snapshot": wrong}, 400)
    await bob.delete(path, 404)
    await alice.delete(path)
    await cloud.settle()
    await alice.get(path, 404)


@pytest.mark.spec("EMV-41")
async def test_the_status_of_a_snapshot_is_told(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    made = await snap(cloud, alice, await cloud.made(alice))
    path = f"/snapshots/{made['id']}"
    for action in ("os-reset_status", "os-force_delete"):
        await alice.act(path, action, {"status": "error"}, 403)
    await cloud.person("alice-reader").act(path, "os-update_snapshot_status", {"status": "error"}, 403)
    await cloud.person("bob").act(path, "os-update_snapshot_status", {"status": "error"}, 404)
    await admin.act(path, "os-update_snapshot_status", {"status": "error"}, 400)
    await admin.act(path, "os-reset_status", {"status": "gone"}, 400)
    await admin.act(path, "os-reset_status", {"status": "creating"})
    for wrong in ({"status": "deleting"}, {"status": "creating", "progress": "x"}, {"progress": "1%"},
                  {"status": "creating", "progress": "101%"}):
        await admin.act(path, "os-update_snapshot_status", wrong, 400)
    await admin.act(path, "os-update_snapshot_status", {"status": "creating", "progress": "90%"})
    shown = (await alice.get(path))["snapshot"]
    assert (shown["status"], shown["os-extended-snapshot-attributes:progress"]) == ("creating", "90%")
    await alice.act(path, "os-update_snapshot_status", {"status": "error"})
    await admin.act(path, "os-reset_status", {"status": "backing-up"})
    await alice.delete(path, 400)
    await admin.act(path, "os-force_delete", {})
    await cloud.settle()
    await alice.get(path, 404)


# --- types ---------------------------------------------------------------------------------------


async def test_types_are_made_and_changed_by_administrators(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    made = await new_type(admin, "fast", description="d", extra_specs={"volume_backend_name": "one"})
    assert made == {
        "id": made["id"], "name": "fast", "description": "d", "is_public": True,
        "extra_specs": {"volume_backend_name": "one"}, "os-volume-type-access:is_public": True,
    }
    path = f"/types/{made['id']}"
    assert (await admin.get(path))["volume_type"] == made | {"qos_specs_id": None}
    assert (await alice.get(path))["volume_type"] == made | {"extra_specs": {}}
    await admin.post("/types", {"volume_type": {"name": "fast"}}, 409)
    changed = (await admin.put(path, {"volume_type": {"name": "faster", "description": None}}))["volume_type"]
    assert (changed["name"], changed["description"], "qos_specs_id" in changed) == ("faster", None, False)
    await admin.put(path, {"volume_type": {"name": "__DEFAULT__"}}, 409)
    for wrong in ({}, {"name": ""}, {"name": "x" * 256}, {"is_public": "perhaps"}, {"color": "red"}):
        await admin.put(path, {"volume_type": wrong}, 400)
        await admin.post("/types", {"volume_type": wrong}, 400)
    await admin.put(f"/types/{NOBODYS}", {"volume_type": {"name": "x"}}, 404)
    assert (await alice.get("/types/default"))["volume_type"]["name"] == "__DEFAULT__"
    assert [one["name"] for one in (await alice.get("/types?sort=name:asc"))["volume_types"]] == [
        "__DEFAULT__", "faster"]
    listed = (await admin.get("/types?extra_specs={'volume_backend_name': 'one'}"))["volume_types"]
    assert [one["name"] for one in listed] == ["faster"]
    for method, where, body in (("POST", "/types", {"volume_type": {"name": "x"}}), ("DELETE", path, None),
                                ("PUT", path, {"volume_type": {"name": "x"}})):
        assert (await alice.call(method, where, body)).status_code == 403
    await cloud.made(alice, volume_type="faster")
    await admin.delete(path, 400)
    default = (await admin.get("/types/default"))["volume_type"]
    await admin.delete(f"/types/{default['id']}", 400)
    unused = await new_type(admin, "unused")
    await admin.delete(f"/types/{unused['id']}")
    await admin.get(f"/types/{unused['id']}", 404)


async def test_extra_specs_of_types(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    made = await new_type(admin, "t")
    path = f"/types/{made['id']}/extra_specs"
    assert await admin.get(path) == {"extra_specs": {}}
    body = {"extra_specs": {"a:b": "1", "multiattach": "<is> True"}}
    assert await admin.post(path, body, 200) == body
    assert await admin.get(f"{path}/a:b") == {"a:b": "1"}
    assert await admin.put(f"{path}/a:b", {"a:b": "2"}) == {"a:b": "2"}
    assert await alice.get(path) == {"extra_specs": {"multiattach": "<is> True"}}
    await alice.get(f"{path}/a:b", 404)
    await alice.post(path, body, 403)
    await admin.delete(f"{path}/a:b")
    await admin.delete(f"{path}/a:b", 404)
    assert await admin.get(path) == {"extra_specs": {"multiattach": "<is> True"}}
    for wrong in ({}, {"extra_specs": {"a": 1}}, {"extra_specs": {"/": "1"}}, {"extra_specs": {"": "1"}},
                  {"extra_specs": {"a": "x" * 256}}):
        await admin.post(path, wrong, 400)
    await admin.put(f"{path}/a", {"b": "1"}, 400)
    await admin.post(f"/types/{NOBODYS}/extra_specs", body, 404)


async def test_some_projects_may_use_a_type(cloud: ApiCloud, alice: Person, bob: Person, admin: Person) -> None:
    made = await new_type(admin, "secret", **{"os-volume-type-access:is_public": False})
    path = f"/types/{made['id']}"
    assert made["is_public"] is False
    for person, status in ((alice, 404), (admin, 200)):
        await person.get(path, status)
    await alice.post("/volumes", {"volume": {"size": 1, "volume_type": "secret"}}, 404)
    await admin.act(path, "addProjectAccess", {"project": ALICE})
    await admin.act(path, "addProjectAccess", {"project": ALICE}, 409)
    await cloud.made(alice, volume_type="secret")
    assert [one["name"] for one in (await alice.get("/types?name=secret"))["volume_types"]] == ["secret"]
    assert (await bob.get("/types?name=secret"))["volume_types"] == []
    for public, names in (("None", {"secret", "__DEFAULT__"}), ("false", {"secret"}), ("true", {"__DEFAULT__"})):
        assert {one["name"] for one in (await admin.get(f"/types?is_public={public}"))["volume_types"]} == names
    assert await admin.get(f"{path}/os-volume-type-access") == {
        "volume_type_access": [{"volume_type_id": made["id"], "project_id": ALICE}],
    }
    await admin.act(path, "removeProjectAccess", {"project": ALICE})
    await admin.act(path, "removeProjectAccess", {"project": ALICE}, 404)
    await alice.get(path, 404)
    public = await new_type(admin, "public", is_public=True)
    await admin.get(f"/types/{public['id']}/os-volume-type-access", 404)
    await admin.act(f"/types/{public['id']}", "addProjectAccess", {"project": BOB}, 409)
    await admin.act(path, "addProjectAccess", {}, 400)
    await bob.act(path, "addProjectAccess", {"project": BOB}, 403)


async def test_the_type_of_a_volume_that_names_none(
    cloud: ApiCloud, alice: Person, bob: Person, admin: Person
) -> None:
    """That of the project, or else that of the installation."""
    made = {name: await new_type(admin, name) for name in ("installed", "given")}
    cloud.volumes.default_type = "installed"
    path, body = f"/default-types/{ALICE}", {"default_type": {"volume_type": "given"}}
    told = {"project_id": ALICE, "volume_type_id": made["given"]["id"]}
    await admin.get(path, 404)
    assert await admin.put(path, body) == {"default_type": told}
    await admin.put(path, {"default_type": {"volume_type": made["given"]["id"]}})
    assert await admin.get(path) == {"default_type": told}
    assert await admin.get("/default-types") == {"default_types": [told]}
    for person, name in ((alice, "given"), (bob, "installed")):
        assert (await person.get("/types/default"))["volume_type"]["name"] == name
        volume = await cloud.made(person)
        assert volume["volume_type"] == name
        await person.delete(f"/volumes/{volume['id']}")
    await cloud.settle()
    for one in made.values():
        await admin.delete(f"/types/{one['id']}", 400)
    for _ in range(2):
        await admin.delete(path, 204)
    await admin.delete(f"/types/{made['given']['id']}")
    assert (await cloud.made(alice))["volume_type"] == "installed"
    cloud.volumes.default_type = "gone"
    await alice.post("/volumes", {"volume": {"size": 1}}, 404)
    await alice.get("/types/default", 404)


async def test_who_chooses_the_types_of_projects(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    path, body = f"/default-types/{ALICE}", {"default_type": {"volume_type": "__DEFAULT__"}}
    before = admin.at("3.61")
    for refused, status in ((alice, 403), (before, 404)):
        await refused.get("/default-types", status)
        await refused.get(path, status)
        await refused.put(path, body, status)
        await refused.delete(path, status)
    await admin.put(path, {"default_type": {"volume_type": "none"}}, 404)
    for wrong in ({}, {"default_type": {}}, {"default_type": {"volume_type": 1}}):
        await admin.put(path, wrong, 400)
    await admin.put(f"/default-types/{'x' * 65}", body, 400)
    await admin.get("/default-types/%00", 404)
    assert await admin.get("/default-types") == {"default_types": []}


@pytest.mark.spec("EMV-45")
async def test_volumes_of_a_type_are_encrypted(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    made = await new_type(admin, "luks")
    path = f"/types/{made['id']}/encryption"
    assert await admin.get(path) == {}
    body = {"provider": "luks", "cipher": "aes-xts-plain64", "key_size": "256", "control_location": "front-end"}
    for wrong in ({}, {"provider": ""}, body | {"control_location": "middle"}, body | {"key_size": 0},
                  body | {"color": "red"}):
        await admin.post(path, {"encryption": wrong}, 400)
    told = (await admin.post(path, {"encryption": body}, 200))["encryption"]
    assert told == body | {"key_size": 256, "volume_type_id": made["id"], "encryption_id": told["encryption_id"]}
    await admin.post(path, {"encryption": body}, 400)
    found = await admin.get(path)
    assert found == told | {"deleted": False, "created_at": found["created_at"], "updated_at": None,
                            "deleted_at": None}
    assert await admin.get(f"{path}/cipher") == {"cipher": "aes-xts-plain64"}
    await admin.get(f"{path}/color", 404)
    one = f"{path}/{told['encryption_id']}"
    assert await admin.put(one, {"encryption": {"key_size": 512}}) == {"encryption": {"key_size": 512}}
    await admin.put(one, {"encryption": {}}, 400)
    await admin.put(f"{path}/{NOBODYS}", {"encryption": {"key_size": 512}}, 404)
    await alice.get(path, 403)
    volume, plain = await cloud.made(alice, volume_type="luks"), await cloud.made(alice)
    assert (volume["encrypted"], plain["encrypted"], "encryption_key_id" in plain) == (True, False, False)
    assert "encryption_key_id" not in (await alice.at("3.63").get(f"/volumes/{volume['id']}"))["volume"]
    encryption = await alice.get(f"/volumes/{volume['id']}/encryption")
    assert encryption == {
        "encryption_key_id": volume["encryption_key_id"], "control_location": "front-end",
        "cipher": "aes-xts-plain64", "provider": "luks", "key_size": 512,
    }
    assert await alice.get(f"/volumes/{volume['id']}/encryption/provider") == "luks"
    assert await alice.get(f"/volumes/{plain['id']}/encryption") == {"encryption_key_id": None}
    await admin.put(one, {"encryption": {"key_size": 256}}, 400)
    await admin.delete(one, 400)
    await alice.delete(f"/volumes/{volume['id']}")
    await cloud.settle()
    await admin.delete(one)
    assert await admin.get(path) == {}


# --- quotas --------------------------------------------------------------------------------------


@pytest.mark.spec("EMV-10")
async def test_quotas_are_shown_set_and_reset(cloud: ApiCloud, alice: Person, bob: Person, admin: Person) -> None:
    path = f"/os-quota-sets/{ALICE}"
    defaults = {
        "volumes": 10, "snapshots": 10, "gigabytes": 1000, "backups": 10, "backup_gigabytes": 1000, "groups": 10,
        "per_volume_gigabytes": -1, "volumes___DEFAULT__": -1, "snapshots___DEFAULT__": -1,
        "gigabytes___DEFAULT__": -1,
    }
    assert (await alice.get(path))["quota_set"] == {"id": ALICE} | defaults
    assert (await alice.get(f"{path}/defaults"))["quota_set"] == {"id": ALICE} | defaults
    await bob.get(path, 403)
    await alice.put(path, {"quota_set": {"volumes": 99}}, 403)
    changed = (await admin.put(path, {"quota_set": {"volumes": 1, "gigabytes": "5", "tenant_id": ALICE}}))
    assert changed["quota_set"] == defaults | {"volumes": 1, "gigabytes": 5}
    for wrong in ({"color": 1}, {"volumes": -2}, {"volumes": "x"}, {"volumes": 1.5}, {"volumes": None}, 5):
        await admin.put(path, {"quota_set": wrong}, 400)
    await cloud.made(alice)
    answer = await alice.post("/volumes", {"volume": {"size": 1}}, 413)
    assert "volumes" in answer["overLimit"]["message"]
    usage = (await alice.get(f"{path}?usage=True"))["quota_set"]
    assert usage["volumes"] == {"limit": 1, "in_use": 1, "reserved": 0}
    assert usage["gigabytes___DEFAULT__"] == {"limit": -1, "in_use": 1, "reserved": 0}
    limits = (await alice.get("/limits"))["limits"]
    assert limits == {"rate": [], "absolute": {
        "maxTotalVolumes": 1, "maxTotalSnapshots": 10, "maxTotalVolumeGigabytes": 5, "maxTotalBackups": 10,
        "maxTotalBackupGigabytes": 1000, "totalVolumesUsed": 1, "totalSnapshotsUsed": 0, "totalGigabytesUsed": 1,
        "totalBackupsUsed": 0, "totalBackupGigabytesUsed": 0,
    }}
    assert (await admin.get(f"/limits?project_id={ALICE}"))["limits"] == limits
    for person in (admin.at("3.38"), bob):
        assert (await person.get(f"/limits?project_id={ALICE}"))["limits"]["absolute"]["maxTotalVolumes"] == 10
    await admin.delete(path, 200)
    assert (await alice.get(path))["quota_set"] == {"id": ALICE} | defaults
    classes = "/os-quota-class-sets/default"
    await alice.get(classes, 403)
    assert (await admin.get(classes))["quota_class_set"] == {"id": "default"} | defaults
    changed = (await admin.put(classes, {"quota_class_set": {"snapshots": 7}}))["quota_class_set"]
    assert changed == defaults | {"snapshots": 7}
    assert (await bob.get(f"/os-quota-sets/{BOB}"))["quota_set"]["snapshots"] == 7


# --- backups -------------------------------------------------------------------------------------


@pytest.mark.spec("EMI-14")
async def test_a_volume_is_backed_up_and_restored(cloud: ApiCloud, alice: Person, bob: Person, admin: Person) -> None:
    volume = await cloud.made(alice, name="v")
    body = {"volume_id": volume["id"], "name": "b", "description": "d", "container": "c", "incremental": False}
    told = (await alice.post("/backups", {"backup": body}))["backup"]
    assert set(told) == {"id", "name", "links", "metadata"}
    await alice.post("/backups", {"backup": {"volume_id": volume["id"]}}, 400)  # one at a time
    await cloud.settle()
    path = f"/backups/{told['id']}"
    keys = {
        "id", "name", "links", "status", "size", "volume_id", "snapshot_id", "description", "container",
        "object_count", "availability_zone", "created_at", "updated_at", "fail_reason", "is_incremental",
        "has_dependent_backups", "data_timestamp",
    }
    shown = (await alice.at("3.0").get(path))["backup"]
    assert set(shown) == keys
    assert (shown["status"], shown["container"], shown["object_count"], shown["size"]) == ("available", "c", 1, 1)
    assert set((await admin.get(path))["backup"]) == keys | {
        "os-backup-project-attr:project_id", "metadata", "user_id"}
    assert (await alice.at("3.0").get("/backups/detail"))["backups"] == [shown]
    assert set((await alice.get("/backups?name=b"))["backups"][0]) == {"id", "name", "links"}
    assert await alice.names("?name=c", "backups") == []
    assert await bob.names("", "backups") == []
    await bob.get(path, 404)
    assert (await alice.put(path, {"backup": {"name": "b2"}}))["backup"]["name"] == "b2"
    await alice.at("3.8").put(path, {"backup": {"name": "b3"}}, 404)
    restored = (await alice.post(f"{path}/restore", {"restore": {"name": "again"}}))["restore"]
    assert (restored["backup_id"], restored["volume_name"]) == (told["id"], "again")
    assert await cloud.status(alice, restored["volume_id"]) == "available"
    into = {"backup_id": told["id"], "volume_id": volume["id"], "volume_name": "v"}
    assert (await alice.post(f"{path}/restore", {"restore": {"volume_id": volume["id"]}}))["restore"] == into
    assert await cloud.status(alice, volume["id"]) == "available"
    for wrong in (body | {"incremental": True}, body | {"metadata": {"a": "1"}}, body | {"color": "red"},
                  body | {"availability_zone": "moon"}, {}):
        await alice.post("/backups", {"backup": wrong}, 400)
    await bob.post("/backups", {"backup": body}, 404)
    assert "notImplemented" in await admin.get(f"{path}/export_record", 501)
    assert "notImplemented" in await admin.post("/backups/import_record", {"backup-record": {}}, 501)
    await alice.act(path, "os-reset_status", {"status": "error"}, 403)
    await admin.act(path, "os-reset_status", {"status": "creating"})
    await alice.delete(path, 400)
    await admin.act(path, "os-force_delete", {})
    await cloud.settle()
    await alice.get(path, 404)


# --- transfers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "version"), [("/volume-transfers", "3.57"), ("/os-volume-transfer", "3.0")])
async def test_a_volume_changes_hands(cloud: ApiCloud, path: str, version: str) -> None:
    alice, bob = cloud.person("alice", version), cloud.person("bob", version)
    volume = await cloud.made(alice)
    offer = (await alice.post(path, {"transfer": {"volume_id": volume["id"], "name": "t"}}))["transfer"]
    keys = {"id", "volume_id", "name", "links", "created_at"}
    if version == "3.57":
        keys |= {"no_snapshots", "source_project_id", "destination_project_id", "accepted"}
    assert set(offer) == keys | {"auth_key"}
    one = f"{path}/{offer['id']}"
    assert set((await alice.get(one))["transfer"]) == keys
    assert [set(found) for found in (await alice.get(f"{path}/detail"))["transfers"]] == [keys]
    assert [set(found) for found in (await alice.get(path))["transfers"]] == [{"id", "volume_id", "name", "links"}]
    assert (await bob.get(path))["transfers"] == []
    await bob.get(one, 404)
    assert await cloud.status(alice, volume["id"]) == "awaiting-transfer"
    await bob.post(f"{one}/accept", {"accept": {"auth_key": "wrong"}}, 400)
    await bob.post(f"{one}/accept", {"accept": {}}, 400)
    taken = (await bob.post(f"{one}/accept", {"accept": {"auth_key": offer["auth_key"]}}))["transfer"]
    assert set(taken) == {"id", "volume_id", "name", "links"}
    await alice.get(f"/volumes/{volume['id']}", 404)
    assert (await bob.get(f"/volumes/{volume['id']}"))["volume"]["os-vol-tenant-attr:tenant_id"] == BOB
    offer = (await bob.post(path, {"transfer": {"volume_id": volume["id"]}}))["transfer"]
    await bob.delete(f"{path}/{offer['id']}")
    assert await cloud.status(bob, volume["id"]) == "available"
    await alice.post(path, {"transfer": {"volume_id": volume["id"]}}, 404)


async def test_transfers_came_in_two_forms(cloud: ApiCloud, alice: Person) -> None:
    await alice.at("3.54").get("/volume-transfers", 404)
    volume = await cloud.made(alice)
    await snap(cloud, alice, volume)
    body = {"transfer": {"volume_id": volume["id"], "no_snapshots": True}}
    await alice.at("3.54").post("/os-volume-transfer", body, 400)
    await alice.post("/volume-transfers", body, 400)
    body["transfer"]["no_snapshots"] = False
    made = (await alice.at("3.55").post("/volume-transfers", body))["transfer"]
    assert (made["no_snapshots"], "accepted" in made) == (False, False)


# --- messages ------------------------------------------------------------------------------------


async def test_users_are_told_what_went_wrong(cloud: ApiCloud, alice: Person, bob: Person) -> None:
    for storage in cloud.storages.values():
        storage.faults.fail = {"create": [KilonovaError("It broke.") for _ in range(3)]}
    made = (await alice.post("/volumes", {"volume": {"size": 1}}))["volume"]
    assert await cloud.status(alice, made["id"]) == "error"
    [message] = (await alice.get(f"/messages?resource_uuid={made['id']}&message_level=ERROR"))["messages"]
    assert set(message) == {
        "id", "request_id", "message_level", "event_id", "user_message", "resource_type", "resource_uuid",
        "created_at", "guaranteed_until", "links",
    }
    assert (message["resource_type"], message["message_level"]) == ("VOLUME", "ERROR")
    assert "It broke." in message["user_message"]
    path = f"/messages/{message['id']}"
    assert (await alice.get(path))["message"] == message
    assert (await alice.get("/messages?message_level=INFO"))["messages"] == []
    assert (await bob.get("/messages"))["messages"] == []
    await bob.delete(path, 404)
    await alice.at("3.2").get("/messages", 404)
    await alice.delete(path, 204)
    await alice.get(path, 404)


# --- the service itself --------------------------------------------------------------------------


@pytest.mark.spec("EMV-11")
async def test_operators_see_the_parts_of_the_service(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    services = (await admin.get("/os-services"))["services"]
    assert [(one["binary"], one["host"]) for one in services] == [
        ("cinder-backup", "machine"), ("cinder-scheduler", "machine"),
        ("cinder-volume", "machine@one"), ("cinder-volume", "machine@two"),
    ]
    assert {(one["state"], one["status"], one["zone"]) for one in services} == {("up", "enabled", "nova")}
    old = (await admin.at("3.0").get("/os-services?binary=cinder-volume&host=machine@one"))["services"]
    assert [set(one) for one in old] == [{
        "binary", "host", "zone", "status", "state", "updated_at", "disabled_reason", "replication_status",
        "active_backend_id", "frozen",
    }]
    assert len((await admin.get("/os-services?binary=cinder-volume&host=machine"))["services"]) == 2
    assert services[2]["backend_state"] == "up"
    which = {"host": "machine@one", "binary": "cinder-volume"}
    assert await admin.put("/os-services/disable", which) == which | {
        "service": "cinder-volume", "status": "disabled", "disabled": True}
    reasoned = await admin.put("/os-services/disable-log-reason", which | {"disabled_reason": "repair"})
    assert (reasoned["disabled_reason"], reasoned["status"]) == ("repair", "disabled")
    await cloud.made(alice)
    assert (await admin.get("/volumes/detail?all_tenants=1"))["volumes"][0]["os-vol-host-attr:host"] == TWO
    enabled = await admin.put("/os-services/enable", {"host": "machine@one", "service": "cinder-volume"})
    assert (enabled["disabled"], enabled["disabled_reason"]) == (False, None)
    for action, body, status in (("freeze", which, 404), ("enable", {"host": "machine@one"}, 400),
                                 ("enable", which | {"host": "moon"}, 404), ("disable-log-reason", which, 400)):
        await admin.put(f"/os-services/{action}", body, status)


async def test_operators_see_hosts_and_pools(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice, size=2)
    await snap(cloud, alice, volume)
    [host] = {(await admin.get(f"/volumes/{volume['id']}"))["volume"]["os-vol-host-attr:host"]}
    hosts = (await admin.get("/os-hosts"))["hosts"]
    assert {(one["service"], one["host_name"]) for one in hosts} >= {("cinder-volume", "machine@one")}
    assert set(hosts[0]) == {"service-status", "service", "zone", "service-state", "host_name", "last-update"}
    shown = (await admin.get(f"/os-hosts/{host.partition('#')[0]}"))["host"]
    counted = {"volume_count": "1", "total_volume_gb": "2", "snapshot_count": "1", "total_snapshot_gb": "2"}
    assert [one["resource"] for one in shown] == [
        {"host": host.partition("#")[0], "project": project} | counted for project in ("(total)", ALICE)]
    other = (TWO if host == ONE else ONE).partition("#")[0]
    [empty] = (await admin.get(f"/os-hosts/{other}"))["host"]
    assert (empty["resource"]["project"], empty["resource"]["volume_count"]) == ("(total)", "0")
    await admin.get("/os-hosts/moon", 404)
    assert (await admin.get("/scheduler-stats/get_pools"))["pools"] == [{"name": ONE}, {"name": TWO}]
    [pool] = (await admin.get(f"/scheduler-stats/get_pools?detail=True&name={ONE.replace('#', '%23')}"))["pools"]
    capabilities = pool["capabilities"]
    assert (capabilities["volume_backend_name"], capabilities["storage_protocol"]) == ("one", "nbd")
    assert capabilities["total_capacity_gb"] >= capabilities["free_capacity_gb"] > 0
    await new_type(admin, "t2", extra_specs={"volume_backend_name": "two"})
    assert (await admin.get("/scheduler-stats/get_pools?volume_type=t2"))["pools"] == [{"name": TWO}]
    able = await admin.get("/capabilities/machine@one")
    assert (able["namespace"], able["properties"]) == ("OS::Storage::Capabilities::machine@one", {})
    await admin.get("/capabilities/moon", 404)
    for path in ("/os-hosts", "/scheduler-stats/get_pools", "/capabilities/machine@one"):
        await alice.get(path, 403)


async def test_what_is_not_offered_is_an_empty_list(alice: Person, admin: Person) -> None:
    zones = (await alice.get("/os-availability-zone"))["availabilityZoneInfo"]
    assert zones == [{"zoneName": "nova", "zoneState": {"available": True}}]
    extensions = (await alice.get("/extensions"))["extensions"]
    assert "os-volume-transfer" in {one["alias"] for one in extensions}
    assert await alice.get("/extensions/backups") == {
        "extension": next(one for one in extensions if one["alias"] == "backups")}
    await alice.get("/extensions/none", 404)
    filters = (await alice.get("/resource_filters"))["resource_filters"]
    assert {one["resource"] for one in filters} == {"volume", "snapshot", "backup", "message", "attachment", "pool"}
    [one] = (await alice.get("/resource_filters?resource=volume"))["resource_filters"]
    assert {"name", "name~", "metadata"} <= set(one["filters"])
    for path, name in (("/groups", "groups"), ("/groups/detail", "groups"), ("/group_types", "group_types"),
                       ("/group_snapshots/detail", "group_snapshots"), ("/consistencygroups", "consistencygroups"),
                       ("/clusters", "clusters"), ("/qos-specs", "qos_specs")):
        assert await admin.get(path) == {name: []}
    await alice.at("3.12").get("/groups", 404)
    for method, path in (("POST", "/groups"), ("POST", "/qos-specs"), ("POST", "/os-volume-manage"),
                         ("GET", "/manageable_volumes"), ("POST", "/workers/cleanup")):
        assert (await admin.call(method, path, {})).status_code == 404
