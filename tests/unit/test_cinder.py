"""The client of Cinder: whose tokens it shows, which versions it asks for, and what it makes of lost answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from volume_clients import OWN_PROJECT, OverHttp, over_http
from volume_cloud import ADMIN, SERVER, USER

from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    InvalidVolume,
    KilonovaError,
    NotSupported,
    ServiceUnavailable,
    VolumeNotFound,
)
from kilonova.embedded.volume import attachments, volumes
from kilonova.services.cinder import Cinder, VolumeServiceOptions, cinder
from kilonova.services.volumes import NewSnapshot, NewVolume

VOLUME = "11111111-1111-4111-8111-111111111111"
CONNECTOR = {"host": "h1"}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[OverHttp]:
    async with over_http(tmp_path) as clients:
        yield clients


async def kept(http: OverHttp, volume_id: str) -> list[str]:
    found = await http.cloud.database.read(lambda conn: attachments.of_volume(conn, volume_id))
    return [one.id for one in found]


@pytest.mark.spec("EMV-21")
async def test_an_answer_that_is_lost_leaves_nothing_behind(http: OverHttp) -> None:
    id_ = await http.cloud.make()
    http.line.lose = [("POST", "/attachments")]
    with pytest.raises(ServiceUnavailable):
        await http.client.create_attachment(id_, SERVER, ())
    [lost] = await kept(http, id_)
    http.line.lose = [("PUT", "/attachments/")]
    with pytest.raises(ServiceUnavailable):
        await http.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    made = await http.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    assert made.id == lost
    http.line.lose = [("DELETE", "/attachments/")]
    with pytest.raises(ServiceUnavailable):
        await http.client.discard_attachments(id_, SERVER, ())
    await http.client.discard_attachments(id_, SERVER, ())
    assert await kept(http, id_) == []


async def test_a_volume_whose_making_was_not_answered_is_found(http: OverHttp) -> None:
    new = NewVolume(key="op's \"root\" {'x': 1}", size=1)
    http.line.lose = [("POST", "/volumes")]
    with pytest.raises(ServiceUnavailable):
        await http.client.create_volume(USER, new)
    await http.cloud.settle()
    made = await http.client.create_volume(USER, new)
    assert made.status == "available"
    http.line.lose = [("POST", "/snapshots")]
    with pytest.raises(ServiceUnavailable):
        await http.client.create_snapshot(USER, NewSnapshot(key="s", volume_id=made.id))
    await http.cloud.settle()
    await http.client.discard_snapshot(made.id, "s")
    await http.cloud.settle()
    await http.client.discard_volume(new.key)
    await http.cloud.settle()
    assert await http.cloud.find(made.id) is None


async def test_a_detaching_that_was_not_answered_has_begun(http: OverHttp) -> None:
    id_ = await http.cloud.make()
    made = await http.client.create_attachment(id_, SERVER, (), connector=CONNECTOR)
    await http.client.complete_attachment(made.id)
    http.line.lose = [("POST", "/action")]
    with pytest.raises(ServiceUnavailable):
        await http.client.begin_detaching(id_)
    await http.client.begin_detaching(id_)


@pytest.mark.spec("EMV-23")
async def test_it_asks_as_a_service_and_makes_volumes_for_their_projects(http: OverHttp) -> None:
    made = await http.client.create_volume(USER, NewVolume(key="k", size=1))
    assert (await http.cloud.get(made.id)).project_id == USER.project_id
    await http.client.create_volume(USER, NewVolume(key="l", size=1))
    assert [token.split()[0] for token in http.identity.given] == [OWN_PROJECT, USER.project_id]
    for method, path, headers in http.line.requests:
        if path == "/volume/":
            continue
        assert headers["x-service-token"] == headers["x-auth-token"]
        project = USER.project_id if method == "POST" else OWN_PROJECT
        assert f"/v3/{project}/" in path
        assert headers["openstack-api-version"] == "volume 3.44"
    await http.cloud.settle()
    attached = await http.client.create_attachment(made.id, SERVER, (), connector=CONNECTOR)
    await http.client.complete_attachment(attached.id)
    http.cloud.compute.uses = {attached.id}
    await http.client.delete_attachment(attached.id)  # which nobody but a service may, while the server uses it
    assert await kept(http, made.id) == []


async def test_a_token_that_has_expired_is_replaced(http: OverHttp) -> None:
    made = await http.client.create_volume(USER, NewVolume(key="k", size=1))
    http.identity.revoked |= set(http.identity.given)
    await http.client.create_volume(USER, NewVolume(key="l", size=1))
    assert len(http.identity.given) == 4
    assert (await http.client.volume(USER, made.id)).id == made.id
    assert len(http.identity.given) == 4


async def test_a_project_in_which_it_has_no_role(http: OverHttp) -> None:
    http.identity.no_role = {USER.project_id or ""}
    with pytest.raises(KilonovaError, match=r"volume service and project a{32}"):
        await http.client.create_volume(USER, NewVolume(key="k", size=1))
    await http.client.create_volume(ADMIN, NewVolume(key="k", size=1))


class Answers:
    """Calls that are answered as told: a body, or an error, by the method and the end of the path."""

    def __init__(self, newest: str | None, **answers: Any) -> None:
        self.newest = newest
        self.answers = answers
        self.asked: list[str] = []

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None,
        headers: Mapping[str, str] | None = None, project: str = "",
    ) -> Any:
        if path == "/":
            found = [] if self.newest is None else [{"id": "v3.0", "version": self.newest}]
            return {"versions": [{"id": "v2.0", "version": ""}, *found]}
        action = next(iter(body)) if body else ""
        self.asked.append(f"{method} {path} {action} {(headers or {})['OpenStack-API-Version']}")
        answer = self.answers[method]
        if isinstance(answer, KilonovaError):
            raise answer
        return answer


@pytest.mark.spec("EMV-19")
@pytest.mark.parametrize("newest", ["3.43", None])
async def test_a_service_that_is_too_old_is_asked_for_nothing(newest: str | None) -> None:
    calls = Answers(newest, GET={})
    with pytest.raises(NotSupported, match=r"3\.44 is needed"):
        await Cinder(calls).volume(None, VOLUME)
    assert calls.asked == []


async def test_each_call_asks_for_the_version_that_it_needs() -> None:
    calls = Answers("3.67", POST=None)
    client = Cinder(calls)
    with pytest.raises(NotSupported, match=r"has version 3\.67 of its API; 3\.68 is needed"):
        await client.reimage(VOLUME, VOLUME)
    calls.newest = "3.71"
    await client.reimage(VOLUME, VOLUME)
    await client.extend_completed(VOLUME, error=False)
    await client.begin_detaching(VOLUME)
    path = f"POST /v3/{{project}}/volumes/{VOLUME}/action"
    assert calls.asked == [
        f"{path} os-reimage volume 3.68", f"{path} os-extend_volume_completion volume 3.71",
        f"{path} os-begin_detaching volume 3.44",
    ]


@pytest.mark.parametrize("refusal", [InvalidInput("It is in error."), Conflict("It is in error.")])
async def test_what_is_refused_is_so_for_the_state_of_the_volume(refusal: KilonovaError) -> None:
    found = {"volume": {"id": VOLUME, "status": "error", "size": 1}}
    client = Cinder(Answers("3.71", POST=refusal, DELETE=refusal, GET=found))
    for call in (client.begin_detaching(VOLUME), client.delete_volume(VOLUME), client.reimage(VOLUME, VOLUME)):
        with pytest.raises(InvalidVolume, match="It is in error"):
            await call
    await client.extend_completed(VOLUME, error=True)  # it does not wait for that any more
    await client.roll_detaching(VOLUME)
    with pytest.raises(Forbidden):
        await Cinder(Answers("3.71", GET=Forbidden("no"))).volume(None, VOLUME)


async def test_an_answer_that_makes_no_sense() -> None:
    for answer in ({"volume": {"id": VOLUME}}, {}, [], None):
        with pytest.raises(KilonovaError, match="something unexpected"):
            await Cinder(Answers("3.71", GET=answer)).volume(None, VOLUME)


async def test_what_is_configured_is_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"volume_service\.endpoint"):
        cinder(VolumeServiceOptions(endpoint="cinder"))
    with pytest.raises(InvalidInput, match=r"volume_service\.username needs"):
        cinder(VolumeServiceOptions(endpoint="http://127.0.0.1:1", username="compute"))


async def test_a_service_that_does_not_answer() -> None:
    with pytest.raises(ServiceUnavailable):
        await cinder(VolumeServiceOptions(endpoint="http://127.0.0.1:1")).volume(None, VOLUME)


async def test_many_ask_at_once(http: OverHttp) -> None:
    ids = [await http.cloud.make() for _ in range(4)]
    found = await asyncio.gather(*(http.client.volume(USER, id_) for id_ in ids * 3))
    assert [one.id for one in found] == ids * 3
    with pytest.raises(VolumeNotFound):
        await http.client.volume(USER, VOLUME)
    assert len(http.identity.given) == 1
    assert await http.cloud.database.read(lambda conn: volumes.get(conn, ids[0])) is not None
