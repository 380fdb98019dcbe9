"""Who may do what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from identity_cloud import (
    ADMIN_PASSWORD,
    BASE,
    IdentityCloud,
    Session,
    identity_cloud,
    on_project,
    password,
)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[IdentityCloud]:
    async with identity_cloud(tmp_path) as running:
        yield running


LISTS = ("users", "projects", "roles", "domains", "groups", "services", "endpoints", "role_assignments",
         "role_inferences")

WRITES = (
    ("POST", "/users", {"user": {"name": "x"}}),
    ("POST", "/projects", {"project": {"name": "x"}}),
    ("POST", "/roles", {"role": {"name": "x"}}),
    ("POST", "/domains", {"domain": {"name": "x"}}),
    ("POST", "/groups", {"group": {"name": "x"}}),
    ("POST", "/services", {"service": {"type": "x"}}),
    ("POST", "/regions", {"region": {"id": "x"}}),
    ("POST", "/endpoints", {"endpoint": {"service_id": "x", "interface": "public", "url": "http://x"}}),
    ("PATCH", "/domains/default", {"domain": {"description": "x"}}),
    ("PATCH", "/projects/{project}", {"project": {"description": "x"}}),
    ("DELETE", "/projects/{project}", None),
    ("DELETE", "/users/{user}", None),
    ("PUT", "/projects/{project}/tags/x", None),
    ("PUT", "/projects/{project}/users/{user}/roles/{admin_role}", None),
    ("DELETE", "/projects/{project}/users/{user}/roles/{admin_role}", None),
    ("PUT", "/system/users/{user}/roles/{admin_role}", None),
    ("PUT", "/roles/{admin_role}/implies/{admin_role}", None),
    ("POST", "/registered_limits", {"registered_limits": []}),
)


async def place(cloud: IdentityCloud, session: Session, path: str) -> str:
    admin_role = await (await cloud.admin()).role_id("admin")
    return path.format(user=session.body["user"]["id"], project=session.body["project"]["id"], admin_role=admin_role)


@pytest.mark.spec("EMI-53", "EMI-05")
@pytest.mark.parametrize("role", ["manager", "member", "reader", "service"])
async def test_only_the_administrator_changes_things(cloud: IdentityCloud, role: str) -> None:
    session = await cloud.member("alice", role)
    for method, path, body in WRITES:
        answer = await session.call(method, await place(cloud, session, path), body)
        assert answer.status_code == 403, (method, path, answer.text)
        assert answer.json()["error"]["code"] == 403
    assert await session.still_works()


@pytest.mark.spec("EMI-53")
async def test_members_do_not_list_and_readers_of_the_system_do(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    for plural in LISTS:
        assert (await alice.get(f"/{plural}")).status_code == 403, plural
        assert (await admin.get(f"/{plural}")).status_code == 200, plural
    await admin.grant(alice.body["user"]["id"], "reader", "system")
    auditor = await cloud.session(password("alice", "alice"), {"system": {"all": True}})
    for plural in LISTS:
        assert (await auditor.get(f"/{plural}")).status_code == 200, plural
    assert (await auditor.call("POST", "/users", {"user": {"name": "x"}})).status_code == 403


@pytest.mark.spec("EMI-53")
async def test_readers_of_a_domain_see_that_domain(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    domain = await admin.make("domain", name="d")
    for kind in ("user", "group", "project"):
        await admin.make(kind, name="within", domain_id=domain["id"])
        await admin.make(kind, name="outside")
    user = await admin.make("user", name="auditor", password="auditor")
    await admin.grant(user["id"], "reader", f"domains/{domain['id']}")
    auditor = await cloud.session(password("auditor", "auditor"), {"domain": {"name": "D"}})
    assert auditor.body["domain"] == {"id": domain["id"], "name": "d"}
    for plural in ("users", "groups", "projects"):
        listed = (await auditor.get(f"/{plural}")).json()[plural]
        assert [each["name"] for each in listed] == ["within"]
        shown = await auditor.get(f"/{plural}/{listed[0]['id']}")
        assert shown.status_code == 200
        elsewhere = (await admin.get(f"/{plural}?name=outside")).json()[plural][0]
        assert (await auditor.get(f"/{plural}/{elsewhere['id']}")).status_code == 403
    assert [each["name"] for each in (await auditor.get("/domains")).json()["domains"]] == ["d"]
    assert (await auditor.get(f"/role_assignments?scope.domain.id={domain['id']}")).status_code == 200
    assert (await auditor.get("/role_assignments?scope.domain.id=default")).status_code == 403
    assert (await auditor.get("/role_assignments")).status_code == 403


@pytest.mark.spec("EMI-53")
async def test_everyone_sees_and_changes_itself_within_bounds(cloud: IdentityCloud) -> None:
    alice, bob = await cloud.member("alice"), await cloud.member("bob")
    user, project = alice.body["user"]["id"], alice.body["project"]["id"]
    for path in (f"/users/{user}", f"/users/{user}/projects", f"/users/{user}/groups", f"/projects/{project}",
                 "/domains/default", f"/role_assignments?user.id={user}", "/regions", "/auth/projects"):
        assert (await alice.get(path)).status_code == 200, path
    for path in (f"/users/{user}", f"/users/{user}/projects", f"/users/{user}/groups", f"/projects/{project}",
                 f"/role_assignments?user.id={user}"):
        assert (await bob.get(path)).status_code == 403, path
    changed = await alice.call("PATCH", f"/users/{user}", {"user": {"email": "a@b", "description": "x"}})
    assert (changed.status_code, changed.json()["user"]["email"]) == (200, "a@b")
    for attributes in ({"password": "x"}, {"enabled": True}, {"name": "x"}, {"options": {}}):
        assert (await alice.call("PATCH", f"/users/{user}", {"user": attributes})).status_code == 403, attributes
    assert (await bob.call("PATCH", f"/users/{user}", {"user": {"email": "x"}})).status_code == 403


@pytest.mark.spec("EMI-36")
async def test_a_user_changes_its_password_by_proving_the_old_one(cloud: IdentityCloud) -> None:
    alice, bob = await cloud.member("alice"), await cloud.member("bob")
    path = f"/users/{alice.body['user']['id']}/password"
    body = {"user": {"original_password": "alice", "password": "new"}}
    assert (await bob.call("POST", path, body)).status_code == 403
    wrong = await alice.call("POST", path, {"user": {"original_password": "wrong", "password": "new"}})
    assert wrong.status_code == 401
    assert (await alice.call("POST", path, {"user": {"password": "new"}})).status_code == 400
    assert await alice.still_works()
    assert (await alice.call("POST", path, body)).status_code == 204
    assert not await alice.still_works()
    assert (await cloud.authenticate(password("alice", "alice"))).status_code == 401
    assert (await cloud.authenticate(password("alice", "new"), on_project("alice"))).status_code == 201


@pytest.mark.spec("EMI-51", "EMI-52")
async def test_a_service_looks_things_up_with_a_token_of_its_own(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice")
    token = await cloud.identity.service_token("nova")
    nova = Session(cloud.http, token, {})
    validated = await cloud.identity.validate(token)
    assert (validated.user_name, validated.project_name, validated.roles) == ("nova", "service", ("service",))
    assert (await nova.get(f"/projects/{alice.body['project']['id']}")).status_code == 200
    assert (await nova.get("/projects/unknown")).status_code == 404
    assert (await nova.get(f"/users/{alice.body['user']['id']}")).status_code == 200
    assert (await nova.get("/auth/tokens", X_Subject_Token=alice.token)).status_code == 200
    assert (await nova.get("/users")).status_code == 403
    assert (await nova.call("DELETE", "/auth/tokens", X_Subject_Token=alice.token)).status_code == 403


async def test_tokens_are_revoked_by_their_user_or_the_administrator(cloud: IdentityCloud) -> None:
    alice, bob, admin = await cloud.member("alice"), await cloud.member("bob"), await cloud.admin()
    assert (await bob.call("DELETE", "/auth/tokens", X_Subject_Token=alice.token)).status_code == 403
    assert await alice.still_works()
    assert (await admin.call("DELETE", "/auth/tokens", X_Subject_Token=alice.token)).status_code == 204
    assert not await alice.still_works()


@pytest.mark.spec("EMI-04", "EMI-06")
@pytest.mark.parametrize("path", ["/users", "/projects", "/auth/catalog", "/no/such/path"])
async def test_everything_else_needs_a_token(cloud: IdentityCloud, path: str) -> None:
    answer = await cloud.http.get(f"/identity/v3{path}")
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == f'Keystone uri="{BASE}/identity"'
    assert answer.json()["error"]["code"] == 401
    missing = await (await cloud.admin()).get("/no/such/path")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, 404)


async def test_the_catalogue_needs_a_scope(cloud: IdentityCloud) -> None:
    unscoped = await cloud.session(password("admin", ADMIN_PASSWORD))
    assert (await unscoped.get("/auth/catalog")).status_code == 403
    assert (await unscoped.get("/auth/system")).json()["system"] == [{"all": True}]
    alice = await cloud.member("alice")
    assert (await alice.get("/auth/system")).json()["system"] == []
    assert (await alice.get("/auth/domains")).json()["domains"] == []


async def test_values_that_no_database_holds_are_400_not_500(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for answer in (
        await admin.call("POST", "/projects", {"project": {"name": "x\0y"}}),
        await admin.get("/projects?name=x%00y"),
        await admin.get("/projects/x%00y"),
    ):
        assert answer.status_code < 500, answer.text
