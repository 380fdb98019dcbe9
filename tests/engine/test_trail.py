"""Log lines name the request, the operation, the step and the server that they are about, here and on hosts."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import msgspec
import structlog
from small_cloud import CONTEXT, SmallCloud, in_cloud
from structlog.contextvars import merge_contextvars

from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.operations.start import START, StartServer

GLOBAL = "req-00000000-0000-4000-8000-000000000000"
Lines = list[MutableMapping[str, Any]]


@contextmanager
def log_lines() -> Iterator[Lines]:
    with structlog.testing.capture_logs(processors=[merge_contextvars]) as logs:
        yield logs


def told(lines: Lines, event: str) -> MutableMapping[str, Any]:
    (line,) = [line for line in lines if line["event"] == event]
    return line


@in_cloud()
async def test_lines_of_a_host_and_of_the_engine_name_what_they_are_about(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.always_fail("power_on", KilonovaError("It burns."))
    asked_in = msgspec.structs.replace(CONTEXT, request_id="req-of-start", global_request_id=GLOBAL)
    with log_lines() as lines:
        await cloud.compute.ask(asked_in, await cloud.located(uuid), START, StartServer())
        await cloud.rest()
    started = cloud.operation(uuid, "start")
    about = {
        "operation": started.id, "kind": "start", "instance": uuid, "request_id": "req-of-start",
        "global_request_id": GLOBAL, "step": "power on", "undo": False,
    }
    failed = told(lines, "step failed")
    assert failed.items() >= about.items()
    assert "host_step" not in failed
    on_host = {**about, "host": "host0", "host_step": "guest.power_on"}
    assert told(lines, "host step failed").items() >= on_host.items()


@in_cloud(hosts=2)
async def test_lines_of_a_build_name_the_request_that_asked_for_the_server(cloud: SmallCloud) -> None:
    cloud.fail("spawn", Retryable("Not yet."))
    with log_lines() as lines:
        uuid = await cloud.build()
    build = cloud.operation(uuid, "build")
    line = told(lines, "host step failed")
    assert line.items() >= {
        "operation": build.id, "kind": "build", "instance": uuid, "request_id": CONTEXT.request_id,
        "host_step": "guest.spawn",
    }.items()


@in_cloud()
async def test_lines_after_a_restart_name_the_same(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    cloud.always_fail("power_on", KilonovaError("It burns."))
    cloud.at["start/power on/do/before"] = lambda _process: cloud.crash("conductor0")
    with log_lines() as lines:
        await cloud.compute.ask(
            msgspec.structs.replace(CONTEXT, request_id="req-of-start"), await cloud.located(uuid), START, StartServer()
        )
        await cloud.until(lambda: not cloud.at)
        await cloud.restart("conductor0")
        await cloud.rest()
    assert told(lines, "step failed").items() >= {"request_id": "req-of-start", "instance": uuid}.items()


@in_cloud()
async def test_operations_at_the_same_time_keep_their_lines_apart(cloud: SmallCloud) -> None:
    uuids = [await cloud.stopped(), await cloud.stopped()]
    cloud.always_fail("power_on", KilonovaError("It burns."))
    with log_lines() as lines:
        for number, uuid in enumerate(uuids):
            asked_in = msgspec.structs.replace(CONTEXT, request_id=f"req-{number}")
            await cloud.compute.ask(asked_in, await cloud.located(uuid), START, StartServer())
        await cloud.rest()
    failed = {line["instance"]: line["request_id"] for line in lines if line["event"] == "host step failed"}
    assert failed == {uuids[0]: "req-0", uuids[1]: "req-1"}
