"""Application credentials: what they give, and when they stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from identity_cloud import IdentityCloud, Session, identity_cloud, password, with_credential, with_token

from kilonova.domain.clock import iso_seconds
from kilonova.domain.errors import Unauthorized


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[IdentityCloud]:
    async with identity_cloud(tmp_path) as running:
        yield running


def own(session: Session) -> str:
    return f"/users/{session.body['user']['id']}/application_credentials"


async def credential(session: Session, name: str = "c", **attributes: Any) -> dict[str, Any]:
    answer = await session.call("POST", own(session), {"application_credential": {"name": name, **attributes}})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()["application_credential"]
    return made


async def refused(cloud: IdentityCloud, made: dict[str, Any]) -> bool:
    answer = await cloud.authenticate(with_credential(made))
    assert answer.status_code in (201, 401), answer.text
    return answer.status_code == 401


@pytest.mark.spec("EMI-46")
async def test_a_credential_gives_the_roles_of_the_token_that_made_it(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice", "manager")
    made = await credential(alice, description="for a script")
    assert set(made) == {"id", "name", "description", "user_id", "project_id", "unrestricted", "expires_at", "roles",
                         "links", "secret"}
    assert made["project_id"] == alice.body["project"]["id"]
    assert (made["unrestricted"], made["expires_at"]) == (False, None)
    session = await cloud.session(with_credential(made))
    assert session.body["application_credential"] == {"id": made["id"], "name": "c", "restricted": True}
    assert session.body["methods"] == ["application_credential"]
    assert session.body["project"] == alice.body["project"]
    assert session.body["roles"] == alice.body["roles"]
    by_name = {"name": "C", "user": {"name": "alice", "domain": {"id": "default"}}, "secret": made["secret"]}
    await cloud.session({"methods": ["application_credential"], "application_credential": by_name})


@pytest.mark.spec("EMI-46")
async def test_a_credential_of_chosen_roles_stops_when_one_is_lost(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice", "member", "service"), await cloud.admin()
    made = await credential(alice, roles=[{"name": "SERVICE"}])
    assert [role["name"] for role in made["roles"]] == ["service"]
    session = await cloud.session(with_credential(made))
    assert [role["name"] for role in session.body["roles"]] == ["service"]
    for wanted in ({"name": "admin"}, {"id": "unknown"}, {}):
        answer = await alice.call("POST", own(alice), {"application_credential": {"name": "x", "roles": [wanted]}})
        assert answer.status_code == 400, wanted
    place = f"projects/{alice.body['project']['id']}/users/{alice.body['user']['id']}"
    await admin.call("DELETE", f"/{place}/roles/{await admin.role_id('service')}")
    assert not await session.still_works()
    assert await refused(cloud, made)
    assert await alice.still_works()


@pytest.mark.spec("EMI-47")
async def test_a_wrong_expired_or_deleted_credential_is_401(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice")
    soon = iso_seconds(cloud.clock.now() + 60).removesuffix("Z")
    made = await credential(alice, expires_at=soon)
    session = await cloud.session(with_credential(made))
    assert session.body["expires_at"] == made["expires_at"] + "Z"
    assert await refused(cloud, made | {"secret": "wrong"})
    assert await refused(cloud, made | {"id": "unknown"})
    cloud.clock.advance(61)
    assert await refused(cloud, made)
    assert not await session.still_works()
    lasting = await credential(alice, "lasting")
    session = await cloud.session(with_credential(lasting))
    assert (await alice.call("DELETE", f"{own(alice)}/{lasting['id']}")).status_code == 204
    assert await refused(cloud, lasting)
    assert not await session.still_works()


@pytest.mark.spec("EMI-47")
async def test_a_credential_ends_with_its_user(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    made = await credential(alice)
    session = await cloud.session(with_credential(made))
    await admin.call("PATCH", f"/users/{alice.body['user']['id']}", {"user": {"enabled": False}})
    assert await refused(cloud, made)
    assert not await session.still_works()


@pytest.mark.spec("EMI-45")
async def test_a_restricted_credential_manages_no_credentials(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice")
    restricted = await cloud.session(with_credential(await credential(alice)))
    body = {"application_credential": {"name": "another"}}
    assert (await restricted.call("POST", own(alice), body)).status_code == 403
    listed = (await restricted.get(own(alice))).json()["application_credentials"]
    assert (await restricted.call("DELETE", f"{own(alice)}/{listed[0]['id']}")).status_code == 403
    free = await cloud.session(with_credential(await credential(alice, "free", unrestricted=True)))
    assert (await free.call("POST", own(alice), body)).status_code == 201
    assert (await free.call("DELETE", f"{own(alice)}/{listed[0]['id']}")).status_code == 204


async def test_the_scope_of_a_credential_is_fixed(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice")
    made = await credential(alice)
    scope = {"project": {"id": made["project_id"]}}
    assert (await cloud.authenticate(with_credential(made), scope)).status_code == 401
    session = await cloud.session(with_credential(made))
    assert (await cloud.authenticate(with_token(session.token), scope)).status_code == 403
    assert (await cloud.authenticate(with_token(session.token))).status_code == 403


async def test_credentials_are_listed_without_their_secret(cloud: IdentityCloud) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    made = await credential(alice, secret="swordfish")
    assert made["secret"] == "swordfish"
    await credential(alice, "d")
    again = await alice.call("POST", own(alice), {"application_credential": {"name": "C"}})
    assert again.status_code == 409
    for session in (alice, admin):
        listed = await session.get(f"{own(alice)}?name=c")
        shown = await session.get(f"{own(alice)}/{made['id']}")
        assert "swordfish" not in listed.text + shown.text
        assert [each["id"] for each in listed.json()["application_credentials"]] == [made["id"]]
        assert shown.json()["application_credential"] == {
            name: value for name, value in made.items() if name != "secret"
        }
    assert (await admin.call("POST", own(alice), {"application_credential": {"name": "x"}})).status_code == 403
    bob = await cloud.member("bob")
    for method, path in (("GET", own(alice)), ("GET", f"{own(alice)}/{made['id']}"),
                         ("DELETE", f"{own(alice)}/{made['id']}")):
        assert (await bob.call(method, path)).status_code == 403
    assert (await bob.get(f"{own(bob)}/{made['id']}")).status_code == 404
    assert (await bob.call("DELETE", f"{own(bob)}/{made['id']}")).status_code == 404


MALFORMED: tuple[dict[str, Any], ...] = (
    {"name": ""}, {"expires_at": "2001-01-01T00:00:00"}, {"expires_at": "tomorrow"}, {"roles": "member"},
    {"access_rules": [{"service": "compute"}]},
    {"access_rules": [{"service": "compute", "method": "BREW", "path": "/"}]},
    {"access_rules": [{"service": "compute", "method": "GET", "path": "x"}]},
)


async def test_malformed_credentials_are_400(cloud: IdentityCloud) -> None:
    alice = await cloud.member("alice")
    for attributes in MALFORMED:
        answer = await alice.call("POST", own(alice), {"application_credential": {"name": "c", **attributes}})
        assert answer.status_code == 400, (attributes, answer.text)


async def test_a_credential_needs_a_project(cloud: IdentityCloud) -> None:
    await cloud.member("alice")
    unscoped = await cloud.session(password("alice", "alice"))
    answer = await unscoped.call("POST", own(unscoped), {"application_credential": {"name": "c"}})
    assert answer.status_code == 400


@pytest.mark.spec("EMI-48")
async def test_access_rules_are_told_to_services_and_refused_where_they_cannot_be_checked(
    cloud: IdentityCloud,
) -> None:
    alice, admin = await cloud.member("alice"), await cloud.admin()
    rule = {"service": "compute", "method": "GET", "path": "/v2.1/servers"}
    made = await credential(alice, access_rules=[rule])
    stored = made["access_rules"][0]
    assert {name: stored[name] for name in rule} == rule
    session = await cloud.session(with_credential(made))
    with pytest.raises(Unauthorized):
        await cloud.identity.validate(session.token)
    assert not await session.still_works()
    seen = (await admin.get("/auth/tokens", X_Subject_Token=session.token)).json()["token"]
    assert seen["application_credential"]["access_rules"] == [rule | {"id": stored["id"]}]
    rules = f"/users/{alice.body['user']['id']}/access_rules"
    assert [each["id"] for each in (await alice.get(rules)).json()["access_rules"]] == [stored["id"]]
    assert (await alice.get(f"{rules}/{stored['id']}")).json()["access_rule"] == stored
    again = await credential(alice, "again", access_rules=[rule])
    assert again["access_rules"] == [stored]
    by_id = await credential(alice, "by id", access_rules=[{"id": stored["id"]}])
    assert by_id["access_rules"] == [stored]
    assert (await alice.call("DELETE", f"{rules}/{stored['id']}")).status_code == 403
    for each in (made, again, by_id):
        await alice.call("DELETE", f"{own(alice)}/{each['id']}")
    assert (await alice.call("DELETE", f"{rules}/{stored['id']}")).status_code == 204
    assert (await alice.get(f"{rules}/{stored['id']}")).status_code == 404
