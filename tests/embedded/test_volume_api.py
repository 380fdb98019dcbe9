"""Volumes over HTTP: versions, errors, lists, and what a volume is."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from image_cloud import BOB, IDENTITY_URL
from volume_api_cloud import ALICE, ApiCloud, Person, api_cloud
from volume_cloud import ADMIN, IMAGE, ONE, TWO

ALWAYS = {
    "id", "name", "description", "size", "status", "availability_zone", "created_at", "updated_at", "links", "metadata",
    "volume_type", "snapshot_id", "source_volid", "consistencygroup_id", "user_id", "encrypted", "multiattach",
    "replication_status", "bootable", "attachments", "migration_status",
}
FOR_ADMINS = {"os-vol-host-attr:host", "os-vol-mig-status-attr:migstat", "os-vol-mig-status-attr:name_id"}
TENANT = "os-vol-tenant-attr:tenant_id"


both_databases = pytest.mark.parametrize("cloud", ["sqlite", "postgres"], indirect=True)
"""For what depends on SQL; the rest runs on SQLite."""


@pytest.fixture
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ApiCloud]:
    on_postgres = getattr(request, "param", "sqlite") == "postgres"
    async with api_cloud(tmp_path, request.getfixturevalue("postgres_url") if on_postgres else None) as cloud:
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


# --- the edge ------------------------------------------------------------------------------------


@pytest.mark.spec("EMI-15", "EMI-16", "EMI-18")
@pytest.mark.parametrize(("path", "status"), [("", 300), ("/", 300), ("/v3", 200), ("/v3/", 200)])
async def test_version_documents_need_no_token(cloud: ApiCloud, path: str, status: int) -> None:
    answer = await cloud.http.get(f"/volume{path}", headers={"X-Forwarded-Proto": "https", "Host": "public.test"})
    assert answer.status_code == status
    [version] = answer.json()["versions"]
    assert (version["id"], version["status"]) == ("v3.0", "CURRENT")
    assert (version["min_version"], version["version"]) == ("3.0", "3.71")
    assert version["links"] == [{"rel": "self", "href": "https://public.test/volume/v3/"}]


@pytest.mark.spec("EMI-27", "EMI-28")
@pytest.mark.parametrize(("asked", "status", "told"), [
    (None, 200, "3.0"), ("volume 3.59", 200, "3.59"), ("volume latest", 200, "3.71"), ("volume 3.72", 406, "3.0"),
    ("volume 2.0", 406, "3.0"), ("volume newest", 400, "3.0"), ("compute 2.1, volume 3.27", 200, "3.27"),
    ("compute 2.100", 200, "3.0"),
])
async def test_versions_are_negotiated(cloud: ApiCloud, asked: str | None, status: int, told: str) -> None:
    headers = {"X-Auth-Token": "alice"} | ({"OpenStack-API-Version": asked} if asked else {})
    answer = await cloud.http.get("/volume/v3/volumes", headers=headers)
    assert answer.status_code == status
    assert answer.headers["OpenStack-API-Version"] == f"volume {told}"
    assert answer.headers["Vary"] == "OpenStack-API-Version"


@pytest.mark.spec("EMI-03", "EMI-04", "EMI-05", "EMI-06", "EMV-06")
async def test_errors_have_the_services_shape(cloud: ApiCloud, alice: Person, bob: Person) -> None:
    refused = await cloud.http.get("/volume/v3/volumes")
    assert refused.headers["www-authenticate"] == f'Keystone uri="{IDENTITY_URL}"'
    volume = await cloud.made(alice)
    reader = cloud.person("alice-reader")
    for answer, kind, code in (
        (refused, "unauthorized", 401),
        (await alice.call("GET", f"/volumes/{uuid.uuid4()}"), "itemNotFound", 404),
        (await bob.call("GET", f"/volumes/{volume['id']}"), "itemNotFound", 404),
        (await alice.call("GET", "/nothing"), "itemNotFound", 404),
        (await alice.call("GET", "/volumes/a%00b"), "itemNotFound", 404),
        (await alice.call("GET", "/os-services"), "forbidden", 403),
        (await reader.call("DELETE", f"/volumes/{volume['id']}"), "forbidden", 403),
        (await alice.call("POST", "/volumes", {"volume": {"size": 0}}), "badRequest", 400),
        (await alice.call("POST", "/volumes", {"volume": {"size": 9000}}), "overLimit", 413),
        (await alice.call("POST", "/volumes", [1]), "badRequest", 400),
        (await alice.at("4.0").call("GET", "/volumes"), "computeFault", 406),
    ):
        assert answer.status_code == code, answer.text
        assert list(answer.json()) == [kind]
        assert answer.json()[kind]["code"] == code
        assert answer.json()[kind]["message"]
        assert answer.headers["content-type"] == "application/json"
        assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["x-openstack-request-id"])
    assert (await reader.get(f"/volumes/{volume['id']}"))["volume"]["id"] == volume["id"]


@pytest.mark.spec("EMI-22")
async def test_the_project_may_be_in_the_path_if_it_is_the_callers(
    cloud: ApiCloud, alice: Person, admin: Person
) -> None:
    volume = await cloud.made(alice)
    shown = (await alice.get(f"/{ALICE}/volumes/{volume['id']}"))["volume"]
    assert shown["links"] == [
        {"rel": "self", "href": f"http://cloud.test/volume/v3/{ALICE}/volumes/{volume['id']}"},
        {"rel": "bookmark", "href": f"http://cloud.test/volume/{ALICE}/volumes/{volume['id']}"},
    ]
    assert volume["links"][0]["href"] == f"http://cloud.test/volume/v3/volumes/{volume['id']}"
    assert "Malformed" in (await alice.get(f"/{BOB}/volumes", 400))["badRequest"]["message"]
    await admin.get(f"/{ALICE}/volumes/{volume['id']}", 400)


# --- what a volume is ----------------------------------------------------------------------------


@pytest.mark.spec("EMI-14", "EMI-10", "EMV-12")
async def test_a_volume_has_the_keys_of_its_version_and_no_others(
    cloud: ApiCloud, alice: Person, admin: Person
) -> None:
    volume = await cloud.made(alice, name="v")
    path = f"/volumes/{volume['id']}"
    added = {13: {"group_id"}, 48: {"service_uuid", "shared_targets"}, 63: {"volume_type_id"}, 65: {"consumes_quota"}}
    for_admins = {21: {"provider_id"}, 61: {"cluster_name"}}
    expected, all_ = ALWAYS | {TENANT}, ALWAYS | {TENANT} | FOR_ADMINS
    for minor in (0, 12, 13, 20, 21, 47, 48, 60, 61, 62, 63, 64, 65, 71):
        expected = expected | added.get(minor, set())
        all_ = all_ | added.get(minor, set()) | for_admins.get(minor, set())
        assert set((await alice.at(f"3.{minor}").get(path))["volume"]) == expected, minor
        assert set((await admin.at(f"3.{minor}").get(path))["volume"]) == all_, minor
    listed = (await alice.get("/volumes/detail"))["volumes"]
    assert listed == [volume]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", volume["created_at"])
    assert (volume["volume_type"], volume["bootable"], volume["encrypted"]) == ("__DEFAULT__", "false", False)
    assert (await admin.get(path))["volume"]["os-vol-host-attr:host"] in (ONE, TWO)
    changed = (await alice.put(path, {"volume": {"name": "w"}}))["volume"]
    assert set(changed) == expected - {TENANT}


@pytest.mark.spec("EMV-02", "EMV-04")
async def test_a_volume_is_made_of_each_source(cloud: ApiCloud, alice: Person) -> None:
    cloud.images.add(b"guest")
    booted = await cloud.made(alice, name=" boot ", imageRef=IMAGE, description="d", metadata={"k": "v"},
                              project_id="old clients send this")
    assert (booted["name"], booted["description"], booted["metadata"]) == ("boot", "d", {"k": "v"})
    assert (booted["bootable"], booted["volume_image_metadata"]["image_name"]) == ("true", "cirros")
    copy = await cloud.made(alice, size=None, source_volid=booted["id"], display_name="copy")
    assert (copy["source_volid"], copy["name"], copy["size"]) == (booted["id"], "copy", 1)
    snapshot = (await alice.post("/snapshots", {"snapshot": {"volume_id": booted["id"]}}))["snapshot"]
    await cloud.settle()
    again = await cloud.made(alice, size="2", snapshot_id=snapshot["id"], imageRef=None, volume_type=None)
    assert (again["snapshot_id"], again["size"], again["bootable"]) == (snapshot["id"], 2, "true")
    backup = (await alice.post("/backups", {"backup": {"volume_id": booted["id"]}}))["backup"]
    await cloud.settle()
    restored = await cloud.made(alice, backup_id=backup["id"])
    assert restored["volume_image_metadata"] == booted["volume_image_metadata"]
    await alice.at("3.46").post("/volumes", {"volume": {"size": 1, "backup_id": backup["id"]}}, 400)


@pytest.mark.spec("EMV-02", "EMV-03")
@pytest.mark.parametrize(("body", "status"), [
    ({}, 400), ({"size": 0}, 400), ({"size": -1}, 400), ({"size": ""}, 400), ({"size": "#$"}, 400),
    ({"size": 1.5}, 400), ({"size": True}, 400), ({"size": 2**40}, 400), ({"size": 1, "name": "x" * 256}, 400),
    ({"size": 1, "name": 5}, 400), ({"size": 1, "metadata": {"k": 1}}, 400), ({"size": 1, "metadata": {"": "v"}}, 400),
    ({"size": 1, "metadata": {"k": "x" * 256}}, 400), ({"size": 1, "availability_zone": "moon"}, 400),
    ({"size": 1, "multiattach": True}, 400), ({"size": 1, "multiattach": "perhaps"}, 400),
    ({"size": 1, "group_id": IMAGE}, 400), ({"size": 1, "consistencygroup_id": IMAGE}, 400),
    ({"size": 1, "name": "nul\0"}, 400), ({"size": 1, "volume_type": "none"}, 404),
    ({"size": 1, "snapshot_id": IMAGE}, 404), ({"size": 1, "source_volid": IMAGE}, 404),
    ({"size": 1, "imageRef": IMAGE}, 404), ({"size": 1, "backup_id": IMAGE}, 404),
])
async def test_what_cannot_be_made_is_refused(alice: Person, body: dict[str, Any], status: int) -> None:
    await alice.post("/volumes", {"volume": body}, status)
    assert await alice.names() == []


async def test_hints_choose_among_pools(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    first = await cloud.made(alice)
    for hint, near in (("same_host", True), ("different_host", False)):
        for value in (first["id"], [first["id"]]):
            body = {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {hint: value, "query": "unknown"}}
            made = (await alice.post("/volumes", body))["volume"]
            await cloud.settle()
            hosts = [(await admin.get(f"/volumes/{id_}"))["volume"]["os-vol-host-attr:host"]
                     for id_ in (first["id"], made["id"])]
            assert (hosts[0] == hosts[1]) is near
    both = {"same_host": first["id"], "different_host": first["id"]}
    await alice.post("/volumes", {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": both}, 400)
    await alice.post("/volumes", {"volume": {"size": 1}, "OS-SCH-HNT:scheduler_hints": {"same_host": IMAGE}}, 404)


@pytest.mark.spec("EMV-09")
async def test_the_type_of_a_volume_makes_it_multiattach(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    await admin.post("/types", {"volume_type": {"name": "shared", "extra_specs": {"multiattach": "<is> True"}}}, 200)
    volume = await cloud.made(alice, volume_type="shared", multiattach=False)
    assert (volume["multiattach"], volume["volume_type"]) == (True, "shared")


async def test_a_volume_is_renamed_and_described(cloud: ApiCloud, alice: Person) -> None:
    volume = await cloud.made(alice, name="v", metadata={"a": "1"})
    path = f"/volumes/{volume['id']}"
    changed = (await alice.put(path, {"volume": {"display_name": "w", "description": "d", "metadata": {"b": "2"}}}))
    assert (changed["volume"]["name"], changed["volume"]["description"]) == ("w", "d")
    assert changed["volume"]["metadata"] == {"b": "2"}
    assert (await alice.put(path, {"volume": {"name": None}}))["volume"]["name"] is None
    for body in ({}, {"volume": {}}, {"volume": {"size": 5}}, {"volume": {"name": "x" * 256}}, {"volume": None}):
        await alice.put(path, body, 400)
    await cloud.person("bob").put(path, {"volume": {"name": "x"}}, 404)


@pytest.mark.spec("EMV-05")
async def test_a_volume_is_deleted(cloud: ApiCloud, alice: Person, admin: Person) -> None:
    volume = await cloud.made(alice)
    await alice.post("/snapshots", {"snapshot": {"volume_id": volume["id"]}})
    await cloud.settle()
    path = f"/volumes/{volume['id']}"
    await alice.delete(path, 400)
    await alice.delete(f"{path}?force=true", 403)
    await alice.delete(f"{path}?cascade=True")
    await cloud.settle()
    await alice.get(path, 404)
    stuck = await cloud.made(alice)
    await admin.act(stuck["id"], "os-reset_status", {"status": "uploading"})
    await alice.delete(f"/volumes/{stuck['id']}", 400)
    await admin.delete(f"/volumes/{stuck['id']}?force=true")
    await cloud.settle()
    await alice.get(f"/volumes/{stuck['id']}", 404)


# --- lists ---------------------------------------------------------------------------------------


@pytest.mark.spec("EMI-07", "EMI-08")
@both_databases
async def test_lists_come_in_pages(cloud: ApiCloud, alice: Person) -> None:
    ids = [(await cloud.made(alice, name=f"v{n}", size=3 - n))["id"] for n in range(3)]
    assert await alice.names() == ["v2", "v1", "v0"]
    for query, last in (("limit=2", "v1"), ("limit=2&sort=size:asc", "v1"), ("limit=2&sort_key=name", "v1")):
        page = await alice.get(f"/{ALICE}/volumes?{query}")
        assert [one["name"] for one in page["volumes"]][-1] == last
        [link] = page["volumes_links"]
        assert link["rel"] == "next"
        same = query.replace(":", "%3A")
        assert link["href"].startswith(f"http://cloud.test/volume/v3/{ALICE}/volumes?{same}&marker=")
        rest = (await cloud.http.get(link["href"], headers={"X-Auth-Token": "alice"})).json()
        assert ([one["name"] for one in rest["volumes"]], "volumes_links" in rest) == (["v0"], False)
    full = await alice.get("/volumes?limit=3")
    [link] = full["volumes_links"]
    after = (await cloud.http.get(link["href"], headers={"X-Auth-Token": "alice"})).json()
    assert (len(full["volumes"]), after) == (3, {"volumes": []})
    assert await alice.names(f"?marker={ids[0]}") == []
    assert await alice.names("?offset=1&limit=1") == ["v1"]
    assert await alice.names("?limit=0") == []
    assert await alice.names("?sort=size:asc,name:desc") == ["v2", "v1", "v0"]
    assert await alice.names("?sort_key=name&sort_dir=asc") == ["v0", "v1", "v2"]
    counted = await alice.get("/volumes?limit=1&with_count=true")
    assert (len(counted["volumes"]), counted["count"]) == (1, 3)
    assert "count" not in await alice.at("3.44").get("/volumes?with_count=true")
    for wrong in (f"marker={uuid.uuid4()}", "marker=%00", "limit=-1", "limit=x", "offset=-1", "sort=color",
                  "sort=name:up", "sort_key=color", "sort=name&sort_key=name", "sort_key=name&sort_dir=up",
                  "sort_dir=asc&sort_dir=asc", "with_count=perhaps"):
        await alice.get(f"/volumes?{wrong}", 400)


@pytest.mark.spec("EMI-09", "EMI-12")
@both_databases
async def test_lists_are_filtered(cloud: ApiCloud, alice: Person, bob: Person, admin: Person) -> None:
    cloud.images.add(b"guest")
    await cloud.made(alice, name="web", metadata={"a": "1", "b": '2"'})
    await cloud.made(alice, name="web-boot", imageRef=IMAGE, metadata={"b": "x"}, size=2)
    await cloud.made(bob, name="foreign")
    for query, names in {
        "name=web": ["web"], "name~=eb": ["web-boot", "web"], "name~=EB": [], "name~=%25": [], "name~=_": [],
        "status=available&name=web": ["web"], "status=error": [], "bootable=true": ["web-boot"],
        "bootable=False": ["web"], "size=2": ["web-boot"], "availability_zone=nova": ["web-boot", "web"],
        "metadata={'a': '1'}": ["web"], "metadata={'b': '2\"'}": ["web"], "metadata={'b': '1'}": [],
        "metadata={'a': '1', 'b': 'x'}": [], "metadata={}": ["web-boot", "web"],
        "glance_metadata={'image_name': 'cirros'}": ["web-boot"], "color=red": ["web-boot", "web"],
        "created_at=gt:2000-01-01T00:00:00": ["web-boot", "web"], "created_at=lt:2000-01-01T00:00:00Z": [],
        "created_at=gte:2000-01-01,lt:2001-01-01": [], "updated_at=neq:2000-01-01": ["web-boot", "web"],
        "all_tenants=1": ["web-boot", "web"], f"project_id={BOB}": ["web-boot", "web"],
    }.items():
        assert await alice.names(f"?{query}") == names, query
    for wrong in ("metadata=x", "metadata=[1]", "metadata={'a':", "bootable=perhaps", "size=x", "created_at=gt:x",
                  "name=a%00", f"name={'x' * 5000}"):
        await alice.get(f"/volumes?{wrong}", 400)
    assert await alice.at("3.30").names("?name~=eb") == ["web-boot", "web"], "no filter yet"
    assert await admin.names() == []
    assert await admin.names("?all_tenants=True") == ["foreign", "web-boot", "web"]
    assert await admin.names(f"?all_tenants=1&project_id={BOB}") == ["foreign"]


async def test_targets_of_migrations_are_shown_to_administrators_alone(
    cloud: ApiCloud, alice: Person, admin: Person
) -> None:
    volume = await cloud.made(alice, name="v")
    await cloud.volumes.reset_status(ADMIN, volume["id"], migration_status=f"target:{uuid.uuid4()}")
    assert await alice.names() == []
    assert await admin.names("?all_tenants=1") == ["v"]
    shown = (await admin.get(f"/volumes/{volume['id']}"))["volume"]
    assert (shown["migration_status"][:7], shown["consumes_quota"]) == ("target:", False)
    assert (await alice.get(f"/volumes/{volume['id']}"))["volume"]["migration_status"] is None


async def test_a_project_sees_what_it_has_in_all(cloud: ApiCloud, alice: Person, bob: Person, admin: Person) -> None:
    await cloud.made(alice, size=2, metadata={"k": "a"})
    await cloud.made(alice, size=1, metadata={"k": "b", "l": "c"})
    await cloud.made(alice, size=1, metadata={"k": "a"})
    await cloud.made(bob)
    summary = (await alice.get("/volumes/summary"))["volume-summary"]
    assert (summary["total_count"], summary["total_size"]) == (3, 4)
    assert {key: sorted(values) for key, values in summary["metadata"].items()} == {"k": ["a", "b"], "l": ["c"]}
    assert (await admin.at("3.35").get("/volumes/summary?all_tenants=1"))["volume-summary"] == {
        "total_count": 4, "total_size": 5,
    }
    await alice.at("3.11").get("/volumes/summary", 404)


# --- metadata ------------------------------------------------------------------------------------


@pytest.mark.parametrize("plural", ["volumes", "snapshots"])
async def test_metadata_are_read_and_written(cloud: ApiCloud, alice: Person, bob: Person, plural: str) -> None:
    volume = await cloud.made(alice, metadata={"old": "1"})
    path = f"/volumes/{volume['id']}/metadata"
    if plural == "snapshots":
        body = {"volume_id": volume["id"], "metadata": {"old": "1"}}
        path = f"/snapshots/{(await alice.post('/snapshots', {'snapshot': body}))['snapshot']['id']}/metadata"
        await cloud.settle()
    assert await alice.get(path) == {"metadata": {"old": "1"}}
    assert await alice.post(path, {"metadata": {"a": "2"}}, 200) == {"metadata": {"old": "1", "a": "2"}}
    assert await alice.get(f"{path}/a") == {"meta": {"a": "2"}}
    assert await alice.put(f"{path}/a", {"meta": {"a": "3"}}) == {"meta": {"a": "3"}}
    await alice.delete(f"{path}/old", 200)
    assert await alice.get(path) == {"metadata": {"a": "3"}}
    assert await alice.put(path, {"metadata": {"b": ""}}) == {"metadata": {"b": ""}}
    assert await alice.get(path) == {"metadata": {"b": ""}}
    await alice.get(f"{path}/a", 404)
    await alice.delete(f"{path}/a", 404)
    await bob.get(path, 404)
    await bob.post(path, {"metadata": {"a": "1"}}, 404)
    await cloud.person("alice-reader").put(path, {"metadata": {}}, 403)
    for body in ({}, {"metadata": None}, {"metadata": {"a": 1}}, {"metadata": {"": "1"}},
                 {"metadata": {"a" * 256: "1"}}):
        await alice.post(path, body, 400)
    for meta in ({}, {"b": "1"}, {"a": "1", "b": "2"}):
        await alice.put(f"{path}/a", {"meta": meta}, 400)
    assert await alice.get(path) == {"metadata": {"b": ""}}
