"""Traces: one for each request, through its operations, down to the hosts."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from otlp import Received, receiver

from kilonova.config import Config, TracingOptions
from kilonova.domain import tracing
from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.roles import watching
from tests.clouds import free_port
from tests.control_cloud import ControlCloud, control_cloud, until

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def create(cloud: ControlCloud, traceparent: str) -> str:
    """Ask for a server as a client that traces. Returns its id when the build has ended."""
    if not cloud.image:
        cloud.image, cloud.network = await asyncio.to_thread(cloud._prepare)
    async with httpx.AsyncClient(headers=await cloud.headers() | {"traceparent": traceparent}) as client:
        flavors = (await client.get(f"{cloud.state.compute_url}/flavors")).json()["flavors"]
        body = {
            "name": "one", "imageRef": cloud.image, "networks": [{"uuid": cloud.network}],
            "flavorRef": next(flavor["id"] for flavor in flavors if flavor["name"] == "m1.nano"),
        }
        answer = await client.post(f"{cloud.state.compute_url}/servers", json={"server": body})
        assert answer.status_code == 202
        server: str = answer.json()["server"]["id"]

    async def built() -> Any:
        found = await cloud.operations(f"subject={server}")
        return next((one for one in found if one.kind == "build" and one.finished_at), None)

    await until(built)
    return server


async def test_one_trace_leads_from_a_request_to_the_hosts(tmp_path: Path) -> None:
    with receiver() as traces:
        async with control_cloud(tmp_path, hosts=1, options={"tracing.endpoint": traces.endpoint}) as cloud:
            server = await create(cloud, f"00-{TRACE}-{CALLER}-01")
            build = next(one for one in await cloud.operations(f"subject={server}") if one.kind == "build")
    ours = [span for span in traces.spans if span.trace == TRACE]
    by_id = {span.id: span for span in ours}

    def ancestors(span: Received) -> list[str]:
        found = []
        while span.parent in by_id:
            span = by_id[span.parent]
            found.append(span.name)
        return found

    request = traces.named("POST /servers")
    assert (request.parent, request.trace) == (CALLER, TRACE)
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["kilonova.request_id"] == build.request_id
    assert ancestors(traces.named("build")) == ["POST /servers"]
    assert ancestors(traces.named("place")) == ["POST /servers"]
    assert ancestors(traces.named("scheduler: choose hosts")) == ["place: choose host", "place", "POST /servers"]
    assert traces.named("scheduler: choose hosts").attributes["kilonova.host"] == "host"
    assert ancestors(traces.named("guest.spawn")) == ["build: start guest", "build", "POST /servers"]
    steps = {span.name.removeprefix("build: ") for span in ours if span.name.startswith("build: ")}
    assert steps == {step.step for step in build.steps}
    whole = traces.named("build")
    assert whole.attributes["kilonova.operation"] == build.id
    assert whole.begun == pytest.approx(build.created_at) and whole.ended == pytest.approx(build.finished_at)
    for span in ours:
        assert not span.failed
        assert span.begun <= span.ended


async def test_what_fails_is_marked(tmp_path: Path) -> None:
    with receiver() as traces:
        async with control_cloud(tmp_path, hosts=1, options={"tracing.endpoint": traces.endpoint}) as cloud:
            cloud.hypervisor("host").faults.fail["spawn"] = [KilonovaError("It burns.")]
            await create(cloud, f"00-{TRACE}-{CALLER}-01")
    assert {name: traces.named(name).failed for name in ("guest.spawn", "build: start guest", "build", "place")} == {
        "guest.spawn": True, "build: start guest": True, "build": True, "place": False,
    }
    assert "build: undo create disks" in {span.name for span in traces.spans}


async def test_what_the_caller_does_not_want_sampled_is_not_sent(tmp_path: Path) -> None:
    with receiver() as traces:
        async with control_cloud(tmp_path, hosts=1, options={"tracing.endpoint": traces.endpoint}) as cloud:
            await create(cloud, f"00-{TRACE}-{CALLER}-00")
    assert traces.spans and not [span for span in traces.spans if span.trace == TRACE]
    assert not [span for span in traces.spans if span.name.startswith("build")]


async def test_an_operation_that_goes_on_after_a_restart_goes_on_in_its_trace(tmp_path: Path) -> None:
    with receiver() as traces:
        options = {"tracing.endpoint": traces.endpoint}
        async with control_cloud(tmp_path, hosts=1, options=options) as cloud:
            cloud.hypervisor("host").faults.latency = 60.0
            cloud.image, cloud.network = await asyncio.to_thread(cloud._prepare)
            building = asyncio.create_task(create(cloud, f"00-{TRACE}-{CALLER}-01"))

            async def waits() -> Any:
                found = await cloud.operations("state=running")
                return next((one for one in found if one.step == "create disks"), None)

            build = await until(waits)
            building.cancel()
            await asyncio.gather(building, return_exceptions=True)
        before = {span.name for span in traces.spans if span.trace == TRACE}
        assert "POST /servers" in before and "build" not in before
        name = Path(cloud.state.data_dir).name
        async with control_cloud(tmp_path, hosts=1, options=options, name=name) as cloud:
            async def ended() -> Any:
                found = await cloud.operation(build.id)
                return found if found.finished_at else None

            assert (await until(ended)).state == "succeeded"
    whole = traces.named("build")
    assert (whole.trace, whole.parent) == (TRACE, traces.named("POST /servers").id)
    assert traces.named("build: start guest").parent == whole.id
    assert {span.parent for span in traces.spans if span.name == "build: create disks"} == {whole.id}


async def test_a_receiver_that_is_away_disturbs_nobody(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}/v1/traces"
    async with control_cloud(tmp_path, hosts=1, options={"tracing.endpoint": endpoint}) as cloud:
        server = await create(cloud, f"00-{TRACE}-{CALLER}-01")
        assert (await asyncio.to_thread(cloud.api.server, server)).status == "ACTIVE"  # type: ignore[union-attr]
        began = time.monotonic()
    assert time.monotonic() - began < 10
    assert tracing.traceparent() == ""


def test_without_an_endpoint_nothing_of_it_is_loaded() -> None:
    looked = "import sys, kilonova.roles.one_machine, kilonova.roles.agent; print('opentelemetry' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "False"
    assert tracing.span("a") is tracing.span("b") is tracing.under("c") is tracing.serve("d", "")


def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "kilonova.roles.traces", raising=False)
    monkeypatch.delattr("kilonova.roles.traces", raising=False)
    config = Config(data_dir=str(tmp_path), tracing=TracingOptions(endpoint="http://127.0.0.1:1/v1/traces"))
    with pytest.raises(InvalidInput, match="opentelemetry") as caught:
        watching.trace(config, None, "up")  # type: ignore[arg-type]
    assert "`tracing`" in (caught.value.hint or "")
