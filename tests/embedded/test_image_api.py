"""Images as records: what callers see, may do, and get wrong."""

from __future__ import annotations

import re
import uuid

import pytest
from image_cloud import ADMIN, ALICE, BOB, IDENTITY_URL, V20, V21, Cloud, Person, image_cloud

from kilonova.embedded.image import Limits

both_databases = pytest.mark.parametrize("cloud", ["sqlite", "postgres"], indirect=True)
"""For what depends on SQL; the rest runs on SQLite."""


@pytest.fixture
async def cloud(request, tmp_path):
    on_postgres = getattr(request, "param", "sqlite") == "postgres"
    url = request.getfixturevalue("postgres_url") if on_postgres else None
    limits = Limits(keep_free=0, images=40, properties=6, tags=4, members=2)
    async with image_cloud(tmp_path, url=url, limits=limits) as cloud:
        yield cloud


@pytest.fixture
def alice(cloud: Cloud) -> Person:
    return cloud.person("alice")


@pytest.fixture
def bob(cloud: Cloud) -> Person:
    return cloud.person("bob")


@pytest.fixture
def admin(cloud: Cloud) -> Person:
    return cloud.person("admin")


@pytest.mark.spec("EMI-15", "EMI-16", "EMI-17", "EMI-04")
@pytest.mark.parametrize(("path", "status"), [("", 300), ("/", 300), ("/v2", 300), ("/v2/", 300), ("/versions", 200),
                                              ("/versions/", 200)])
async def test_version_documents_need_no_token(cloud, path, status):
    answer = await cloud.http.get(f"/image{path}", headers={"X-Forwarded-Proto": "https", "Host": "public.test"})
    assert answer.status_code == status
    versions = answer.json()["versions"]
    assert versions[0]["id"] == "v2.17"
    assert versions[-1]["id"] == "v2.0"
    assert [version["status"] for version in versions] == ["CURRENT"] + ["SUPPORTED"] * (len(versions) - 1)
    assert {link["href"] for version in versions for link in version["links"]} == {"https://public.test/image/v2/"}


@pytest.mark.spec("EMI-01", "EMI-03", "EMI-04", "EMI-06")
@both_databases
async def test_errors_have_the_services_shape(cloud, alice):
    refused = await cloud.http.get("/image/v2/images")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == f'Keystone uri="{IDENTITY_URL}"'
    missing = await alice.get(f"/v2/images/{uuid.uuid4()}", headers={"X-OpenStack-Request-ID": "req-other"})
    assert missing.status_code == 404
    for answer, title in ((refused, "Unauthorized"), (missing, "Not Found")):
        assert answer.headers["content-type"] == "application/json"
        assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["x-openstack-request-id"])
        body = answer.json()
        assert set(body) == {"message", "code", "title"}
        assert (body["code"], body["title"]) == (answer.status_code, title)
    assert (await alice.get("/v2/images/")).status_code == 404
    assert (await alice.get("/v2/images/some-name")).status_code == 404
    assert (await alice.get("/v2/images/a%00b")).status_code == 404


@pytest.mark.spec("EMG-01", "EMG-06", "EMG-29", "EMI-10", "EMI-11")
@both_databases
async def test_a_new_image_is_queued_and_equals_what_was_sent(alice):
    answer = await alice.call("POST", "/v2/images", json={
        "name": "web", "disk_format": "qcow2", "container_format": "bare", "tags": ["b", "a"], "min_disk": 3,
        "min_ram": 64, "hw_disk_bus": "virtio", "owner_specified.openstack.md5": "",
    })
    assert answer.status_code == 201
    image = answer.json()
    assert str(uuid.UUID(image["id"])) == image["id"]
    assert answer.headers["location"] == f"http://cloud.test/image/v2/images/{image['id']}"
    assert answer.headers["openstack-image-import-methods"] == "glance-direct,web-download"
    expected = {
        "name": "web", "status": "queued", "visibility": "shared", "owner": ALICE, "size": None,
        "virtual_size": None, "checksum": None, "os_hash_algo": None, "os_hash_value": None, "min_disk": 3,
        "min_ram": 64, "protected": False, "os_hidden": False, "tags": ["b", "a"], "disk_format": "qcow2",
        "container_format": "bare", "hw_disk_bus": "virtio", "owner_specified.openstack.md5": "",
        "self": f"/v2/images/{image['id']}", "file": f"/v2/images/{image['id']}/file",
        "schema": "/v2/schemas/image", "id": image["id"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", image["created_at"])
    times = {"created_at", "updated_at"}
    assert {name: value for name, value in image.items() if name not in times} == expected
    assert await alice.show(image) == image
    assert (await alice.create(name=None, disk_format=None, container_format=None))["name"] is None


@pytest.mark.spec("EMG-01", "EMI-13")
@pytest.mark.parametrize(("body", "status"), [
    ({"disk_format": "floppy"}, 400),
    ({"container_format": "crate"}, 400),
    ({"visibility": "secret"}, 400),
    ({"name": "x" * 256}, 400),
    ({"name": "nul\0"}, 400),
    ({"name": 7}, 400),
    ({"min_disk": -1}, 400),
    ({"min_ram": "64"}, 400),
    ({"min_ram": 1 << 31}, 400),
    ({"min_ram": True}, 400),
    ({"protected": "yes"}, 400),
    ({"tags": "a"}, 400),
    ({"tags": ["x" * 256]}, 400),
    ({"id": "no uuid"}, 400),
    ({"id": None}, 400),
    ({"custom": 5}, 400),
    ({"custom": None}, 400),
    ({"": "x"}, 400),
    ({"deleted_at": "now"}, 400),
    ({"is_public": "true"}, 400),
    ({"location": "x"}, 400),
    ({"status": "active"}, 400),
    ({"checksum": "0"}, 400),
    ({"os_glance_import_task": "x"}, 403),
    ({"visibility": "public"}, 403),
    ({"owner": BOB}, 403),
    ({"tags": ["1", "2", "3", "4", "5"]}, 413),
    ({f"p{n}": "x" for n in range(7)}, 413),
])
async def test_a_bad_description_is_refused(alice, body, status):
    answer = await alice.call("POST", "/v2/images", json=body)
    assert answer.status_code == status, answer.text
    assert await alice.names() == []


@pytest.mark.spec("EMG-01")
@both_databases
async def test_ids_are_unique_and_images_are_counted(alice, admin):
    wanted = str(uuid.uuid4())
    await alice.create(id=wanted.upper())
    assert (await alice.call("POST", "/v2/images", json={"id": wanted})).status_code == 409
    for _ in range(39):
        await alice.create()
    assert (await alice.call("POST", "/v2/images", json={})).status_code == 413
    await admin.create(owner=BOB, visibility="public")


async def test_a_reader_only_reads(cloud, alice):
    image = await alice.create(name="one")
    reader = cloud.person("alice-reader")
    assert await reader.names() == ["one"]
    assert (await reader.call("POST", "/v2/images", json={})).status_code == 403
    assert (await reader.patch(image, {"op": "replace", "path": "/name", "value": "x"})).status_code == 403
    assert (await reader.call("DELETE", f"/v2/images/{image['id']}")).status_code == 403
    assert (await reader.put(image, b"x")).status_code == 403


@pytest.mark.spec("EMG-07")
@pytest.mark.parametrize("media_type", [V20, V21])
@both_databases
async def test_both_patch_languages_change_an_image(alice, media_type):
    image = await alice.create(name="old", keep="1", drop="2", change="3")

    def change(op: str, path: str, **value: object) -> dict[str, object]:
        return {op: path, **value} if media_type == V20 else {"op": op, "path": path, **value}

    answer = await alice.patch(
        image, change("replace", "/name", value="new"), change("add", "/tags", value=["t"]),
        change("remove", "/drop"), change("replace", "/change", value="4"), change("add", "/fresh~1a", value="5"),
        change("replace", "/min_disk", value=2), media_type=media_type,
    )
    assert answer.status_code == 200, answer.text
    after = answer.json()
    assert after == await alice.show(image)
    assert {name: after.get(name) for name in ("name", "tags", "keep", "drop", "change", "fresh/a", "min_disk")} == {
        "name": "new", "tags": ["t"], "keep": "1", "drop": None, "change": "4", "fresh/a": "5", "min_disk": 2,
    }
    assert after["updated_at"] > image["updated_at"]


@pytest.mark.spec("EMG-08")
@pytest.mark.parametrize(("change", "status"), [
    ({"op": "replace", "path": "/absent", "value": "x"}, 409),
    ({"op": "remove", "path": "/absent"}, 409),
    ({"op": "add", "path": "/there/below", "value": "x"}, 409),
    ({"op": "add", "path": "/name/below", "value": "x"}, 409),
    ({"op": "replace", "path": "/id", "value": "x"}, 403),
    ({"op": "replace", "path": "/status", "value": "active"}, 403),
    ({"op": "replace", "path": "/checksum", "value": "x"}, 403),
    ({"op": "add", "path": "/locations", "value": []}, 403),
    ({"op": "replace", "path": "/stores", "value": "x"}, 403),
    ({"op": "add", "path": "/os_glance_x", "value": "x"}, 403),
    ({"op": "add", "path": "/deleted", "value": "x"}, 403),
    ({"op": "remove", "path": "/name"}, 403),
    ({"op": "replace", "path": "/visibility", "value": "public"}, 403),
    ({"op": "replace", "path": "/owner", "value": BOB}, 403),
    ({"op": "replace", "path": "/min_ram", "value": "x"}, 400),
    ({"op": "move", "path": "/there", "value": "x"}, 400),
    ({"op": "add", "path": "there", "value": "x"}, 400),
    ({"op": "add", "path": "/there"}, 400),
    ({"op": "add", "path": "/there", "value": 5}, 400),
    ({"op": "add", "path": "/tags", "value": ["1", "2", "3", "4", "5"]}, 413),
])
async def test_a_bad_change_is_refused_and_changes_nothing(alice, change, status):
    image = await alice.create(there="x")
    answer = await alice.patch(image, {"op": "replace", "path": "/there", "value": "y"}, change)
    assert answer.status_code == status, answer.text
    assert await alice.show(image) == image


async def test_the_stores_of_an_image_stay_when_a_client_removes_them(alice):
    image = await alice.make(there="x")
    answer = await alice.patch(image, {"op": "remove", "path": "/stores"}, {"op": "remove", "path": "/there"})
    assert (answer.status_code, answer.json()["stores"], "there" in answer.json()) == (200, "file", False)


@pytest.mark.spec("EMG-08")
async def test_other_media_types_and_bodies_are_refused(alice):
    image = await alice.create()
    for media_type in ("application/json", "application/json-patch+json", ""):
        assert (await alice.patch(image, media_type=media_type)).status_code == 415
    for body in (b"{}", b"[1]", b"nonsense"):
        answer = await alice.call("PATCH", f"/v2/images/{image['id']}", content=body, headers={"Content-Type": V21})
        assert answer.status_code == 400


async def test_formats_are_fixed_once_there_is_data(alice):
    image = await alice.make()
    answer = await alice.patch(image, {"op": "replace", "path": "/disk_format", "value": "iso"})
    assert answer.status_code == 403


@pytest.mark.spec("EMG-09", "EMI-02")
@both_databases
async def test_a_protected_image_is_not_deleted(cloud, alice):
    image = await alice.make(protected=True)
    assert (await alice.call("DELETE", f"/v2/images/{image['id']}")).status_code == 403
    await alice.patch(image, {"op": "replace", "path": "/protected", "value": False})
    gone = await alice.call("DELETE", f"/v2/images/{image['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert (await alice.get(f"/v2/images/{image['id']}")).status_code == 404
    assert (await alice.call("DELETE", f"/v2/images/{image['id']}")).status_code == 404
    assert cloud.files() == []


@pytest.mark.spec("EMI-05", "EMG-12")
@both_databases
async def test_images_of_others_are_seen_by_their_visibility(alice, bob, admin):
    private = await alice.create(name="private", visibility="private")
    shared = await alice.create(name="shared")
    community = await alice.create(name="community", visibility="community")
    public = await admin.create(name="public", visibility="public")
    for image, status in ((private, 404), (shared, 404), (community, 200), (public, 200)):
        assert (await bob.get(f"/v2/images/{image['id']}")).status_code == status
    for image, status in ((private, 404), (community, 403), (public, 403)):
        assert (await bob.call("DELETE", f"/v2/images/{image['id']}")).status_code == status
        change = await bob.patch(image, {"op": "add", "path": "/x", "value": "x"})
        assert change.status_code == status
    assert await bob.names() == ["public"]
    assert (await admin.get(f"/v2/images/{private['id']}")).status_code == 200
    assert (await admin.patch(private, {"op": "replace", "path": "/visibility", "value": "public"})).status_code == 200
    assert await bob.names() == ["public", "private"]


@pytest.mark.spec("EMG-14")
@both_databases
async def test_the_list_depends_on_the_visibility_asked_for(alice, bob, admin):
    for visibility in ("private", "community", "shared"):
        await alice.create(name=f"a-{visibility}", visibility=visibility)
        await bob.create(name=f"b-{visibility}", visibility=visibility)
    await admin.create(name="public", visibility="public")
    of_alice = {"a-private", "a-community", "a-shared"}
    assert set(await alice.names()) == of_alice | {"public"}
    assert set(await alice.names("?visibility=public")) == {"public"}
    assert set(await alice.names("?visibility=private")) == {"a-private"}
    assert set(await alice.names("?visibility=shared")) == {"a-shared"}
    assert set(await alice.names("?visibility=community")) == {"a-community", "b-community"}
    assert set(await alice.names("?visibility=all")) == of_alice | {"public", "b-community"}
    assert len(await admin.names("?visibility=all")) == 7
    assert set(await admin.names("?visibility=private")) == {"a-private", "b-private"}
    assert set(await admin.names(f"?owner={ALICE}")) == of_alice
    assert set(await alice.names(f"?owner={BOB}")) == set()
    assert (await alice.get("/v2/images?visibility=mine")).status_code == 400


@pytest.mark.spec("EMG-12", "EMG-13")
@both_databases
async def test_sharing_needs_the_members_consent(alice, bob, admin):
    image = await alice.create(name="shared")
    members = f"/v2/images/{image['id']}/members"
    added = await alice.call("POST", members, json={"member": BOB})
    assert added.status_code == 200
    assert set(added.json()) == {"image_id", "member_id", "status", "created_at", "updated_at", "schema"}
    assert (added.json()["member_id"], added.json()["status"]) == (BOB, "pending")
    assert (await alice.call("POST", members, json={"member": BOB})).status_code == 409
    assert (await alice.call("POST", members, json={"member": ""})).status_code == 400
    assert (await alice.call("POST", members, json={"member": ADMIN})).status_code == 200
    assert (await alice.call("POST", members, json={"member": "another"})).status_code == 413

    assert (await bob.get(f"/v2/images/{image['id']}")).status_code == 200
    assert await bob.names() == []
    assert await bob.names("?member_status=pending") == ["shared"]
    assert await bob.names("?visibility=shared&member_status=all") == ["shared"]
    assert (await bob.call("POST", members, json={"member": "x"})).status_code == 403

    mine = f"{members}/{BOB}"
    assert (await alice.call("PUT", mine, json={"status": "accepted"})).status_code == 403
    assert (await bob.call("PUT", mine, json={"status": "maybe"})).status_code == 400
    assert (await bob.call("PUT", f"{members}/{ADMIN}", json={"status": "accepted"})).status_code == 404
    accepted = await bob.call("PUT", mine, json={"status": "accepted"})
    assert (accepted.status_code, accepted.json()["status"]) == (200, "accepted")
    assert await bob.names() == ["shared"]
    assert (await bob.patch(image, {"op": "add", "path": "/x", "value": "x"})).status_code == 403
    await bob.call("PUT", mine, json={"status": "rejected"})
    assert await bob.names() == []

    assert [m["member_id"] for m in (await alice.get(members)).json()["members"]] == [BOB, ADMIN]
    assert [m["member_id"] for m in (await bob.get(members)).json()["members"]] == [BOB]
    assert (await bob.get(f"{members}/{ADMIN}")).status_code == 404
    assert (await bob.get(mine)).json()["status"] == "rejected"
    assert (await bob.call("DELETE", mine)).status_code == 403
    assert (await alice.call("DELETE", mine)).status_code == 204
    assert (await alice.call("DELETE", mine)).status_code == 404
    assert (await bob.get(f"/v2/images/{image['id']}")).status_code == 404

    private = await alice.create(visibility="private")
    assert (await alice.call("POST", f"/v2/images/{private['id']}/members", json={"member": BOB})).status_code == 403


@pytest.mark.spec("EMG-15")
async def test_hidden_images_are_listed_on_request_only(alice):
    await alice.create(name="seen")
    hidden = await alice.create(name="hidden", os_hidden=True)
    assert await alice.names() == ["seen"]
    assert await alice.names("?os_hidden=true") == ["hidden"]
    assert (await alice.get(f"/v2/images/{hidden['id']}")).status_code == 200


@pytest.mark.spec("EMI-09", "EMG-16")
@both_databases
async def test_names_are_matched_whole_and_listed_newest_first(alice):
    first = await alice.create(name="web")
    await alice.create(name="web-2")
    second = await alice.create(name="web")
    listed = (await alice.get("/v2/images?name=web")).json()["images"]
    assert [image["id"] for image in listed] == [second["id"], first["id"]]
    assert await alice.names("?name=we") == []
    assert await alice.names("?name=in:web-2,other") == ["web-2"]
    comma = await alice.create(name="a,b")
    assert await alice.names('?name=in:"a,b",web-2') == [comma["name"], "web-2"]


@pytest.mark.spec("EMI-12")
@both_databases
async def test_filters_select_by_every_attribute(alice):
    small = await alice.make(b"12", name="small", tags=["x", "y"], hw="1", min_ram=5)
    large = await alice.make(b"1234", name="large", tags=["x"], hw="2", protected=True, container_format="ami")
    await alice.create(name="queued", disk_format="iso", min_disk=1)
    for query, expected in {
        "status=active": ["large", "small"],
        "status=queued": ["queued"],
        "status=in:queued,active": ["queued", "large", "small"],
        "status=killed": [],
        f"id={small['id']}": ["small"],
        f"id=in:{small['id']},{large['id']}": ["large", "small"],
        "disk_format=iso": ["queued"],
        "disk_format=in:iso,raw": ["queued", "large", "small"],
        "container_format=ami": ["large"],
        "size=4": ["large"],
        "size_min=3": ["large"],
        "size_max=3": ["small"],
        "size_min=2&size_max=4": ["large", "small"],
        "min_disk=1": ["queued"],
        "min_ram=5": ["small"],
        "protected=true": ["large"],
        "protected=False": ["queued", "small"],
        f"checksum={small['checksum']}": ["small"],
        f"os_hash_value={large['os_hash_value']}": ["large"],
        "tag=x": ["large", "small"],
        "tag=x&tag=y": ["small"],
        "hw=2": ["large"],
        "hw=2&tag=y": [],
        "unknown=1": [],
        f"created_at=gt:{small['created_at']}": ["queued", "large"],
        f"created_at=gte:{small['created_at']}": ["queued", "large", "small"],
        f"created_at=lt:{large['created_at']}": ["small"],
        f"created_at=lte:{large['created_at']}": ["large", "small"],
        f"created_at=eq:{large['created_at']}": ["large"],
        f"updated_at=neq:{large['updated_at']}": ["queued", "small"],
        f"created_at={small['created_at']}": ["small"],
    }.items():
        assert await alice.names(f"?{query}") == expected, query


@pytest.mark.parametrize("query", [
    "limit=-1", "limit=x", "size_min=x", "protected=maybe", "os_hidden=1", "created_at=yesterday",
    "created_at=gt:never", "member_status=perhaps", "sort_key=owner", "sort_dir=up", "sort=name:up",
    "sort=name&sort_key=id", "sort_key=name&sort_dir=asc&sort_dir=desc", "marker=nothing", "name=%00",
    'id=in:"open', "marker=00000000-0000-4000-8000-000000000000",
    "&".join(f"p{n}=1" for n in range(65)), "limit=" + "9" * 30,
])
@pytest.mark.spec("EMI-08")
async def test_a_list_request_that_makes_no_sense_is_refused(alice, query):
    answer = await alice.get(f"/v2/images?{query}")
    assert answer.status_code == 400, answer.text


@pytest.mark.spec("EMI-07", "EMG-18")
@pytest.mark.parametrize("order", ["", "&sort_key=name&sort_dir=asc", "&sort=size:asc,name:desc", "&sort=status",
                                   "&sort_key=disk_format&sort_key=size&sort_dir=desc&sort_dir=asc"])
@both_databases
async def test_pages_cover_the_list_once_and_in_order(alice, order):
    for number in range(3):
        await alice.create(name=f"n{number % 2}", disk_format=None)
        await alice.make(b"x" * (number + 1), name=None)
    await alice.create(name="other", kind="different")
    whole = [image["id"] for image in (await alice.get(f"/v2/images?status=in:queued,active{order}")).json()["images"]]
    assert len(whole) == len(set(whole)) == 7
    paged: list[str] = []
    path = f"/v2/images?limit=2&status=in:queued,active{order}"
    for _ in range(4):
        page = (await alice.get(path)).json()
        assert len(page["images"]) <= 2
        paged += [image["id"] for image in page["images"]]
        assert page["first"].startswith("/v2/images?limit=2")
        path = page.get("next")
    assert path is None
    assert paged == whole
    beyond = (await alice.get(f"/v2/images?limit=2&marker={whole[-1]}{order}")).json()
    assert beyond["images"] == []
    assert "next" not in beyond


@pytest.mark.spec("EMG-17")
async def test_backups_of_a_server_are_found_by_their_properties(alice):
    for number in range(3):
        for server in ("s1", "s2"):
            await alice.make(name=f"{server}-{number}", image_type="backup", backup_type="daily",
                             instance_uuid=server)
    await alice.make(name="weekly", image_type="backup", backup_type="weekly", instance_uuid="s1")
    query = "?image_type=backup&backup_type=daily&instance_uuid=s1&status=active&sort_key=created_at"
    assert await alice.names(f"{query}&sort_dir=desc") == ["s1-2", "s1-1", "s1-0"]
    assert await alice.names(f"{query}&sort_dir=asc") == ["s1-0", "s1-1", "s1-2"]


@both_databases
async def test_tags_are_added_and_removed_one_by_one(alice, bob):
    image = await alice.create(tags=["a"])
    path = f"/v2/images/{image['id']}/tags"
    assert (await alice.call("PUT", f"{path}/b")).status_code == 204
    assert (await alice.call("PUT", f"{path}/b")).status_code == 204
    assert (await alice.show(image))["tags"] == ["a", "b"]
    assert (await alice.call("DELETE", f"{path}/a")).status_code == 204
    assert (await alice.call("DELETE", f"{path}/a")).status_code == 404
    assert (await alice.show(image))["tags"] == ["b"]
    assert (await bob.call("PUT", f"{path}/c")).status_code == 404
    for tag in ("c", "d", "e"):
        assert (await alice.call("PUT", f"{path}/{tag}")).status_code == 204
    assert (await alice.call("PUT", f"{path}/f")).status_code == 413


@pytest.mark.spec("EMG-11")
async def test_a_deactivated_image_withholds_its_data(alice, admin):
    image = await alice.make(b"data")
    actions = f"/v2/images/{image['id']}/actions"
    assert (await alice.call("POST", f"{actions}/deactivate")).status_code == 204
    assert (await alice.show(image))["status"] == "deactivated"
    assert (await alice.get(f"/v2/images/{image['id']}/file")).status_code == 403
    assert (await admin.get(f"/v2/images/{image['id']}/file")).content == b"data"
    assert (await alice.call("POST", f"{actions}/reactivate")).status_code == 204
    assert (await alice.get(f"/v2/images/{image['id']}/file")).content == b"data"
    assert (await alice.call("POST", f"{actions}/explode")).status_code == 404
    queued = await alice.create()
    assert (await alice.call("POST", f"/v2/images/{queued['id']}/actions/deactivate")).status_code == 403


@pytest.mark.spec("EMG-06", "EMI-17")
async def test_the_service_describes_itself(alice):
    methods = (await alice.get("/v2/info/import")).json()["import-methods"]
    assert methods["value"] == ["glance-direct", "web-download"]
    assert methods["type"] == "array"
    assert [store["id"] for store in (await alice.get("/v2/info/stores")).json()["stores"]] == ["file"]
    assert (await alice.get("/v2/metadefs/namespaces")).json()["namespaces"] == []
    assert (await alice.get("/v2/metadefs/resource_types")).json() == {"resource_types": []}
    assert (await alice.get("/v2/tasks")).json()["tasks"] == []


@pytest.mark.spec("EMG-20")
async def test_schemas_name_every_field(alice):
    schema = (await alice.get("/v2/schemas/image")).json()
    image = await alice.create()
    assert schema["name"] == "image"
    assert set(image) <= set(schema["properties"])
    assert {"locations", "direct_url", "stores"} <= set(schema["properties"])
    assert all("type" in field for field in schema["properties"].values())
    assert schema["additionalProperties"] == {"type": "string"}
    assert "qcow2" in schema["properties"]["disk_format"]["enum"]
    assert "bare" in schema["properties"]["container_format"]["enum"]
    listed = (await alice.get("/v2/schemas/images")).json()
    assert listed["properties"]["images"]["items"] == schema
    for name in ("member", "members", "task", "tasks"):
        assert (await alice.get(f"/v2/schemas/{name}")).json()["name"] == name
    assert (await alice.get("/v2/schemas/nothing")).status_code == 404
