"""What Prometheus reads from a cloud after operations that went well and operations that did not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from kilonova.domain.errors import KilonovaError
from tests.clouds import free_port
from tests.control_cloud import ControlCloud, control_cloud, until

Sample = tuple[str, frozenset[tuple[str, str]]]


class Page:
    """The samples of a page of metrics."""

    def __init__(self, text: str) -> None:
        self._samples: dict[Sample, float] = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._samples.get((f"kilonova_{name}", frozenset(labels.items())), 0.0)


async def scrape(port: int) -> Page:
    async with httpx.AsyncClient() as client:
        return Page((await client.get(f"http://127.0.0.1:{port}/metrics")).raise_for_status().text)


async def fails_to_build(cloud: ControlCloud) -> None:
    id_ = await cloud.ask_for_server("too-many")

    async def failed() -> Any:
        found = await asyncio.to_thread(cloud.api.server, id_)
        return found if found is not None and found.status == "ERROR" else None

    await until(failed)


async def test_the_page_tells_what_was_done(tmp_path: Path) -> None:
    port = free_port()
    options = {"metrics.port": port, "agent.report_interval": 0.1}
    async with control_cloud(tmp_path, hosts=1, options=options) as cloud:
        cloud.hypervisor("host").faults.fail["spawn"] = [KilonovaError("It burns.")]
        await fails_to_build(cloud)
        server = await cloud.server("well")
        page = await scrape(port)

        assert page.value("operation_seconds_count", kind="build", outcome="succeeded") == 1
        assert page.value("operation_seconds_count", kind="build", outcome="failed") == 1
        step = {"kind": "build", "step": "start guest", "direction": "do"}
        assert page.value("step_seconds_count", **step, outcome="done") == 1
        assert page.value("step_seconds_count", **step, outcome="failed") == 1
        assert page.value("request_seconds_count", service="compute", method="POST", status="202") == 2

        on_host = {"host": "host", "step": "guest.spawn"}
        assert page.value("host_step_seconds_count", **on_host, outcome="done") == 1
        assert page.value("host_step_seconds_count", **on_host, outcome="failed") == 1
        assert page.value("host_step_seconds_sum", **on_host, outcome="done") > 0

        assert page.value("scheduler_decision_seconds_count", outcome="chosen") == 2
        assert page.value("scheduler_hosts_sum", part="candidates") == 2
        assert page.value("scheduler_claims_total", outcome="held") == 2

        assert page.value("host_up", host="host") == 1
        assert page.value("host_servers", host="host", state="active") == 1
        assert page.value("host_used", host="host", resource="VCPU") == 1
        assert page.value("host_capacity", host="host", resource="VCPU") == 4000
        assert page.value("operations_unfinished", journal="cell1", state="running") == 0

        async def seen() -> bool | None:
            return (await scrape(port)).value("host_guests", host="host", state="running") == 1 or None

        await until(seen)
        await cloud.delete(server.id)

        async def gone() -> bool | None:
            return (await scrape(port)).value("host_guests", host="host", state="running") == 0 or None

        await until(gone)
        assert (await scrape(port)).value("host_used", host="host", resource="VCPU") == 0


async def test_the_page_tells_why_no_host_was_chosen(tmp_path: Path) -> None:
    port = free_port()
    options = {"metrics.port": port, "scheduler.reserved_host_memory_mb": 8_000_000}
    async with control_cloud(tmp_path, hosts=2, options=options) as cloud:
        await fails_to_build(cloud)
        page = await scrape(port)
        assert page.value("scheduler_decision_seconds_count", outcome="none") == 1
        assert page.value("scheduler_no_valid_host_total", filter="Resources") == 1
        assert page.value("scheduler_hosts_sum", part="considered") == 2
        assert page.value("scheduler_hosts_sum", part="candidates") == 0
        assert page.value("scheduler_claims_total", outcome="held") == 0
