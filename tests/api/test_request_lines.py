"""Log lines that are written while a request is served carry its ID, and the one that the caller gives it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from compute_cloud import ComputeCloud, compute_cloud
from structlog.contextvars import get_contextvars, merge_contextvars

from kilonova.cells.registry import Cells
from kilonova.cli.logs import log_to
from kilonova.domain.errors import KilonovaError
from tests.control_cloud import control_cloud, until

ONE, TWO, THREE = (f"00000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3))
GLOBAL = "req-00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def cloud() -> AsyncIterator[ComputeCloud]:
    async with compute_cloud() as cloud:
        yield cloud


@pytest.fixture
def broken(cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers cannot be looked up, because of a defect that takes its time."""
    async def fails(*_: object) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("a defect")

    monkeypatch.setattr(Cells, "locate", fails)


@pytest.mark.usefixtures("broken")
async def test_lines_of_requests_at_the_same_time_carry_their_ids(cloud: ComputeCloud) -> None:
    with structlog.testing.capture_logs(processors=[merge_contextvars]) as lines:
        answers = await asyncio.gather(
            cloud.get(f"/servers/{ONE}", headers={"X-Openstack-Request-Id": GLOBAL}), cloud.get(f"/servers/{TWO}"),
            cloud.get(f"/servers/{THREE}", headers={"X-Openstack-Request-Id": "not one of them"}),
        )
    one, two, three = (answer.headers["x-openstack-request-id"] for answer in answers)
    found = {line["path"]: (line["request_id"], line.get("global_request_id")) for line in lines}
    assert found == {
        f"/v2.1/servers/{ONE}": (one, GLOBAL), f"/v2.1/servers/{TWO}": (two, None),
        f"/v2.1/servers/{THREE}": (three, None),
    }
    assert get_contextvars() == {}


async def test_one_request_is_found_in_all_lines_down_to_the_host(tmp_path: Path) -> None:
    stream = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    log_to(stream, "info")
    structlog.configure(cache_logger_on_first_use=False)  # loggers of modules outlive this test
    try:
        async with control_cloud(tmp_path, hosts=1) as cloud:
            server = await cloud.server()
            cloud.hypervisor("host").faults.fail["power_on"] = [KilonovaError("It burns.")]
            compute = f"{cloud.state.compute_url}/servers/{server.id}/action"
            await asyncio.to_thread(cloud.session.post, compute, {"os-stop": None})

            async def stopped() -> bool | None:
                found = await asyncio.to_thread(cloud.api.server, server.id)
                return True if found is not None and found.status == "SHUTOFF" else None

            async def ended() -> Any:
                found = await cloud.operations(f"subject={server.id}")
                return next((one for one in found if one.kind == "start" and one.finished_at), None)

            await until(stopped)
            await asyncio.to_thread(cloud.session.post, compute, {"os-start": None})
            operation = await until(ended)
    finally:
        root.handlers[:], _ = before
        root.setLevel(before[1])
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    mine = [line for line in lines if line.get("request_id") == operation.request_id]
    assert {line["event"] for line in mine} >= {"host step failed", "step failed"}
    for line in mine:
        assert line.items() >= {"operation": operation.id, "kind": "start", "instance": server.id}.items()
