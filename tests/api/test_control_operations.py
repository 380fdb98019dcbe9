"""The control API over operations: listing, showing, following, cancelling, and settling stranded ones."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
import sqlalchemy as sa

from kilonova.cli.session import Refused
from kilonova.control.documents import OperationView, Status
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import KilonovaError, NotFound
from kilonova.domain.operation import Entry, EntryState, Failure, OperationRecord, OperationState
from tests.control_cloud import LIMIT, ControlCloud, control_cloud, until


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ControlCloud]:
    async with control_cloud(tmp_path) as running:
        yield running


async def build_of(cloud: ControlCloud, server: str) -> OperationView:
    async def found() -> OperationView | None:
        return next((one for one in await cloud.operations(f"subject={server}") if one.kind == "build"), None)

    operation: OperationView = await until(found)
    return operation


async def ended(cloud: ControlCloud, operation: str) -> OperationView:
    async def look() -> OperationView | None:
        found = await cloud.operation(operation)
        return found if found.finished_at is not None else None

    operation_: OperationView = await until(look)
    return operation_


async def test_operations_are_listed_from_all_journals_with_their_steps(cloud: ControlCloud) -> None:
    server = await cloud.server()
    listed = await cloud.operations(f"subject={server.id}")
    assert [(one.kind, one.journal, one.state) for one in listed] == [
        ("build", "cell1", "succeeded"), ("place", "api", "succeeded"),
    ]
    assert {"create disks", "start guest"} <= {step.step for step in listed[0].steps}
    assert all(step.state == "done" for step in listed[0].steps)
    assert [one.kind for one in await cloud.operations("limit=1")] == ["build"]
    assert await cloud.operations("state=running&state=stranded") == []


async def test_nothing_that_may_be_secret_is_shown(cloud: ControlCloud) -> None:
    """The request of a build holds passwords and files while it runs."""
    server = await cloud.server()
    build = await build_of(cloud, server.id)
    secret = f"hush-{uuid.uuid4().hex}"
    t = cell_journal.operations

    def plant(conn: sa.Connection) -> None:
        record = cell_journal.get(conn, build.id)
        assert record is not None
        request = msgspec.json.decode(record.request) | {"admin_password": secret}
        output = msgspec.Raw(msgspec.json.encode({"power_state": 1, "password": secret}))
        changed = msgspec.structs.replace(
            record, request=msgspec.Raw(msgspec.json.encode(request)),
            entries=tuple(msgspec.structs.replace(entry, output=output) for entry in record.entries),
        )
        conn.execute(sa.update(t).where(t.c.id == build.id).values(body=changed))

    await cloud.database.write(plant)
    headers = await cloud.headers()
    async with httpx.AsyncClient(headers=headers) as client:
        for path in (f"/operations/{build.id}", "/operations"):
            answer = await client.get(f"{cloud.state.control_url}{path}")
            assert answer.status_code == 200 and build.id in answer.text
            assert secret not in answer.text


async def test_only_administrators_are_served(cloud: ControlCloud) -> None:
    paths = [("GET", path) for path in ("status", "hosts", "operations", "operations/follow", "operations/x", "audit")]
    paths += [("POST", path) for path in ("audit/heal", "operations/x/cancel", "operations/x/force")]
    base = cloud.state.auth_url
    admin = await cloud.headers()
    async with httpx.AsyncClient() as client:
        user = (await client.post(f"{base}/users", headers=admin, json={
            "user": {"name": "member", "password": "pw-of-member", "domain_id": "default"},
        })).json()["user"]["id"]
        projects = (await client.get(f"{base}/projects?name=admin", headers=admin)).json()["projects"]
        roles = (await client.get(f"{base}/roles?name=member", headers=admin)).json()["roles"]
        grant = f"{base}/projects/{projects[0]['id']}/users/{user}/roles/{roles[0]['id']}"
        assert (await client.put(grant, headers=admin)).status_code == 204
        signed_in = await client.post(f"{base}/auth/tokens", json={"auth": {
            "identity": {"methods": ["password"], "password": {"user": {"id": user, "password": "pw-of-member"}}},
            "scope": {"project": {"id": projects[0]["id"]}},
        }})
        member = {"X-Auth-Token": signed_in.headers["X-Subject-Token"]}
        for method, path in paths:
            for headers, refusal in (({}, 401), ({"X-Auth-Token": "nonsense"}, 401), (member, 403)):
                answer = await client.request(method, f"{cloud.state.control_url}/{path}", headers=headers)
                assert answer.status_code == refusal, (path, headers)


async def test_what_does_not_exist_or_makes_no_sense_is_refused(cloud: ControlCloud) -> None:
    with pytest.raises(NotFound, match="could not be found"):
        await cloud.operation(str(uuid.uuid4()))
    for query in ("state=asleep", "limit=0", "limit=many", "limit=1001"):
        with pytest.raises(Refused) as refused:
            await cloud.operations(query)
        assert refused.value.code == 400
    server = await cloud.server()
    build = await build_of(cloud, server.id)
    for action in ("cancel", "resume", "skip", "force"):
        with pytest.raises(Refused) as refused:
            await cloud.post(f"/operations/{build.id}/{action}")
        assert refused.value.code == 409
    with pytest.raises(Refused) as refused:
        await cloud.post(f"/operations/{build.id}/cancel", {"reason": 5})
    assert refused.value.code == 400


async def test_a_running_operation_tells_where_it_is_and_can_be_cancelled(tmp_path: Path) -> None:
    async with control_cloud(tmp_path, latency=0.3) as cloud:
        server = await cloud.ask_for_server()
        build = await build_of(cloud, server)

        async def at_a_step() -> OperationView | None:
            found = await cloud.operation(build.id)
            return found if found.step in ("create disks", "start guest") else None

        running = await until(at_a_step)
        assert (running.state, running.worked_on_by is not None) == ("running", True)
        assert running.steps[-1].state == "to do"
        answer = await cloud.post(f"/operations/{build.id}/cancel", {"reason": "changed my mind"}, OperationView)
        assert answer.cancel == "changed my mind"
        cancelled = await ended(cloud, build.id)
        assert cancelled.state == "cancelled"
        assert any(step.undo for step in cancelled.steps)
        assert all(cloud.hypervisor(agent.host).guests == {} for agent in cloud.machine.agents)


def stranded_stop(server: str) -> OperationRecord:
    """A stop whose second step failed, and whose first cannot be undone."""
    failure = Failure(kind="KilonovaError", message="the disk is on fire")
    return OperationRecord(
        id=str(uuid.uuid4()), kind="build", version=1, subject=server, state=OperationState.STRANDED, exclusive=True,
        created_at=1.0, updated_at=1.0, failure=failure,
        entries=(Entry(step="claim host", state=EntryState.DONE), Entry(step="claim host", undo=True, failure=failure)),
    )


async def strand(cloud: ControlCloud) -> str:
    """A build of a server that is there, stranded in the undo of its first step."""
    server = await cloud.server()
    build = await build_of(cloud, server.id)

    def plant(conn: sa.Connection) -> str:
        built = cell_journal.get(conn, build.id)
        assert built is not None
        record = msgspec.structs.replace(stranded_stop(server.id), request=built.request, version=built.version)
        cell_journal.insert(conn, record, wake_at=None)
        return record.id

    return await cloud.database.write(plant)


async def test_a_stranded_operation_says_why_and_goes_on_when_resumed(cloud: ControlCloud) -> None:
    id_ = await strand(cloud)
    shown = await cloud.operation(id_)
    assert "on fire" in shown.waits_for and "claim host" in shown.waits_for
    assert (await cloud.get("/status", Status)).operations == {"stranded": 1}
    assert (await cloud.post(f"/operations/{id_}/resume", None, OperationView)).state in ("undoing", "failed")
    assert (await ended(cloud, id_)).state == "failed"
    undone = [step for step in (await cloud.operation(id_)).steps if step.undo]
    assert [step.state for step in undone] == ["done"]


async def test_the_undo_of_a_stranded_operation_can_be_skipped(cloud: ControlCloud) -> None:
    id_ = await strand(cloud)
    await cloud.post(f"/operations/{id_}/skip")
    skipped = await ended(cloud, id_)
    assert (skipped.state, [step.state for step in skipped.steps if step.undo]) == ("failed", ["skipped"])


async def test_a_stranded_operation_can_be_ended_by_force(cloud: ControlCloud) -> None:
    id_ = await strand(cloud)
    forced = await cloud.post(f"/operations/{id_}/force", None, OperationView)
    assert forced.state == "failed" and forced.finished_at is not None


async def test_every_change_reaches_a_follower(cloud: ControlCloud) -> None:
    events: list[tuple[str, OperationView | None]] = []
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def follow() -> None:
        try:
            for name, data in cloud.session.events(f"{cloud.state.control_url}/operations/follow"):
                events.append((name, msgspec.json.decode(data, type=OperationView) if name == "operation" else None))
                loop.call_soon_threadsafe(told.set)
        except KilonovaError:
            return

    following = asyncio.create_task(asyncio.to_thread(follow))

    async def wait_for(kind: str, state: str, subject: str) -> None:
        async with asyncio.timeout(LIMIT):
            while not any(one and (one.kind, one.state, one.subject) == (kind, state, subject) for _, one in events):
                told.clear()
                await told.wait()

    server = await cloud.server()
    for kind in ("place", "build"):
        await wait_for(kind, "succeeded", server.id)
    await cloud.delete(server.id)
    await wait_for("delete", "succeeded", server.id)
    assert ("now", None) in events
    await cloud.machine.close()
    async with asyncio.timeout(LIMIT):
        await following


async def test_a_cloud_goes_down_quickly_while_it_is_followed(tmp_path: Path) -> None:
    async with control_cloud(tmp_path) as cloud:
        headers = await cloud.headers()
        async with httpx.AsyncClient(headers=headers) as client, client.stream(
            "GET", f"{cloud.state.control_url}/operations/follow"
        ) as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: now"
            began = asyncio.get_running_loop().time()
            await cloud.machine.close()
            assert asyncio.get_running_loop().time() - began < 2.5
            assert [line async for line in lines if line.startswith("event:")] == []


async def test_the_status_counts_servers_and_names_hosts(cloud: ControlCloud) -> None:
    server = await cloud.server()
    status = await cloud.get("/status", Status)
    assert status.servers == {"active": 1} and status.operations == {}
    assert {host.host: (host.up, host.servers) for host in status.hosts} == {
        name: (True, int(name == server.host)) for name in ("host-1", "host-2")
    }
