"""The list of migrations: fields, filters, pages, and who may see what."""

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import PROJECT, ComputeCloud

from kilonova.db import migration_records
from kilonova.domain.flavor import Flavor
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.states import VmState

SMALL = Flavor(id=7, flavor_id="s", name="small", vcpus=1, memory_mib=512, root_gib=1)
LARGE = Flavor(id=8, flavor_id="l", name="large", vcpus=2, memory_mib=1024, root_gib=1)
SERVER = str(uuid.UUID(int=99))
FIRST = 1_700_000_000.0


def migration(number: int, **fields: Any) -> Migration:
    made = Migration(
        uuid=str(uuid.UUID(int=number)), instance_uuid=SERVER, user_id="u", project_id=PROJECT,
        migration_type=MigrationType.RESIZE, status=MigrationStatus.FINISHED, source_compute="h1", source_node="n1",
        dest_compute="h1", dest_node="n1", dest_address="192.0.2.1", old_flavor=SMALL, new_flavor=LARGE,
        old_vm_state=VmState.ACTIVE, created_at=FIRST + number, updated_at=FIRST + 10 * number,
    )
    return msgspec.structs.replace(made, **fields)


@pytest.fixture
async def known(cloud: ComputeCloud) -> list[str]:
    """Four migrations that show and a hidden one; uuids, newest first."""
    records = [
        migration(1), migration(2, status=MigrationStatus.ERROR, instance_uuid=str(uuid.uuid4())),
        migration(3, dest_compute="h2", user_id="v"), migration(4, project_id="other", source_compute="h3"),
        migration(5, hidden=True),
    ]
    for record in records:
        await cloud.cells.all[0].database.write(
            lambda conn, record=record: migration_records.insert(conn, record))  # type: ignore[misc]
    return [record.uuid for record in reversed(records[:4])]


async def listed(cloud: ComputeCloud, query: str = "", version: str = "2.80", as_: str = "admin") -> list[str]:
    answer = await cloud.get(f"/os-migrations{query}", version=version, as_=as_)
    assert answer.status_code == 200, answer.text
    return [entry["uuid"] for entry in answer.json()["migrations"]]


@pytest.mark.spec("API-456", "API-250", "API-559", "API-580")
async def test_fields(cloud: ComputeCloud, known: list[str]) -> None:
    old = {
        "id": 1, "instance_uuid": SERVER, "status": "finished", "source_compute": "h1", "source_node": "n1",
        "dest_compute": "h1", "dest_node": "n1", "dest_host": "192.0.2.1", "old_instance_type_id": 7,
        "new_instance_type_id": 8, "created_at": "2023-11-14T22:13:21.000000",
        "updated_at": "2023-11-14T22:13:30.000000",
    }
    of_type, named = {"migration_type": "resize"}, {"uuid": known[-1]}
    asker = {"user_id": "u", "project_id": PROJECT}
    for version, expected in (
        ("2.22", old), ("2.23", old | of_type), ("2.59", old | of_type | named), ("2.79", old | of_type | named),
        ("2.80", old | of_type | named | asker),
    ):
        answer = await cloud.get("/os-migrations", version=version, as_="admin")
        assert answer.json()["migrations"][-1] == expected


@pytest.mark.spec("API-250", "API-456", "API-580")
@pytest.mark.parametrize(
    ("query", "places"),
    [
        ("", [0, 1, 2, 3]), (f"?instance_uuid={SERVER}", [0, 1, 3]), ("?status=error", [2]), ("?status=none", []),
        ("?host=h2", [1]), ("?host=h3", [0]), ("?host=h1", [0, 1, 2, 3]), ("?source_compute=h3", [0]),
        ("?migration_type=resize", [0, 1, 2, 3]), ("?migration_type=live-migration", []),
        ("?hidden=true", [0, 1, 2, 3]),
        ("?user_id=v", [1]), ("?project_id=other", [0]), (f"?project_id={PROJECT}&user_id=u", [2, 3]),
        ("?changes-since=2023-11-14T22:13:50Z", [0, 1]), ("?changes-before=2023-11-14T22:13:40Z", [2, 3]),
    ],
)
async def test_filters(cloud: ComputeCloud, known: list[str], query: str, places: list[int]) -> None:
    assert await listed(cloud, query) == [known[place] for place in places]


@pytest.mark.spec("API-250", "API-559")
async def test_pages(cloud: ComputeCloud, known: list[str]) -> None:
    answer = (await cloud.get("/os-migrations?limit=2", version="2.59", as_="admin")).json()
    assert [entry["uuid"] for entry in answer["migrations"]] == known[:2]
    (link,) = answer["migrations_links"]
    assert link["rel"] == "next"
    assert f"marker={known[1]}" in link["href"]
    assert await listed(cloud, f"?limit=2&marker={known[1]}") == known[2:]
    for bad in (f"?marker={uuid.uuid4()}", "?limit=-1", "?changes-since=x", "?other=1",
                "?changes-since=2023-11-15T00:00:00Z&changes-before=2023-11-14T00:00:00Z"):
        assert (await cloud.get(f"/os-migrations{bad}", version="2.80", as_="admin")).status_code == 400
    everything = await cloud.get("/os-migrations?limit=1", version="2.58", as_="admin")
    assert len(everything.json()["migrations"]) == 4


@pytest.mark.spec("API-250")
async def test_who_sees_what(cloud: ComputeCloud, known: list[str]) -> None:
    path = f"/os-migrations?project_id={PROJECT}"
    mine = await cloud.get(path, version="2.80", as_="manager")
    assert [entry["uuid"] for entry in mine.json()["migrations"]] == known[1:]
    hosts = ("source_compute", "source_node", "dest_compute", "dest_node", "dest_host")
    assert {entry[name] for entry in mine.json()["migrations"] for name in hosts} == {None}
    for refused in ("/os-migrations", "/os-migrations?project_id=other"):
        assert (await cloud.get(refused, version="2.80", as_="manager")).status_code == 403
    assert (await cloud.get(path, version="2.80", as_="member")).status_code == 403
