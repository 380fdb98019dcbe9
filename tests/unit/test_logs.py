"""What the lines of a process's log look like, and what they have in common."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.contextvars import get_contextvars

from kilonova.cli.logs import log_to
from kilonova.domain import trail
from kilonova.domain.operation import Asker, OperationRecord, OperationState

GLOBAL = "req-00000000-0000-4000-8000-000000000000"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _libraries_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def operation(**fields: Any) -> OperationRecord:
    return OperationRecord(
        id="the-operation", kind="build", version=1, subject="the-server", state=OperationState.RUNNING,
        exclusive=True, **fields,
    )


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_file_gets_json_from_this_product_and_from_libraries_alike() -> None:
    stream = io.StringIO()
    log_to(stream, "info")
    with trail.serving("req-1", GLOBAL):
        structlog.get_logger().info("ours", instance="i")
        structlog.get_logger().debug("too little")
        logging.getLogger("library").warning("theirs: %s", "full")
        logging.getLogger("library").info("too little")
        try:
            raise ValueError("a defect")
        except ValueError:
            structlog.get_logger().exception("failed")
            logging.getLogger("library").exception("failed there")
    structlog.get_logger().info("later")
    ours, theirs, failed, failed_there, later = lines(stream)
    asked = {"request_id": "req-1", "global_request_id": GLOBAL}
    assert {k: v for k, v in ours.items() if k != "timestamp"} == {
        "event": "ours", "level": "info", "instance": "i", **asked,
    }
    assert {k: v for k, v in theirs.items() if k != "timestamp"} == {
        "event": "theirs: full", "level": "warning", "logger": "library", **asked,
    }
    assert "ValueError: a defect" in failed["exception"] and failed.items() >= asked.items()
    assert "ValueError: a defect" in failed_there["exception"] and failed_there.items() >= asked.items()
    assert "request_id" not in later and ours["timestamp"].endswith("Z")


def test_a_terminal_gets_lines_for_people() -> None:
    stream = Terminal()
    log_to(stream, "info")
    with trail.serving("req-1"):
        structlog.get_logger().warning("ours")
        logging.getLogger("library").warning("theirs")
    ours, theirs = stream.getvalue().splitlines()
    for line, event in ((ours, "ours"), (theirs, "theirs")):
        with pytest.raises(ValueError):
            json.loads(line)
        assert event in line and "req-1" in line


async def test_an_operation_names_itself_its_server_and_who_asked() -> None:
    record = operation(asker=Asker(request_id="req-1", global_request_id=GLOBAL))

    async def drive() -> dict[str, Any]:
        trail.driving(record, "instance")
        trail.at_step("start guest", undo=False)
        return get_contextvars()

    with trail.serving("req-of-somebody-else"):
        found = await asyncio.create_task(drive())
        assert get_contextvars() == {"request_id": "req-of-somebody-else"}
    assert found == {
        "operation": "the-operation", "kind": "build", "instance": "the-server", "request_id": "req-1",
        "global_request_id": GLOBAL, "step": "start guest", "undo": False,
    }


async def test_what_nobody_asked_for_names_no_request() -> None:
    async def drive() -> dict[str, Any]:
        trail.driving(operation(), "aggregate")
        return get_contextvars()

    with trail.serving("req-of-somebody-else"):
        found = await asyncio.create_task(drive())
    assert found == {"operation": "the-operation", "kind": "build", "aggregate": "the-server"}


async def test_work_in_a_thread_has_the_trail_of_who_gave_it() -> None:
    with trail.Threads(1) as threads:
        async def work(request: str) -> tuple[str, dict[str, Any]]:
            with trail.serving(request):
                return request, await asyncio.get_running_loop().run_in_executor(threads, get_contextvars)

        for request, found in await asyncio.gather(work("req-1"), work("req-2")):
            assert found == {"request_id": request}
        assert await asyncio.get_running_loop().run_in_executor(threads, get_contextvars) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request_id": 3}', '{"event": "forged"}', '{"level": "info"}'])
def test_what_is_no_trail_is_passed_over(text: str) -> None:
    with trail.unpacked(text):
        assert get_contextvars() == {}


def test_a_trail_from_elsewhere_is_bounded() -> None:
    with trail.unpacked(json.dumps({"instance": "x" * 1000})):
        assert get_contextvars() == {"instance": "x" * trail.LONGEST}
    with trail.unpacked(json.dumps({"instance": "x" * 10_000})):
        assert get_contextvars() == {}


@pytest.mark.parametrize(("header", "taken"), [(GLOBAL, GLOBAL), (None, None), ("req-1", None), (f"{GLOBAL}\n", None)])
def test_only_a_request_id_is_taken_for_one(header: str | None, taken: str | None) -> None:
    assert trail.global_request_id(header) == taken
