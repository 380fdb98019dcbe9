"""migrate, os-migrateLive and evacuate, in a cloud that moves no servers; and migrations below a server."""

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import HOST, PROJECT, TINY, ComputeCloud

from kilonova.db import instances, migration_records
from kilonova.db.journal import cell_journal
from kilonova.domain.instance import Instance
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.operation import OperationState
from kilonova.domain.states import TaskState, VmState

NO_HOST = "No valid host was found. There is no other host."
LIVE = {"host": None, "block_migration": "auto"}
OLD_LIVE = {"host": None, "block_migration": False, "disk_over_commit": False}


async def act(
    cloud: ComputeCloud, server: Instance, action: str, value: Any, version: int = 1, as_: str = "admin"
) -> Any:
    return await cloud.post(f"/servers/{server.uuid}/action", {action: value}, version=f"2.{version}", as_=as_)


async def refused(cloud: ComputeCloud, server: Instance, kind: MigrationType) -> None:
    """Fail unless the server is as before, with a migration in error and a fault that says why."""
    after = await cloud.stored(server.uuid)
    assert (after.vm_state, after.task_state, after.host) == (server.vm_state, None, server.host)
    database = cloud.cells.all[0].database
    (migration,) = await database.read(lambda conn: migration_records.of_server(conn, server.uuid))
    assert (migration.migration_type, migration.status, migration.source_compute, migration.dest_compute) == (
        kind, MigrationStatus.ERROR, server.host, None)
    faults = await database.read(lambda conn: instances.latest_faults(conn, [server.uuid]))
    assert faults[server.uuid].message == NO_HOST


@pytest.mark.spec("API-130", "API-556")
async def test_migrate(cloud: ComputeCloud) -> None:
    cloud.hosts.known["host-2"] = "UP"
    for version, value in ((1, None), (55, {"host": "ignored"}), (56, None), (56, {}), (56, {"host": "host-2"})):
        server = await cloud.boot()
        assert (await act(cloud, server, "migrate", value, version)).status_code == 202
        await refused(cloud, server, MigrationType.COLD)
    server = await cloud.boot()
    for value, status in (({"host": "nowhere"}, 400), ({"host": HOST}, 400), ({"x": 1}, 400), ("x", 400)):
        assert (await act(cloud, server, "migrate", value, 56)).status_code == status
    assert (await act(cloud, server, "migrate", None, 56, as_="member")).status_code == 403
    assert (await act(cloud, server, "migrate", None, 56, as_="manager")).status_code == 202
    assert (await act(cloud, server, "migrate", {"host": "host-2"}, 56, as_="manager")).status_code == 403
    accelerated = msgspec.structs.replace(TINY, extra_specs={"accel:device_profile": "fast"})
    assert (await act(cloud, await cloud.boot(flavor=accelerated), "migrate", None)).status_code == 400
    for fields in ({"vm_state": VmState.PAUSED}, {"task_state": TaskState.REBUILDING}, {"locked_by": "owner"}):
        there = await cloud.boot(**fields)
        assert (await act(cloud, there, "migrate", None, as_="manager")).status_code == 409
    cloud.hosts.known[HOST] = "DOWN"
    assert (await act(cloud, server, "migrate", None)).status_code == 409


@pytest.mark.spec("API-131", "API-525", "API-530", "API-534")
async def test_live_migration(cloud: ComputeCloud) -> None:
    cloud.hosts.known["host-2"] = "UP"
    for version, value in ((1, OLD_LIVE), (24, OLD_LIVE), (25, LIVE), (33, {**LIVE, "force": False})):
        server = await cloud.boot()
        answer = await act(cloud, server, "os-migrateLive", value, version)
        assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, NO_HOST)
        await refused(cloud, server, MigrationType.LIVE)
    for version, value in ((34, LIVE), (67, {**LIVE, "host": "host-2", "force": True}), (68, LIVE)):
        server = await cloud.boot(vm_state=VmState.PAUSED)
        assert (await act(cloud, server, "os-migrateLive", value, version)).status_code == 202
        await refused(cloud, server, MigrationType.LIVE)
    server = await cloud.boot()
    for version, bad in (
        (1, LIVE), (24, {**OLD_LIVE, "block_migration": "auto"}), (25, OLD_LIVE), (29, {**LIVE, "force": False}),
        (34, {"block_migration": True}), (68, {**LIVE, "force": False}), (34, {**LIVE, "force": True}),
        (34, {**LIVE, "host": "nowhere"}), (34, {**LIVE, "host": HOST}), (1, None),
    ):
        assert (await act(cloud, server, "os-migrateLive", bad, version)).status_code == 400
    assert (await act(cloud, server, "os-migrateLive", LIVE, 34, as_="member")).status_code == 403
    elsewhere = {**LIVE, "host": "host-2"}
    assert (await act(cloud, server, "os-migrateLive", elsewhere, 34, as_="manager")).status_code == 403
    stopped = await cloud.boot(vm_state=VmState.STOPPED)
    assert (await act(cloud, stopped, "os-migrateLive", LIVE, 34)).status_code == 409


@pytest.mark.spec("API-132", "API-514", "API-529", "API-568")
async def test_evacuate(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await act(cloud, server, "evacuate", {}, 14)
    assert (answer.status_code, "still in use" in answer.json()["badRequest"]["message"]) == (400, True)
    cloud.hosts.known |= {HOST: "DOWN", "host-2": "UP"}
    for version, value, expected in (
        (1, {"onSharedStorage": False, "adminPass": "secret"}, {"adminPass": "secret"}), (14, {}, None),
        (14, {"host": "host-2"}, None), (67, {"host": "host-2", "force": True}, None), (95, {"adminPass": "x"}, None),
    ):
        server = await cloud.boot(locked_by="admin", vm_state=VmState.ERROR)
        answer = await act(cloud, server, "evacuate", value, version)
        assert answer.status_code == 200, answer.text
        assert (answer.json() if answer.content else None) == expected
        await refused(cloud, server, MigrationType.EVACUATION)
    for version, bad, status in (
        (1, {}, 400), (14, {"onSharedStorage": True}, 400), (28, {"host": "host-2", "force": True}, 400),
        (68, {"host": "host-2", "force": True}, 400), (29, {"force": True}, 400), (14, {"host": HOST}, 400),
        (14, {"host": "nowhere"}, 404), (14, None, 400),
    ):
        assert (await act(cloud, server, "evacuate", bad, version)).status_code == status, bad
    assert (await act(cloud, server, "evacuate", {}, 14, as_="manager")).status_code == 403
    assert (await act(cloud, await cloud.boot(vm_state=VmState.PAUSED), "evacuate", {}, 14)).status_code == 409


async def live(cloud: ComputeCloud, server: Instance, status: MigrationStatus) -> Migration:
    """A record of a live migration."""
    made = Migration(
        uuid=str(uuid.uuid4()), instance_uuid=server.uuid, user_id="u", project_id=PROJECT,
        migration_type=MigrationType.LIVE, status=status, source_compute="h1", source_node="n1", dest_compute="h2",
        dest_node="n2", old_flavor=server.flavor, new_flavor=server.flavor, old_vm_state=VmState.ACTIVE,
        created_at=1_700_000_000.0,
    )
    database = cloud.cells.all[0].database
    await database.write(lambda conn: migration_records.insert(conn, made))
    found = await database.read(lambda conn: migration_records.find(conn, made.uuid))
    assert found is not None
    return found


@pytest.mark.spec("API-164", "API-165", "API-457", "API-523")
async def test_live_migrations_of_a_server(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/migrations"
    assert (await cloud.get(path, version="2.22", as_="admin")).status_code == 404
    assert (await cloud.get(path, version="2.23", as_="manager")).json() == {"migrations": []}
    await live(cloud, server, MigrationStatus.ERROR)
    running = await live(cloud, server, MigrationStatus.RUNNING)
    shown = {
        "id": running.id, "server_uuid": server.uuid, "status": "running", "source_compute": "h1",
        "source_node": "n1", "dest_compute": "h2", "dest_node": "n2", "dest_host": None, "updated_at": None,
        "created_at": "2023-11-14T22:13:20.000000",
        **{f"{of}_{what}_bytes": None for of in ("memory", "disk") for what in ("total", "processed", "remaining")},
    }
    named = {"uuid": running.uuid}
    asker = {"user_id": "u", "project_id": PROJECT}
    for version, more in (("2.23", {}), ("2.59", named), ("2.80", named | asker)):
        assert (await cloud.get(path, version=version, as_="admin")).json() == {"migrations": [shown | more]}
        one = await cloud.get(f"{path}/{running.id}", version=version, as_="admin")
        assert one.json() == {"migration": shown | more}
    hidden = dict.fromkeys(("source_compute", "source_node", "dest_compute", "dest_node", "dest_host"))
    assert (await cloud.get(path, version="2.23", as_="manager")).json() == {"migrations": [shown | hidden]}
    assert (await cloud.get(path, version="2.23", as_="member")).status_code == 403
    assert (await cloud.get(f"{path}/{running.id}", version="2.23", as_="manager")).status_code == 403
    for missing in (running.id - 1, 99, "x"):
        assert (await cloud.get(f"{path}/{missing}", version="2.23", as_="admin")).status_code == 404
    links = (await cloud.get("/os-migrations", version="2.23", as_="admin")).json()["migrations"]
    assert [("links" in entry, entry["status"]) for entry in links] == [(True, "running"), (False, "error")]


async def test_what_is_not_in_progress_is_neither_ended_nor_sped_up(cloud: ComputeCloud) -> None:
    still = await cloud.boot()
    server = await cloud.boot(task_state=TaskState.MIGRATING)
    states = {status: (await live(cloud, server, status)).id for status in MigrationStatus}
    force = {"force_complete": None}

    async def both(of: Instance, id_: object, version: str, as_: str = "admin") -> tuple[int, int]:
        path = f"/servers/{of.uuid}/migrations/{id_}"
        ended = await cloud.delete(path, version=version, as_=as_)
        return ended.status_code, (await cloud.post(f"{path}/action", force, version=version, as_=as_)).status_code

    assert await both(still, 1, "2.24") == (409, 409)
    assert await both(server, 99, "2.24") == (404, 400)
    assert await both(server, states[MigrationStatus.RUNNING], "2.21") == (404, 404)
    assert await both(server, states[MigrationStatus.RUNNING], "2.24", "member") == (403, 403)
    assert await both(server, states[MigrationStatus.RUNNING], "2.24") == (501, 501)
    assert await both(server, states[MigrationStatus.QUEUED], "2.64") == (400, 400)
    assert await both(server, states[MigrationStatus.PREPARING], "2.65") == (501, 400)
    assert await both(server, states[MigrationStatus.ERROR], "2.65") == (400, 400)
    path = f"/servers/{server.uuid}/migrations/{states[MigrationStatus.RUNNING]}/action"
    assert (await cloud.post(path, {"force_complete": {}}, version="2.22", as_="admin")).status_code == 400
    locked = await cloud.boot(task_state=TaskState.MIGRATING, locked_by="admin")
    answer = await cloud.delete(f"/servers/{locked.uuid}/migrations/1", version="2.24", as_="manager")
    assert (answer.status_code, "is in an invalid state for 'abort live migration'" in answer.text) == (409, True)


@pytest.mark.spec("API-069")
async def test_a_tpm_stays_where_it_is(cloud: ComputeCloud) -> None:
    specs = {"hw:tpm_version": "2.0", "hw:tpm_model": "tpm-crb"}
    server = await cloud.boot(flavor=msgspec.structs.replace(TINY, extra_specs=specs))
    assert (await act(cloud, server, "os-migrateLive", LIVE, 34)).status_code == 400
    assert (await act(cloud, server, "migrate", None)).status_code == 202
    shared = msgspec.structs.replace(TINY, extra_specs={**specs, "hw:tpm_secret_security": "host"})
    assert (await act(cloud, await cloud.boot(flavor=shared), "os-migrateLive", LIVE, 34)).status_code == 202
    cloud.hosts.known[HOST] = "DOWN"
    assert (await act(cloud, server, "evacuate", {}, 14)).status_code == 400


@pytest.mark.spec("API-460")
async def test_a_refused_move_is_in_the_history_of_its_server(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    assert (await act(cloud, server, "migrate", None)).status_code == 202
    operations = await cloud.cells.all[0].database.read(lambda conn: cell_journal.of_subject(conn, server.uuid))
    assert [(o.kind, o.state) for o in operations if o.kind == "migrate"] == [("migrate", OperationState.FAILED)]
