"""What a new service begins with, and what a restart leaves alone."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from identity_cloud import (
    ADMIN_PASSWORD,
    BASE,
    IdentityCloud,
    ManualClock,
    identity_cloud,
    on_project,
    password,
)

from kilonova.domain.errors import KilonovaError, NotFound, Unauthorized
from kilonova.embedded.identity.service import EmbeddedIdentity
from kilonova.embedded.identity.tokens import TokenCodec


@pytest.fixture(params=["sqlite", "postgresql"])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IdentityCloud]:
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    async with identity_cloud(tmp_path, url) as running:
        yield running


@pytest.mark.spec("EMI-37", "EMI-38", "EMI-51")
async def test_the_first_start_makes_what_every_client_expects(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    domains = (await admin.get("/domains")).json()["domains"]
    assert [(each["id"], each["name"]) for each in domains] == [("default", "Default")]
    projects = (await admin.get("/projects")).json()["projects"]
    assert {each["name"]: each["id"] for each in projects} == {
        "admin": cloud.made.admin_project_id, "service": cloud.made.service_project_id
    }
    found = (await admin.get("/role_assignments?include_names")).json()["role_assignments"]
    assignments = {
        (each["user"]["name"], each["role"]["name"], each["scope"].get("project", {"name": "system"})["name"])
        for each in found
    }
    assert assignments == {
        ("admin", "admin", "admin"), ("admin", "admin", "system"), ("nova", "service", "service"),
        ("glance", "service", "service"), ("neutron", "service", "service"), ("placement", "service", "service"),
    }
    assert set(cloud.made.service_users) == {"nova", "glance", "neutron", "placement"}


@pytest.mark.spec("EMI-37")
async def test_a_second_start_changes_nothing(cloud: IdentityCloud, tmp_path: Path) -> None:
    admin = await cloud.admin()
    paths = ("/users", "/projects", "/roles", "/services", "/endpoints", "/role_assignments", "/role_inferences")
    before = [(await admin.get(path)).json() for path in paths]
    again = EmbeddedIdentity(cloud.database, tmp_path / "keys", cloud.clock, BASE)
    try:
        assert await again.bootstrap("another password") == cloud.made
    finally:
        again.close()
    assert [(await admin.get(path)).json() for path in paths] == before
    assert (await cloud.authenticate(password("admin", ADMIN_PASSWORD), on_project("admin"))).status_code == 201
    assert (await cloud.authenticate(password("admin", "another password"))).status_code == 401


async def test_a_start_under_another_address_moves_the_catalogue(cloud: IdentityCloud, tmp_path: Path) -> None:
    await cloud.admin()
    moved = EmbeddedIdentity(cloud.database, tmp_path / "keys", cloud.clock, "https://cloud.example/")
    try:
        await moved.bootstrap(ADMIN_PASSWORD)
    finally:
        moved.close()
    cloud.clock.advance(60)  # past what the first process may still remember
    catalogue = (await (await cloud.admin()).get("/auth/catalog")).json()["catalog"]
    urls = {endpoint["url"] for entry in catalogue for endpoint in entry["endpoints"]}
    assert urls == {f"https://cloud.example/{path}" for path in (
        "identity", "compute/v2.1", "image", "network", "placement"
    )}


@pytest.mark.spec("EMI-51")
async def test_service_users_have_no_password(cloud: IdentityCloud) -> None:
    for secret in ("", "nova", "None"):
        assert (await cloud.authenticate(password("nova", secret))).status_code == 401
    with pytest.raises(NotFound):
        await cloud.identity.service_token("nobody")
    admin = await cloud.admin()
    user_id = cloud.made.service_users["nova"]
    token = await cloud.identity.service_token("nova")
    await admin.call("PATCH", f"/users/{user_id}", {"user": {"enabled": False}})
    with pytest.raises(Unauthorized):
        await cloud.identity.validate(token)
    with pytest.raises(Unauthorized):
        await cloud.identity.service_token("nova")


async def test_values_that_the_database_cannot_hold_do_not_break_it(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for answer in (
        await admin.call("POST", "/projects", {"project": {"name": "x\0y"}}),
        await admin.get("/projects?name=x%00y"),
        await admin.get("/projects/x%00y"),
        await admin.get(f"/projects/{'x' * 5000}"),
        await admin.call("POST", "/regions", {"region": {"id": "x" * 300}}),
    ):
        assert 200 <= answer.status_code < 500, answer.text
    assert await admin.still_works()


async def test_limits_of_one_region_or_none_are_told_apart(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    service = (await admin.get("/services?name=glance")).json()["services"][0]["id"]
    limit = {"service_id": service, "resource_name": "size", "default_limit": 1}
    for each, status in ((limit, 201), (limit, 409), (limit | {"region_id": "RegionOne"}, 201)):
        answer = await admin.call("POST", "/registered_limits", {"registered_limits": [each]})
        assert answer.status_code == status, answer.text


@pytest.mark.spec("EMI-40")
async def test_the_same_thing_at_once_is_done_once(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    user, group = await admin.make("user", name="u"), await admin.make("group", name="g")
    role = await admin.role_id("member")
    for path in (f"/system/users/{user['id']}/roles/{role}", f"/groups/{group['id']}/users/{user['id']}"):
        answers = await asyncio.gather(*(admin.call("PUT", path) for _ in range(8)))
        statuses = {answer.status_code for answer in answers}
        assert 204 in statuses and statuses <= {204, 409}
        assert (await admin.call("HEAD", path)).status_code == 204
    made = await asyncio.gather(*(admin.call("POST", "/users", {"user": {"name": "v"}}) for _ in range(8)))
    assert sorted(answer.status_code for answer in made) == [201] + [409] * 7
    token = (await cloud.admin()).token
    revoked = await asyncio.gather(*(
        admin.call("DELETE", "/auth/tokens", X_Subject_Token=token) for _ in range(8)
    ))
    assert {answer.status_code for answer in revoked} <= {204, 404}


async def test_tags_and_pages_work_on_either_database(cloud: IdentityCloud) -> None:
    admin = await cloud.admin()
    for number in range(3):
        await admin.make("project", name=f"p{number}", tags=[f"t{number}", 'quo"ted'])
    assert [each["name"] for each in (await admin.get("/projects?tags=t1")).json()["projects"]] == ["p1"]
    assert len((await admin.get('/projects?tags=quo"ted')).json()["projects"]) == 3
    first = (await admin.get("/projects?limit=2")).json()["projects"]
    then = (await admin.get(f"/projects?limit=2&marker={first[-1]['id']}")).json()["projects"]
    assert [each["name"] for each in first + then] == ["admin", "p0", "p1", "p2"]


async def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    keys = tmp_path / "secrets" / "keys"
    TokenCodec(keys)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    first = keys.read_bytes()
    TokenCodec(keys)
    assert keys.read_bytes() == first
    assert [path.name for path in keys.parent.iterdir()] == ["keys"]


async def test_a_new_key_is_put_above_the_old_one(tmp_path: Path) -> None:
    async with identity_cloud(tmp_path) as cloud:
        old = await cloud.admin()
        keys = tmp_path / "keys"
        keys.write_bytes(Fernet.generate_key() + b"\n" + keys.read_bytes())
        rotated = EmbeddedIdentity(cloud.database, keys, cloud.clock, BASE)
        try:
            await rotated.validate(old.token)
            with pytest.raises(Unauthorized):
                await cloud.identity.validate(await rotated.service_token("nova"))
        finally:
            rotated.close()


@pytest.mark.parametrize("content", [b"", b"not a key\n"])
async def test_damaged_keys_are_told_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content)
    with pytest.raises(KilonovaError, match="remove it"):
        TokenCodec(keys)


async def test_a_process_that_shares_the_database_sees_a_revocation_soon(tmp_path: Path) -> None:
    async with identity_cloud(tmp_path) as cloud:
        alice = await cloud.member("alice")
        other = EmbeddedIdentity(cloud.database, tmp_path / "keys", cloud.clock, BASE)
        try:
            await other.validate(alice.token)
            await alice.call("DELETE", "/auth/tokens", X_Subject_Token=alice.token)
            assert isinstance(cloud.clock, ManualClock)
            cloud.clock.advance(5)
            with pytest.raises(Unauthorized):
                await other.validate(alice.token)
        finally:
            other.close()
