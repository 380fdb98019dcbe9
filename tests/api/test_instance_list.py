"""Pages of instances and counts of usage, alike on both databases."""

import random
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
import sqlalchemy as sa
from compute_cloud import CIRROS, PROJECT, TINY

from kilonova.db import build_requests, instance_list, instances, server_usage
from kilonova.db.api_schema import api_metadata
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.database import Database
from kilonova.db.instance_list import SORT_KEYS, Filter, ListQuery, Order, in_order
from kilonova.db.server_usage import Usage
from kilonova.domain.image import Image
from kilonova.domain.instance import BuildRequest, Instance, RequestSpec
from kilonova.domain.states import PowerState, TaskState, VmState


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    opened = Database.open(url)
    api_metadata.create_all(opened.engine)
    cell_metadata.create_all(opened.engine)
    yield opened
    await opened.close()


def instance(seed: int) -> Instance:
    """An instance whose every sortable field varies, some of them missing."""
    draw = random.Random(seed)

    def text() -> str:
        return draw.choice(["", "a", "B", "b", "ä", "Z", "a-b", "a b"])

    def maybe(value: object) -> object:
        return draw.choice([None, value])

    return Instance(
        uuid=str(uuid.UUID(int=draw.getrandbits(128), version=4)), project_id=PROJECT, user_id=text(),
        display_name=text(), display_description=maybe(text()), hostname=text(),  # type: ignore[arg-type]
        vm_state=draw.choice(list(VmState)), task_state=maybe(TaskState.REBOOTING),  # type: ignore[arg-type]
        power_state=draw.choice(list(PowerState)), host=maybe(text()), node=maybe(text()),  # type: ignore[arg-type]
        availability_zone=maybe(text()), image_ref=text(), kernel_id=text(),  # type: ignore[arg-type]
        ramdisk_id=text(), flavor=TINY, key_name=maybe(text()), config_drive=text(),  # type: ignore[arg-type]
        access_ip_v4=maybe(text()), access_ip_v6=maybe(text()), root_device_name=maybe(text()),  # type: ignore[arg-type]
        launch_index=draw.randrange(12), progress=draw.randrange(101), auto_disk_config=draw.random() < 0.5,
        locked_by=maybe("owner"), created_at=draw.randrange(3) + 0.5, updated_at=maybe(draw.random()),  # type: ignore[arg-type]
        launched_at=maybe(draw.random()), terminated_at=maybe(draw.random()),  # type: ignore[arg-type]
    )


@pytest.mark.spec("API-048", "API-051", "API-628")
@pytest.mark.parametrize("descending", [False, True])
async def test_walking_pages_gives_everything_in_order(database: Database, descending: bool) -> None:
    stored = [instance(seed) for seed in range(23)]
    await database.write(lambda conn: [instances.insert(conn, one) for one in stored])
    for key in SORT_KEYS:
        order = [Order(key, descending), Order("uuid", not descending)]
        walked: list[Instance] = []
        while True:
            marker = walked[-1] if walked else None
            query = ListQuery(filters=(), order=order, limit=5, marker=marker)
            page = await database.read(lambda conn, query=query: instance_list.page(conn, query))
            walked += page
            if len(page) < 5:
                break
        assert [i.uuid for i in walked] == [i.uuid for i in in_order(order, stored)], key


@pytest.mark.spec("API-622")
async def test_tests_on_records_fill_the_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_list, "BATCH", 4)
    stored = [instance(seed) for seed in range(30)]
    await database.write(lambda conn: [instances.insert(conn, one) for one in stored])
    order = [Order("created_at", True), Order("uuid", True)]
    wanted = Filter(lambda i: i.launch_index % 3 == 0)
    query = ListQuery(filters=[wanted], order=order, limit=6)
    page = await database.read(lambda conn: instance_list.page(conn, query))
    matching = [i for i in in_order(order, stored) if i.launch_index % 3 == 0]
    assert len(matching) > 6
    assert [i.uuid for i in page] == [i.uuid for i in matching[:6]]


async def test_default_order_uses_an_index() -> None:
    opened = Database.open("sqlite://")
    cell_metadata.create_all(opened.engine)
    statements: list[str] = []
    project = Filter(lambda i: True, instances.instances.c.project_id == PROJECT)
    order = [Order("created_at", True), Order("uuid", True)]

    def plan(conn: sa.Connection) -> list[str]:
        sa.event.listen(opened.engine, "before_cursor_execute", lambda c, cur, text, *rest: statements.append(text))
        instance_list.page(conn, ListQuery(filters=[project], order=order, limit=5))
        rows = conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statements[0]}", (PROJECT, 5, 0)[: statements[0].count("?")])
        return [row[3] for row in rows]

    steps = await opened.read(plan)
    await opened.close()
    assert any("USING INDEX instances_project_created" in step for step in steps), steps
    assert not any("TEMP B-TREE" in step for step in steps), steps


@pytest.mark.spec("API-059", "API-641")
async def test_usage(database: Database) -> None:
    def write(conn: sa.Connection) -> None:
        for seed, state in enumerate((VmState.ACTIVE, VmState.ERROR, VmState.DELETED, VmState.SOFT_DELETED)):
            one = instance(seed)
            one.user_id, one.deleted_at = ("u1" if seed else "u2"), (1.0 if seed == 2 else None)
            one.vm_state = state
            one.flavor = msgspec.structs.replace(TINY, ephemeral_gib=2, swap_mib=1025)
            instances.insert(conn, one)
        waiting = instance(9)
        waiting.user_id = "u1"
        spec = RequestSpec(instance_uuid=waiting.uuid, project_id=PROJECT, user_id="u1", flavor=TINY,
                           image=Image(id=CIRROS), availability_zone="z", scheduler_hints={"a": ["b"]})
        build_requests.accept(conn, [BuildRequest(instance=waiting, spec=spec)])

    await database.write(write)
    assert await database.read(lambda conn: server_usage.of_instances(conn, PROJECT)) == Usage(
        instances=2, cores=2, ram=1024, disk=10)
    assert await database.read(lambda conn: server_usage.of_instances(conn, PROJECT, "u1")) == Usage(
        instances=1, cores=1, ram=512, disk=5)
    assert await database.read(lambda conn: server_usage.of_instances(conn, "other")) == Usage()
    uuid_ = instance(9).uuid
    one_server = {uuid_: Usage(instances=1, cores=1, ram=512, disk=1)}
    assert await database.read(lambda conn: server_usage.of_build_requests(conn, PROJECT)) == one_server
    assert await database.read(lambda conn: server_usage.of_build_requests(conn, PROJECT, "u1")) == one_server
    assert await database.read(lambda conn: server_usage.of_build_requests(conn, PROJECT, "u2")) == {}
    asked = await database.read(lambda conn: instance_list.asked_of(conn, [uuid_]))
    assert (asked[uuid_].availability_zone, asked[uuid_].scheduler_hints) == ("z", {"a": ["b"]})
