"""What the compute service relies on in any identity service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import pytest
from identity_cloud import IdentityCloud, Session, identity_cloud, password

from kilonova.domain.errors import Unauthorized
from kilonova.services.identity import IdentityService


class Cloud(Protocol):
    """What a test needs of the service under test besides the protocol itself."""

    identity: IdentityService

    async def token(self, *roles: str) -> Session:
        """A user `alice` with these roles on a project `alice`, logged in to it."""
        ...

    async def system_token(self) -> str: ...

    async def revoke(self, token: str) -> None: ...

    async def expire(self) -> None:
        """Let enough time pass for every token to expire."""
        ...

    async def delete_project(self, project_id: str) -> None: ...


class EmbeddedCloud:
    def __init__(self, cloud: IdentityCloud) -> None:
        self._cloud = cloud
        self.identity: IdentityService = cloud.identity

    async def token(self, *roles: str) -> Session:
        return await self._cloud.member("alice", *roles)

    async def system_token(self) -> str:
        admin = await self._cloud.admin()
        user = await admin.make("user", name="auditor", password="auditor")
        await admin.grant(user["id"], "reader", "system")
        return (await self._cloud.session(password("auditor", "auditor"), {"system": {"all": True}})).token

    async def revoke(self, token: str) -> None:
        admin = await self._cloud.admin()
        assert (await admin.call("DELETE", "/auth/tokens", X_Subject_Token=token)).status_code == 204

    async def expire(self) -> None:
        self._cloud.clock.advance(24 * 3600)

    async def delete_project(self, project_id: str) -> None:
        assert (await (await self._cloud.admin()).call("DELETE", f"/projects/{project_id}")).status_code == 204


@pytest.fixture(params=["embedded on sqlite", "embedded on postgresql"])
async def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cloud]:
    url = request.getfixturevalue("postgres_url") if "postgresql" in request.param else None
    async with identity_cloud(tmp_path, url) as running:
        yield EmbeddedCloud(running)


async def test_a_project_token_tells_who_and_for_what(cloud: Cloud) -> None:
    session = await cloud.token("member")
    token = await cloud.identity.validate(session.token)
    user, project = session.body["user"], session.body["project"]
    assert (token.user_id, token.user_name, token.user_domain_id) == (user["id"], "alice", "default")
    assert (token.project_id, token.project_name, token.project_domain_id) == (project["id"], "alice", "default")
    assert (token.system, token.domain_id) == (False, None)


@pytest.mark.spec("EMI-38")
@pytest.mark.parametrize("role, shown", [
    ("admin", {"admin", "manager", "member", "reader"}), ("manager", {"manager", "member", "reader"}),
    ("member", {"member", "reader"}), ("reader", {"reader"}), ("service", {"service"}),
])
async def test_roles_come_with_what_they_imply(cloud: Cloud, role: str, shown: set[str]) -> None:
    token = await cloud.identity.validate((await cloud.token(role)).token)
    assert set(token.roles) == shown
    assert len(token.roles) == len(shown)


async def test_a_system_token_has_no_project(cloud: Cloud) -> None:
    token = await cloud.identity.validate(await cloud.system_token())
    assert (token.system, token.project_id, token.roles) == (True, None, ("reader",))


@pytest.mark.parametrize("secret", ["", "unknown", "gAAAAA" + "x" * 200, "\u00e9", "x" * 100_000])
async def test_what_is_no_token_is_unauthorized(cloud: Cloud, secret: str) -> None:
    with pytest.raises(Unauthorized):
        await cloud.identity.validate(secret)


async def test_a_changed_token_is_unauthorized(cloud: Cloud) -> None:
    secret = (await cloud.token()).token
    for place in (10, len(secret) // 2, len(secret) - 2):
        changed = secret[:place] + ("A" if secret[place] != "A" else "B") + secret[place + 1:]
        with pytest.raises(Unauthorized):
            await cloud.identity.validate(changed)
    await cloud.identity.validate(secret)


@pytest.mark.spec("EMI-36")
async def test_a_revoked_token_is_unauthorized_at_once(cloud: Cloud) -> None:
    secret = (await cloud.token()).token
    await cloud.identity.validate(secret)
    await cloud.revoke(secret)
    with pytest.raises(Unauthorized):
        await cloud.identity.validate(secret)


@pytest.mark.spec("EMI-36")
async def test_a_token_is_refused_while_many_check_it_and_one_revokes_it(cloud: Cloud) -> None:
    secret = (await cloud.token()).token
    revoked = asyncio.Event()

    async def check() -> None:
        while not revoked.is_set():
            try:
                await cloud.identity.validate(secret)
            except Unauthorized:
                return
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(check())
        await cloud.revoke(secret)
        with pytest.raises(Unauthorized):
            await cloud.identity.validate(secret)
        revoked.set()


async def test_an_expired_token_is_unauthorized(cloud: Cloud) -> None:
    secret = (await cloud.token()).token
    before = await cloud.identity.validate(secret)
    assert before.expires_at > 0
    await cloud.expire()
    with pytest.raises(Unauthorized):
        await cloud.identity.validate(secret)


@pytest.mark.spec("EMI-52")
async def test_a_project_exists_until_it_is_deleted(cloud: Cloud) -> None:
    project_id = (await cloud.token()).body["project"]["id"]
    assert await cloud.identity.project_exists(project_id)
    assert not await cloud.identity.project_exists("0" * 32)
    await cloud.delete_project(project_id)
    assert not await cloud.identity.project_exists(project_id)
