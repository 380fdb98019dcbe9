"""Creating, listing, changing and deleting what identity keeps."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from identity_cloud import (
    ADMIN_PASSWORD,
    BASE,
    IdentityCloud,
    Session,
    identity_cloud,
    on_project,
    password,
    with_credential,
)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[IdentityCloud]:
    async with identity_cloud(tmp_path) as running:
        yield running


async def names(session: Session, path: str) -> list[str]:
    answer = await session.get(path)
    assert answer.status_code == 200, answer.text
    plural = path.lstrip("/").split("?", 1)[0].rsplit("/", 1)[-1]
    return [item["name"] for item in answer.json()[plural]]


@pytest.mark.spec("EMI-15", "EMI-16", "EMI-19", "EMI-01", "EMI-03")
@pytest.mark.parametrize("path, status", [("/", 300), ("/v3", 200), ("/v3/", 200)])
async def test_version_documents_need_no_token(cloud: IdentityCloud, path: str, status: int) -> None:
    answer = await cloud.http.get(f"/identity{path}", headers={"Host": "proxy.test", "X-Forwarded-Proto": "https"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert re.fullmatch(r"req-[0-9a-f-]{36}", answer.headers["x-openstack-request-id"])
    document = answer.json()
    version = document["versions"]["values"][0] if path == "/" else document["version"]
    assert version["id"] == "v3.14"
    assert version["status"] == "stable"
    assert version["links"] == [{"rel": "self", "href": "https://proxy.test/identity/v3/"}]
    assert version["media-types"] and version["updated"]


@pytest.mark.spec("EMI-11")
async def test_ids_have_the_form_clients_know(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for kind in ("project", "user", "role", "domain"):
        made = await admin.make(kind, name="x")
        assert re.fullmatch(r"[0-9a-f]{32}", made["id"]), kind
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", (await admin.make("group", name="x"))["id"])


@pytest.mark.spec("EMI-54")
@pytest.mark.parametrize("kind", ["project", "user", "role", "domain", "group"])
async def test_a_record_lives_its_life(cloud: IdentityCloud, kind: str) -> None:
    admin = await cloud.admin()
    made = await admin.make(kind, name="First", description="one")
    path = f"/{kind}s/{made['id']}"
    assert made["links"] == {"self": f"{BASE}/identity/v3{path}"}
    assert (await admin.get(path)).json()[kind] == made
    again = await admin.call("POST", f"/{kind}s", {kind: {"name": "FIRST"}})
    assert again.status_code == 409
    assert again.json()["error"]["code"] == 409
    other = await admin.make(kind, name="other")
    assert (await admin.call("PATCH", f"/{kind}s/{other['id']}", {kind: {"name": "first"}})).status_code == 409
    changed = await admin.call("PATCH", path, {kind: {"description": "two"}})
    assert changed.status_code == 200
    assert changed.json()[kind] == made | {"description": "two"}
    assert "First" in await names(admin, f"/{kind}s")
    if kind == "domain":
        await admin.call("PATCH", path, {"domain": {"enabled": False}})
    assert (await admin.call("DELETE", path)).status_code == 204
    assert "First" not in await names(admin, f"/{kind}s")
    for method in ("GET", "PATCH", "DELETE"):
        answer = await admin.call(method, path, {kind: {"description": "three"}})
        assert answer.status_code == 404, method
        assert answer.json()["error"]["title"] == "Not Found"


@pytest.mark.spec("EMI-09", "EMI-12", "EMI-39")
async def test_lists_filter_exactly_and_ignore_what_they_do_not_know(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    assert await names(admin, "/domains?name=Default") == ["Default"]
    for name in ("demo", "demo2", "mydemo"):
        await admin.make("project", name=name)
        await admin.make("user", name=name, enabled=name != "demo2")
    assert await names(admin, "/projects?name=demo") == ["demo"]
    assert await names(admin, "/projects?name=DEMO") == ["demo"]
    assert await names(admin, "/projects?name=dem%25") == []
    assert await names(admin, "/users?name=demo&no_such_filter=1") == ["demo"]
    assert await names(admin, "/users?enabled=false") == ["demo2"]
    assert "demo2" not in await names(admin, "/users?enabled=true")
    assert await names(admin, "/users?domain_id=unknown") == []
    assert (await admin.get("/projects/demo")).status_code == 404


@pytest.mark.spec("EMI-07")
async def test_pages_end(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for number in range(5):
        await admin.make("project", name=f"p{number}")
    everything = await names(admin, "/projects")
    seen: list[str] = []
    path = "/projects?limit=3"
    while path:
        page = (await admin.get(path)).json()
        seen += [project["name"] for project in page["projects"]]
        path = (page["links"]["next"] or "").removeprefix(f"{BASE}/identity/v3")
    assert seen == everything == ["admin", "p0", "p1", "p2", "p3", "p4", "service"]
    last = (await admin.get("/projects")).json()["projects"][-1]["id"]
    beyond = (await admin.get(f"/projects?limit=3&marker={last}")).json()
    assert (beyond["projects"], beyond["links"]["next"]) == ([], None)
    assert (await admin.get("/projects?marker=unknown")).status_code == 404
    assert (await admin.get("/projects?limit=many")).status_code == 400


@pytest.mark.spec("EMI-13")
async def test_unknown_attributes_of_users_and_projects_are_kept(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for kind in ("user", "project"):
        made = await admin.make(kind, name="x", colour="red", size=3)
        assert (made["colour"], made["size"]) == ("red", 3)
        changed = await admin.call("PATCH", f"/{kind}s/{made['id']}", {kind: {"colour": "blue"}})
        assert changed.json()[kind] == made | {"colour": "blue"}


async def test_a_password_is_never_shown(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    made = await admin.make("user", name="x", password="swordfish", password_hash="mine", token_epoch=7)
    assert set(made) == {"id", "name", "domain_id", "enabled", "password_expires_at", "options", "links"}
    listed = await admin.get("/users")
    assert "swordfish" not in listed.text and "argon2" not in listed.text
    await cloud.session(password("x", "swordfish"))


MALFORMED: tuple[tuple[str, Any], ...] = (
    ("/projects", {"project": {}}),
    ("/projects", {"project": {"name": ""}}),
    ("/projects", {"project": {"name": " "}}),
    ("/projects", {"project": {"name": "x" * 65}}),
    ("/projects", {"project": {"name": 7}}),
    ("/projects", {"project": {"name": "x", "enabled": "yes"}}),
    ("/projects", {"project": {"name": "x", "is_domain": True}}),
    ("/projects", {"project": {"name": "x", "tags": ["a,b"]}}),
    ("/projects", {"project": "x"}),
    ("/projects", {"name": "x"}),
    ("/projects", []),
    ("/users", {"user": {"name": "x", "password": 7}}),
    ("/users", {"user": {"name": "x" * 256}}),
    ("/endpoints", {"endpoint": {"service_id": "unknown", "interface": "public", "url": "http://x"}}),
    ("/endpoints", {"endpoint": {"service_id": "unknown", "interface": "side", "url": "http://x"}}),
    ("/services", {"service": {"name": "x"}}),
)


async def test_malformed_bodies_are_400(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for path, body in MALFORMED:
        answer = await admin.call("POST", path, body)
        assert answer.status_code == 400, (path, body, answer.text)


async def test_projects_nest_and_are_deleted_from_below(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    parent = await admin.make("project", name="parent")
    assert parent["parent_id"] == parent["domain_id"] == "default"
    child = await admin.make("project", name="child", parent_id=parent["id"])
    assert await names(admin, f"/projects?parent_id={parent['id']}") == ["child"]
    assert await names(admin, "/projects?is_domain=true") == []
    assert (await admin.call("DELETE", f"/projects/{parent['id']}")).status_code == 403
    for project in (child, parent):
        assert (await admin.call("DELETE", f"/projects/{project['id']}")).status_code == 204
    domain = await admin.make("domain", name="d")
    other = await admin.make("project", name="other", domain_id=domain["id"])
    for attributes, status in (({"parent_id": "unknown"}, 404), ({"parent_id": other["id"]}, 400),
                               ({"domain_id": "unknown"}, 404)):
        answer = await admin.call("POST", "/projects", {"project": {"name": "x", **attributes}})
        assert answer.status_code == status, attributes
    moved = await admin.call("PATCH", f"/projects/{other['id']}", {"project": {"domain_id": "default"}})
    assert moved.status_code == 403


async def test_project_tags(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    project = await admin.make("project", name="p", tags=["one", "tw"])
    await admin.make("project", name="q", tags=["two"])
    tags = f"/projects/{project['id']}/tags"
    assert (await admin.call("PUT", f"{tags}/two")).status_code == 201
    assert (await admin.get(tags)).json()["tags"] == ["one", "tw", "two"]
    assert (await admin.get(f"{tags}/two")).status_code == 204
    assert await names(admin, "/projects?tags=two") == ["p", "q"]
    assert await names(admin, "/projects?tags=one,two") == ["p"]
    assert await names(admin, "/projects?tags=tw") == ["p"]
    assert await names(admin, "/projects?tags=TWO") == []
    assert (await admin.call("DELETE", f"{tags}/two")).status_code == 204
    assert (await admin.call("DELETE", f"{tags}/two")).status_code == 404
    assert (await admin.call("PUT", tags, {"tags": ["z"]})).json()["tags"] == ["z"]
    assert (await admin.call("DELETE", tags)).status_code == 204
    assert (await admin.get(tags)).json()["tags"] == []


@pytest.mark.spec("EMI-44")
async def test_a_domain_is_disabled_before_it_is_deleted_with_all_it_holds(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    domain = await admin.make("domain", name="d")
    held = {kind: await admin.make(kind, name="x", domain_id=domain["id"]) for kind in ("user", "group", "project")}
    role = await admin.make("role", name="x", domain_id=domain["id"])
    await admin.grant(held["user"]["id"], "member", f"projects/{held['project']['id']}")
    await admin.grant(held["user"]["id"], "member", "system")
    await admin.grant(cloud.made.admin_user_id, "member", f"domains/{domain['id']}")
    assert (await admin.call("DELETE", f"/domains/{domain['id']}")).status_code == 403
    await admin.call("PATCH", f"/domains/{domain['id']}", {"domain": {"enabled": False}})
    assert (await admin.call("DELETE", f"/domains/{domain['id']}")).status_code == 204
    for kind, record in (*held.items(), ("role", role)):
        assert (await admin.get(f"/{kind}s/{record['id']}")).status_code == 404, kind
    left = (await admin.get("/role_assignments")).text
    assert domain["id"] not in left and held["user"]["id"] not in left and held["project"]["id"] not in left
    refused = await admin.call("PATCH", "/domains/default", {"domain": {"enabled": False}})
    assert refused.status_code == 403


@pytest.mark.spec("EMI-43")
async def test_what_a_user_or_project_owned_goes_with_it(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    user, project = alice.body["user"]["id"], alice.body["project"]["id"]
    credentials = []
    for name in ("one", "two"):
        answer = await alice.call("POST", f"/users/{user}/application_credentials",
                                  {"application_credential": {"name": name}})
        credentials.append(answer.json()["application_credential"])
    await admin.call("PATCH", f"/users/{user}", {"user": {"default_project_id": project}})
    assert (await admin.call("DELETE", f"/projects/{project}")).status_code == 204
    assert project not in (await admin.get("/role_assignments")).text
    assert "default_project_id" not in (await admin.get(f"/users/{user}")).json()["user"]
    assert (await cloud.authenticate(with_credential(credentials[0]))).status_code == 401
    listed = await admin.get(f"/users/{user}/application_credentials")
    assert listed.json()["application_credentials"] == []
    assert (await admin.call("DELETE", f"/users/{user}")).status_code == 204
    assert user not in (await admin.get("/role_assignments")).text
    assert (await cloud.authenticate(password("alice", "alice"))).status_code == 401


@pytest.mark.spec("EMI-40")
async def test_granting_is_repeatable_and_checked(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    user, project = await admin.make("user", name="u"), await admin.make("project", name="p")
    role = await admin.role_id("member")
    for place in (f"projects/{project['id']}", "domains/default", "system"):
        path = f"/{place}/users/{user['id']}/roles"
        assert (await admin.call("HEAD", f"{path}/{role}")).status_code == 404
        for _ in range(2):
            assert (await admin.call("PUT", f"{path}/{role}")).status_code == 204
        assert (await admin.call("HEAD", f"{path}/{role}")).status_code == 204
        assert await names(admin, path) == ["member"]
        assert (await admin.call("DELETE", f"{path}/{role}")).status_code == 204
        assert (await admin.call("DELETE", f"{path}/{role}")).status_code == 404
        assert (await admin.get(path)).json()["roles"] == []
    for place in (f"projects/{project['id']}/users/{user['id']}/roles/unknown",
                  f"projects/{project['id']}/users/unknown/roles/{role}",
                  f"projects/unknown/users/{user['id']}/roles/{role}",
                  f"domains/unknown/users/{user['id']}/roles/{role}"):
        assert (await admin.call("PUT", f"/{place}")).status_code == 404, place


@pytest.mark.spec("EMI-38")
async def test_a_group_gives_its_members_what_it_holds(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice", "reader"), await cloud.admin()
    user = alice.body["user"]["id"]
    group, project = await admin.make("group", name="g"), await admin.make("project", name="p")
    role = await admin.role_id("manager")
    assert (await admin.call("PUT", f"/projects/{project['id']}/groups/{group['id']}/roles/{role}")).status_code == 204
    member = f"/groups/{group['id']}/users/{user}"
    assert (await admin.call("HEAD", member)).status_code == 404
    for _ in range(2):
        assert (await admin.call("PUT", member)).status_code == 204
    assert (await admin.call("HEAD", member)).status_code == 204
    assert await names(admin, f"/groups/{group['id']}/users") == ["alice"]
    assert await names(alice, f"/users/{user}/groups") == ["g"]
    assert await names(alice, f"/users/{user}/projects") == ["alice", "p"]
    session = await cloud.session(password("alice", "alice"), on_project("p"))
    assert [each["name"] for each in session.body["roles"]] == ["manager", "member", "reader"]
    effective = (await admin.get(f"/role_assignments?effective&user.id={user}&scope.project.id={project['id']}")).json()
    assert len(effective["role_assignments"]) == 3
    assert all(each["user"]["id"] == user for each in effective["role_assignments"])
    assert (await admin.call("DELETE", member)).status_code == 204
    assert not await session.still_works()
    assert (await admin.call("DELETE", f"/groups/{group['id']}")).status_code == 204
    assert group["id"] not in (await admin.get("/role_assignments")).text


async def assignments(session: Session, query: str) -> set[tuple[str, str, str]]:
    answer = await session.get(f"/role_assignments?include_names=true&{query}")
    assert answer.status_code == 200, answer.text
    found = set()
    for each in answer.json()["role_assignments"]:
        scope = each["scope"]
        place = "system" if "system" in scope else next(iter(scope.values()))["name"]
        found.add((each["role"]["name"], (each.get("user") or each["group"])["name"], place))
    return found


async def test_assignments_are_listed_by_who_what_and_where(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    user, project = alice.body["user"]["id"], alice.body["project"]["id"]
    child = await admin.make("project", name="child", parent_id=project)
    await admin.grant(user, "reader", f"projects/{child['id']}")
    await admin.grant(user, "manager", "domains/default")
    member = ("member", "alice", "alice")
    assert await assignments(admin, f"user.id={user}") == {
        member, ("reader", "alice", "child"), ("manager", "alice", "Default")
    }
    assert await assignments(admin, f"scope.project.id={project}") == {member}
    assert await assignments(admin, f"scope.project.id={project}&include_subtree=true") == {
        member, ("reader", "alice", "child")
    }
    assert await assignments(admin, f"scope.project.id={project}&effective") == {member, ("reader", "alice", "alice")}
    assert await assignments(admin, "scope.domain.id=default") == {("manager", "alice", "Default")}
    assert await assignments(admin, "scope.system=all") == {("admin", "admin", "system")}
    assert await assignments(admin, f"role.id={await admin.role_id('member')}") == {member}
    assert await assignments(admin, "group.id=unknown") == set()
    plain = (await admin.get(f"/role_assignments?scope.project.id={project}")).json()["role_assignments"]
    role = await admin.role_id("member")
    assert plain == [{
        "role": {"id": role}, "user": {"id": user}, "scope": {"project": {"id": project}},
        "links": {"assignment": f"{BASE}/identity/v3/projects/{project}/users/{user}/roles/{role}"},
    }]


@pytest.mark.spec("EMI-38")
async def test_roles_can_imply_others_even_in_a_circle(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    extra = await admin.make("role", name="extra")
    reader = await admin.role_id("reader")
    for prior, implied in ((reader, extra["id"]), (extra["id"], reader)):
        answer = await admin.call("PUT", f"/roles/{prior}/implies/{implied}")
        assert answer.status_code == 201
        inference = answer.json()["role_inference"]
        assert (inference["prior_role"]["id"], inference["implies"]["id"]) == (prior, implied)
    path = f"/roles/{reader}/implies"
    assert (await admin.get(f"{path}/{extra['id']}")).status_code == 200
    assert (await admin.call("HEAD", f"{path}/{extra['id']}")).status_code == 204
    listed = (await admin.get(path)).json()["role_inference"]
    assert [role["name"] for role in listed["implies"]] == ["extra"]
    inferences = {
        (each["prior_role"]["name"], role["name"])
        for each in (await admin.get("/role_inferences")).json()["role_inferences"] for role in each["implies"]
    }
    assert inferences == {("admin", "manager"), ("manager", "member"), ("member", "reader"), ("reader", "extra"),
                          ("extra", "reader")}
    assert (await cloud.identity.validate(alice.token)).roles == ("extra", "member", "reader")
    assert (await admin.call("DELETE", f"{path}/{extra['id']}")).status_code == 204
    assert (await admin.call("DELETE", f"{path}/{extra['id']}")).status_code == 404
    assert (await cloud.identity.validate(alice.token)).roles == ("member", "reader")


@pytest.mark.spec("EMI-42")
async def test_every_role_tempest_names_is_listed(cloud: IdentityCloud) -> None:
    listed = await names(await cloud.admin(), "/roles")
    assert listed == ["admin", "manager", "member", "reader", "service"]


async def test_a_role_of_a_domain_shows_only_what_it_implies(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    own = await admin.make("role", name="own", domain_id="default")
    assert "own" not in await names(admin, "/roles")
    assert await names(admin, "/roles?domain_id=default") == ["own"]
    await admin.call("PUT", f"/roles/{own['id']}/implies/{await admin.role_id('manager')}")
    place = f"projects/{alice.body['project']['id']}/users/{alice.body['user']['id']}"
    await admin.call("PUT", f"/{place}/roles/{own['id']}")
    assert (await cloud.identity.validate(alice.token)).roles == ("manager", "member", "reader")


async def test_the_catalogue_can_be_changed(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    region = await admin.make("region", id="two", description="second")
    assert (await admin.call("POST", "/regions", {"region": {"id": "two"}})).status_code == 409
    service = await admin.make("service", type="thing", name="thing")
    endpoint = await admin.make("endpoint", service_id=service["id"], interface="public", url="http://a", region="two")
    assert endpoint["region_id"] == endpoint["region"] == "two"
    changed = await admin.call("PATCH", f"/endpoints/{endpoint['id']}", {"endpoint": {"url": "http://b"}})
    assert changed.json()["endpoint"] == endpoint | {"url": "http://b"}
    listed = (await admin.get(f"/endpoints?service_id={service['id']}&interface=public&region_id=two")).json()
    assert [each["id"] for each in listed["endpoints"]] == [endpoint["id"]]
    assert await names(admin, "/services?type=thing") == ["thing"]
    catalogue = (await admin.get("/auth/catalog")).json()["catalog"]
    assert next(each for each in catalogue if each["type"] == "thing")["endpoints"][0]["url"] == "http://b"
    assert (await admin.call("DELETE", "/regions/two")).status_code == 409
    await admin.call("PATCH", f"/services/{service['id']}", {"service": {"enabled": False}})
    assert "thing" not in [each["type"] for each in (await admin.get("/auth/catalog")).json()["catalog"]]
    assert (await admin.call("DELETE", f"/services/{service['id']}")).status_code == 204
    assert (await admin.get(f"/endpoints/{endpoint['id']}")).status_code == 404
    assert (await admin.call("DELETE", f"/regions/{region['id']}")).status_code == 204


@pytest.mark.spec("EMI-25")
async def test_unified_limits(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    nova = next(each for each in (await admin.get("/services?name=nova")).json()["services"])
    of = {"service_id": nova["id"], "region_id": "RegionOne", "resource_name": "servers"}
    registered = await admin.call("POST", "/registered_limits", {"registered_limits": [of | {"default_limit": 10}]})
    assert registered.status_code == 201
    registered_id = registered.json()["registered_limits"][0]["id"]
    query = "&".join(f"{name}={value}" for name, value in of.items())
    found = (await alice.get(f"/registered_limits?{query}")).json()["registered_limits"]
    assert [each["default_limit"] for each in found] == [10]
    own: dict[str, Any] = of | {"project_id": alice.body["project"]["id"], "resource_limit": 3}
    made = await admin.call("POST", "/limits", {"limits": [own]})
    assert made.status_code == 201
    limit = made.json()["limits"][0]
    assert (limit["resource_limit"], limit["project_id"], limit["domain_id"]) == (3, own["project_id"], None)
    assert (await admin.call("POST", "/limits", {"limits": [own]})).status_code == 409
    assert (await admin.call("POST", "/limits", {"limits": [own | {"resource_name": "x"}]})).status_code == 403
    changed = await admin.call("PATCH", f"/limits/{limit['id']}", {"limit": {"resource_limit": 4}})
    assert changed.json()["limit"]["resource_limit"] == 4
    assert len((await alice.get("/limits")).json()["limits"]) == 1
    assert (await alice.get("/limits/model")).json()["model"]["name"] == "flat"
    assert (await admin.call("DELETE", f"/registered_limits/{registered_id}")).status_code == 403
    assert (await admin.call("DELETE", f"/limits/{limit['id']}")).status_code == 204
    assert (await admin.call("DELETE", f"/registered_limits/{registered_id}")).status_code == 204
    assert (await alice.call("POST", "/limits", {"limits": [own]})).status_code == 403


@pytest.mark.spec("API-644", "EMI-25")
async def test_unified_limits_of_a_project(cloud: IdentityCloud) -> None:
    """What a project has of its own counts before what is registered, and a region's before all regions'."""
    admin = await cloud.admin()
    (nova,) = (await admin.get("/services?name=nova")).json()["services"]
    project_id = (await admin.make("project", name="limited"))["id"]
    assert await cloud.identity.limits("nova", project_id) == {}
    of = {"service_id": nova["id"], "region_id": None}
    here = of | {"region_id": "RegionOne"}
    registered = [
        here | {"resource_name": "servers", "default_limit": 5}, of | {"resource_name": "servers", "default_limit": 7},
        of | {"resource_name": "class:VCPU", "default_limit": 9},
    ]
    answer = await admin.call("POST", "/registered_limits", {"registered_limits": registered})
    assert answer.status_code == 201, answer.text
    own = of | {"resource_name": "class:VCPU", "project_id": project_id, "resource_limit": 2}
    assert (await admin.call("POST", "/limits", {"limits": [own]})).status_code == 201
    assert await cloud.identity.limits("nova", project_id) == {"servers": 5, "class:VCPU": 2}
    assert await cloud.identity.limits("nova", None) == {"servers": 5, "class:VCPU": 9}
    assert await cloud.identity.limits("glance", project_id) == {}


async def test_the_administrator_logs_in_with_the_password_given(cloud: IdentityCloud) -> None:
    assert (await cloud.authenticate(password("admin", ADMIN_PASSWORD))).status_code == 201
