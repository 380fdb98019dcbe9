"""The audit: every kind of leak is planted in a running cloud, found, healed where that is safe, and then gone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kilonova.agent.agent import Agent
from kilonova.audit.report import Report
from kilonova.db import build_requests, instances
from kilonova.db.journal import cell_journal
from kilonova.db.placement.tables import allocations, consumers, inventories, providers
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.embedded.network import ports as ports_module
from kilonova.embedded.network import schema as network_schema
from kilonova.hypervisor.fake import FakeGuest
from tests.control_cloud import ControlCloud, control_cloud, kinds, until

HOST = "host-1"


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ControlCloud]:
    async with control_cloud(tmp_path) as running:
        yield running


async def test_a_cloud_at_work_and_at_rest_is_clean(cloud: ControlCloud) -> None:
    server = await cloud.server()
    report = await cloud.audit()
    assert report.clean and kinds(report) == []
    assert (report.compared.servers, report.compared.hosts, report.compared.ports) == (1, 2, 1)
    assert (report.compared.allocations, report.compared.images) == (1, 1)
    await cloud.delete(server.id)
    report = await cloud.audit()
    assert report.clean
    assert (report.compared.servers, report.compared.ports, report.compared.allocations) == (0, 0, 0)


async def test_a_guest_without_a_server_is_removed(cloud: ControlCloud) -> None:
    stray = str(uuid.uuid4())
    cloud.hypervisor(HOST).keep(
        FakeGuest(uuid=stray, name="stray", disks=True, defined=True, power_state=PowerState.RUNNING)
    )
    assert kinds(await cloud.audit()) == [("guest-without-server", stray)]
    healing = await cloud.heal()
    assert stray not in cloud.hypervisor(HOST).guests
    assert healing.after.clean
    (healed,) = healing.healed
    assert healed.operation is not None
    journaled = await cloud.operation(healed.operation)
    assert (journaled.kind, journaled.state, journaled.subject) == ("remove-leftover", "succeeded", stray)


async def test_disks_of_a_deleted_server_are_removed(cloud: ControlCloud) -> None:
    server = await cloud.server()
    await cloud.delete(server.id)
    cloud.hypervisor(HOST).keep(FakeGuest(uuid=server.id, name="again", disks=True))
    assert kinds(await cloud.audit()) == [("disks-without-server", server.id)]
    assert (await cloud.heal()).after.clean
    assert cloud.hypervisor(HOST).guests == {}


async def test_a_second_copy_of_a_guest_is_left_for_somebody_to_decide(cloud: ControlCloud) -> None:
    server = await cloud.server()
    other = "host-2" if server.host == HOST else HOST
    cloud.hypervisor(other).keep(
        FakeGuest(uuid=server.id, name="copy", disks=True, defined=True, power_state=PowerState.RUNNING)
    )
    expected = [("guest-on-other-host", server.id), ("disks-on-other-host", server.id)]
    assert kinds(await cloud.audit()) == expected
    healing = await cloud.heal()
    assert kinds(healing.after) == expected
    assert all(one.why_not for one in healing.healed)
    assert server.id in cloud.hypervisor(other).guests


async def test_a_lost_guest_is_told(cloud: ControlCloud) -> None:
    server = await cloud.server()
    hypervisor = cloud.hypervisor(server.host)
    lost = hypervisor.guests[server.id]
    lost.defined = lost.disks = False
    hypervisor.keep(lost)
    assert kinds(await cloud.audit()) == [("guest-missing", server.id), ("disks-missing", server.id)]


async def test_a_silent_host_is_not_called_clean(cloud: ControlCloud) -> None:
    agent: Agent = cloud.machine.agents[0]
    for subscription in agent._subscriptions:
        await subscription.unsubscribe()
    assert kinds(await cloud.audit()) == [("host-silent", agent.host)]


async def test_claims_of_nobody_are_given_back(cloud: ControlCloud) -> None:
    stray = str(uuid.uuid4())

    def plant(conn: sa.Connection) -> None:
        provider = conn.execute(sa.select(providers.c.id).where(providers.c.name == HOST)).scalar_one()
        conn.execute(sa.insert(consumers).values(
            uuid=stray, project_id="p", user_id="u", type="INSTANCE", generation=1, instance=stray
        ))
        conn.execute(sa.insert(allocations).values(
            consumer=stray, provider_id=provider, resource_class="VCPU", used=3
        ))
        conn.execute(
            sa.update(inventories)
            .where(inventories.c.provider_id == provider, inventories.c.resource_class == "VCPU").values(used=3)
        )

    await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("allocation-without-server", stray)]
    assert (await cloud.heal()).after.clean
    used = await cloud.database.read(lambda conn: conn.execute(sa.select(sa.func.sum(inventories.c.used))).scalar())
    assert used == 0


async def test_wrong_counters_are_counted_anew(cloud: ControlCloud) -> None:
    await cloud.server()
    before = await cloud.database.read(_used)
    await cloud.database.write(
        lambda conn: conn.execute(sa.update(inventories).values(used=inventories.c.used + 5)).rowcount
    )
    assert {kind for kind, _ in kinds(await cloud.audit())} == {"used-counter"}
    assert (await cloud.heal()).after.clean
    assert await cloud.database.read(_used) == before


def _used(conn: sa.Connection) -> list[tuple[int, str, int]]:
    t = inventories
    query = sa.select(t.c.provider_id, t.c.resource_class, t.c.used).order_by(t.c.provider_id, t.c.resource_class)
    return [tuple(row) for row in conn.execute(query)]


async def test_a_lost_claim_is_told(cloud: ControlCloud) -> None:
    server = await cloud.server()

    def plant(conn: sa.Connection) -> None:
        conn.execute(sa.delete(allocations).where(allocations.c.consumer == server.id))
        conn.execute(sa.update(inventories).values(used=0))

    await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("allocation-missing", server.id)]


async def test_ports_of_nobody_are_deleted(cloud: ControlCloud) -> None:
    server = await cloud.server()
    gone = str(uuid.uuid4())
    await cloud.delete(server.id)
    second = await cloud.server()
    ports = network_schema.ports
    (port,) = await cloud.database.read(
        lambda conn: list(conn.execute(sa.select(ports.c.id).where(ports.c.device_id == second.id)).scalars())
    )
    await cloud.database.write(
        lambda conn: conn.execute(sa.update(ports).where(ports.c.id == port).values(device_id=gone)).rowcount
    )
    await cloud.delete(second.id)
    assert kinds(await cloud.audit()) == [("port-without-server", port)]
    assert (await cloud.heal()).after.clean


async def test_a_lost_port_is_told(cloud: ControlCloud) -> None:
    server = await cloud.server()
    ports = network_schema.ports
    (port,) = await cloud.database.read(
        lambda conn: list(conn.execute(sa.select(ports.c.id).where(ports.c.device_id == server.id)).scalars())
    )
    await cloud.database.write(lambda conn: ports_module.remove(conn, port))  # nobody is told
    assert kinds(await cloud.audit()) == [("port-missing", port)]


async def test_image_data_without_an_image_is_deleted_and_lost_data_is_told(cloud: ControlCloud) -> None:
    await cloud.server()
    data = Path(cloud.state.data_dir) / "images" / "data"
    stray = str(uuid.uuid4())
    (data / stray).write_bytes(b"left over")
    assert kinds(await cloud.audit()) == [("image-data-without-image", stray)]
    assert (await cloud.heal()).after.clean
    assert not (data / stray).exists()
    (data / cloud.image).unlink()
    assert kinds(await cloud.audit()) == [("image-data-missing", cloud.image)]


async def test_a_forgotten_build_request_is_placed(cloud: ControlCloud) -> None:
    server = await cloud.server()
    request = await cloud.database.read(lambda conn: instances.get(conn, server.id))
    await cloud.delete(server.id)

    def plant(conn: sa.Connection) -> str:
        spec = build_requests.RequestSpec(
            instance_uuid=str(uuid.uuid4()), project_id=request.project_id, user_id=request.user_id,
            flavor=request.flavor, image=request.image, requested_networks=(),
        )
        again = instances.Instance(
            uuid=spec.instance_uuid, project_id=request.project_id, user_id=request.user_id, flavor=request.flavor,
            image=request.image, image_ref=request.image_ref, created_at=request.created_at,
        )
        build_requests.accept(conn, [build_requests.BuildRequest(instance=again, spec=spec)])
        return again.uuid

    forgotten = await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("build-request-forgotten", forgotten)]
    await cloud.heal()

    async def built() -> bool | None:
        found = await asyncio.to_thread(cloud.api.server, forgotten)
        return True if found is not None and found.status == "ACTIVE" else None

    await until(built)
    assert (await cloud.audit()).clean


async def test_records_that_lead_nowhere_are_deleted(cloud: ControlCloud) -> None:
    server = await cloud.server()
    spec = await cloud.database.read(lambda conn: build_requests.spec_of(conn, server.id))
    await cloud.delete(server.id)
    lost = str(uuid.uuid4())

    def plant(conn: sa.Connection) -> None:
        conn.execute(sa.insert(build_requests.instance_mappings).values(
            uuid=lost, project_id="p", cell=None, created_at=1.0
        ))
        conn.execute(sa.insert(build_requests.request_specs).values(uuid=lost, body=spec))

    await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("mapping-without-server", lost), ("request-spec-without-server", lost)]
    assert (await cloud.heal()).after.clean


async def test_a_task_without_an_operation_is_cleared(cloud: ControlCloud) -> None:
    server = await cloud.server()
    await cloud.database.write(
        lambda conn: instances.update(conn, server.id, now=1.0, task_state=TaskState.REBOOTING)
    )
    assert kinds(await cloud.audit()) == [("task-without-operation", server.id)]
    assert (await cloud.heal()).after.clean
    record = await cloud.database.read(lambda conn: instances.get(conn, server.id))
    assert (record.task_state, record.vm_state) == (None, VmState.ACTIVE)
    faults = await cloud.database.read(lambda conn: instances.latest_faults(conn, [server.id]))
    assert "rebooting" in faults[server.id].message


async def test_a_server_without_a_mapping_is_told(cloud: ControlCloud) -> None:
    server = await cloud.server()
    mappings = build_requests.instance_mappings
    await cloud.database.write(
        lambda conn: conn.execute(sa.delete(mappings).where(mappings.c.uuid == server.id)).rowcount
    )
    assert kinds(await cloud.audit()) == [("server-without-mapping", server.id)]


async def test_operations_that_nothing_moves_are_told(cloud: ControlCloud) -> None:
    held, queued, stranded = (str(uuid.uuid4()) for _ in range(3))

    def plant(conn: sa.Connection) -> None:
        for id_, state in ((held, "held"), (queued, "queued"), (stranded, "stranded")):
            cell_journal.insert(conn, OperationRecord(
                id=id_, kind="delete", version=1, subject=str(uuid.uuid4()), state=OperationState(state),
                exclusive=True, created_at=1.0,
            ), wake_at=None)

    await cloud.database.write(plant)
    found = {one.object: one.kind.value for one in (await cloud.audit()).differences}
    assert found == {held: "operation-lost", queued: "operation-lost", stranded: "operation-stranded"}


async def test_what_an_operation_owns_is_no_leak_and_is_never_healed(cloud: ControlCloud) -> None:
    owned = str(uuid.uuid4())
    cloud.hypervisor(HOST).keep(FakeGuest(uuid=owned, name="owned", disks=True, defined=True))
    debt = str(uuid.uuid4())

    def owe(conn: sa.Connection) -> None:
        cell_journal.insert(conn, OperationRecord(
            id=debt, kind="debt", version=1, subject=owned, state=OperationState.RUNNING, exclusive=False,
            created_at=1.0,
        ), wake_at=4e9)

    await cloud.database.write(owe)
    report = await cloud.audit()
    assert report.clean and report.compared.busy == 1
    await cloud.heal()
    assert owned in cloud.hypervisor(HOST).guests
    t = cell_journal.operations
    await cloud.database.write(lambda conn: conn.execute(sa.delete(t).where(t.c.id == debt)).rowcount)
    assert kinds(await cloud.audit()) == [("guest-without-server", owned)]


async def test_audits_of_a_busy_cloud_find_nothing_and_harm_nothing(tmp_path: Path) -> None:
    async with control_cloud(tmp_path, latency=0.01) as cloud:
        first = await cloud.server("first")

        async def work(number: int) -> None:
            for _ in range(3):
                server = await cloud.server(f"worker-{number}")
                await cloud.delete(server.id)

        async def watch() -> list[Report]:
            reports = []
            while not working.done():
                reports.append((await cloud.heal()).after)
            return reports

        working = asyncio.gather(*(work(number) for number in range(4)))
        reports = await watch()
        await working
        assert [kinds(report) for report in reports if not report.clean] == []
        final = await cloud.audit()
        assert final.clean and final.compared.servers == 1
        assert (await asyncio.to_thread(cloud.api.server, first.id)).status == "ACTIVE"
