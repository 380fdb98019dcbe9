"""What a process tells of itself on its page of metrics."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import httpx
from clouds import free_port

from kilonova.config import Config, MetricsOptions
from kilonova.db.database import Database
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.schema import api_metadata, cell_metadata
from kilonova.domain.clock import SystemClock
from kilonova.domain.operation import Entry, EntryState, OperationRecord, OperationState
from kilonova.metrics.measures import Metrics
from kilonova.metrics.readings import Readings
from kilonova.roles import watching


def operation(state: OperationState, **fields: object) -> OperationRecord:
    return OperationRecord(
        id=f"00000000-0000-4000-8000-{len(state):012}", kind="build", version=1, subject="s", state=state,
        exclusive=True, created_at=100.0, **fields,  # type: ignore[arg-type]
    )


def test_operations_and_their_steps_are_counted_when_they_end() -> None:
    metrics = Metrics()
    step = Entry(step="start guest", state=EntryState.DONE, started_at=101.0, finished_at=103.0)
    metrics.observe(operation(OperationState.RUNNING, entries=(step,)))
    metrics.observe(operation(OperationState.SUCCEEDED, entries=(step,), finished_at=104.0))
    page = metrics.page().decode()
    assert 'kilonova_operation_seconds_sum{kind="build",outcome="succeeded"} 4.0' in page
    assert 'kilonova_operation_seconds_count{kind="build",outcome="succeeded"} 1.0' in page
    assert 'kilonova_step_seconds_sum{direction="do",kind="build",outcome="done",step="start guest"} 2.0' in page


async def test_queues_are_read_from_the_journals() -> None:
    api, cell = Database.open("sqlite://"), Database.open("sqlite://")
    await api.write(api_metadata.create_all)
    await cell.write(cell_metadata.create_all)
    await cell.write(lambda conn: cell_journal.insert(conn, operation(OperationState.RUNNING), wake_at=100.0))
    await api.write(lambda conn: api_journal.insert(conn, operation(OperationState.STRANDED), wake_at=None))
    metrics = Metrics()
    readings = Readings(metrics, api, cell, "cell1", SystemClock(), down_time=60.0)
    await readings.refresh()
    page = metrics.page().decode()
    assert 'kilonova_operations_unfinished{journal="cell1",state="running"} 1.0' in page
    assert 'kilonova_operations_unfinished{journal="api",state="stranded"} 1.0' in page
    assert 'kilonova_operations_due{journal="cell1"} 1.0' in page
    assert 'kilonova_operations_due{journal="api"} 0.0' in page
    await cell.write(lambda conn: cell_journal.claim(conn, "abc@here", now=200.0, until=9e9, count=1))
    await readings.refresh()
    page = metrics.page().decode()
    assert 'kilonova_operations_due{journal="cell1"} 0.0' in page
    assert 'kilonova_leases{journal="cell1",owner="here"} 1.0' in page


async def test_the_page_is_served_on_a_port_of_its_own(tmp_path: Path) -> None:
    port = free_port()
    config = Config(data_dir=str(tmp_path), metrics=MetricsOptions(port=port))
    async with AsyncExitStack() as stack, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await watching.serve(config, stack, Metrics(), None)
        answer = await client.get("/metrics")
        assert answer.status_code == 200 and "process_cpu_seconds_total" in answer.text
        assert (await client.get("/")).status_code == 404


async def test_requests_are_timed_by_service_and_status() -> None:
    metrics = Metrics()

    async def application(_scope: object, _receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 202, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    timed = watching.Timed(application, "compute", metrics)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=timed), base_url="http://api") as client:
        await client.post("/servers")
    assert 'kilonova_request_seconds_count{method="POST",service="compute",status="202"} 1.0' in metrics.page().decode()


