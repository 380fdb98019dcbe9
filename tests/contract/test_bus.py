"""What every bus does: the one within a process, and NATS between hosts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats_servers import bus_server
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import get_contextvars

from kilonova.bus.local import LocalBus
from kilonova.bus.nats import NatsBus
from kilonova.bus.protocol import Bus
from kilonova.domain import tracing, trail
from kilonova.domain.errors import Unreachable
from kilonova.roles.traces import OpenTelemetry

LIMIT = 10.0
"""Seconds that anything awaited here may take."""

QUICKLY = 1.0
"""Seconds within which a refusal that needs no waiting must come."""


@dataclass
class Ends:
    """Two processes on one bus (with the in-process bus, they are one)."""

    here: Bus
    there: Bus


@pytest.fixture(params=["local", pytest.param("nats", marks=pytest.mark.servers)])
async def ends(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ends]:
    if request.param == "local":
        bus = LocalBus()
        yield Ends(bus, bus)
        await bus.close()
        return
    async with bus_server(tmp_path) as server:
        here = await NatsBus.connect([server.url], server.control())
        there = await NatsBus.connect([server.url], server.control())
        yield Ends(here, there)
        await here.close()
        await there.close()


class Received:
    """A handler that keeps what it gets."""

    def __init__(self, reply: bytes | None = None) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._reply = reply

    async def __call__(self, subject: str, payload: bytes) -> bytes | None:
        self.messages.put_nowait((subject, payload))
        return self._reply

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(LIMIT):
            return await self.messages.get()


async def echo(_subject: str, payload: bytes) -> bytes:
    return payload


async def drained(ends: Ends, receiver: Received) -> list[bytes]:
    """Everything that was published before, in order of arrival: what comes before a last message of its own."""
    await ends.here.publish("kn.watch.last", b"last")
    found = []
    while (message := await receiver.next())[1] != b"last":
        found.append(message[1])
    return found


async def test_a_request_is_answered(ends: Ends) -> None:
    async def shout(_subject: str, payload: bytes) -> bytes:
        return payload.upper()

    await ends.there.subscribe("kn.host.a.command", shout)
    assert await ends.here.request("kn.host.a.command", b"do", timeout=LIMIT) == b"DO"


async def test_an_empty_reply_is_a_reply(ends: Ends) -> None:
    await ends.there.subscribe("kn.host.a.command", echo)
    assert await ends.here.request("kn.host.a.command", b"", timeout=LIMIT) == b""


async def test_a_request_that_nobody_hears_is_refused_at_once(ends: Ends) -> None:
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"kn\.host\.a\.command"):
        await ends.here.request("kn.host.a.command", b"", timeout=LIMIT)
    assert time.monotonic() - started < QUICKLY


async def test_a_request_without_an_answer_ends_with_its_time(ends: Ends) -> None:
    release = asyncio.Event()

    async def slow(_subject: str, _payload: bytes) -> bytes:
        await release.wait()
        return b""

    await ends.there.subscribe("kn.host.a.command", slow)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        await ends.here.request("kn.host.a.command", b"", timeout=0.2)
    assert 0.15 < time.monotonic() - started < 0.2 + QUICKLY
    release.set()


async def test_a_receiver_that_fails_gives_no_reply_and_goes_on(ends: Ends) -> None:
    async def fails_once(_subject: str, payload: bytes) -> bytes:
        if payload == b"bad":
            raise ValueError("a bug")
        return payload

    await ends.there.subscribe("kn.host.a.command", fails_once)
    started = time.monotonic()
    with pytest.raises(Unreachable):
        await ends.here.request("kn.host.a.command", b"bad", timeout=LIMIT)
    assert time.monotonic() - started < QUICKLY
    assert await ends.here.request("kn.host.a.command", b"good", timeout=LIMIT) == b"good"


async def test_the_trail_of_the_sender_goes_with_a_message(ends: Ends) -> None:
    found: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def look(_subject: str, _payload: bytes) -> bytes:
        found.put_nowait(get_contextvars())
        return b""

    await ends.there.subscribe("kn.host.a.command", look)
    with trail.serving("req-1"):
        await ends.here.request("kn.host.a.command", b"", timeout=LIMIT)
        await ends.here.publish("kn.host.a.command", b"")
    await ends.here.request("kn.host.a.command", b"", timeout=LIMIT)
    async with asyncio.timeout(LIMIT):
        seen = [await found.get() for _ in range(3)]
    assert seen == [{"request_id": "req-1"}, {"request_id": "req-1"}, {}]


async def test_the_span_of_the_sender_goes_with_a_message(ends: Ends) -> None:
    found: asyncio.Queue[str] = asyncio.Queue()

    async def look(_subject: str, _payload: bytes) -> bytes:
        found.put_nowait(tracing.traceparent())
        return b""

    await ends.there.subscribe("kn.host.a.command", look)
    tracer = OpenTelemetry(InMemorySpanExporter(), "test", "here")
    tracing.use(tracer)
    try:
        with tracing.span("a step"):
            sent_in = tracing.traceparent()
            await ends.here.request("kn.host.a.command", b"", timeout=LIMIT)
        await ends.here.request("kn.host.a.command", b"", timeout=LIMIT)
    finally:
        await tracer.close()
    assert [found.get_nowait(), found.get_nowait()] == [sent_in, ""] and sent_in.startswith("00-")


async def test_none_is_no_reply(ends: Ends) -> None:
    received = Received(reply=None)
    await ends.there.subscribe("kn.host.a.command", received)
    with pytest.raises(Unreachable):
        await ends.here.request("kn.host.a.command", b"x", timeout=0.3)
    assert (await received.next())[1] == b"x"


async def test_publishing_reaches_all_who_listen(ends: Ends) -> None:
    one, two = Received(), Received()
    await ends.here.subscribe("kn.watch.x", one)
    await ends.there.subscribe("kn.watch.x", two)
    await ends.here.publish("kn.watch.x", b"1")
    assert await one.next() == ("kn.watch.x", b"1")
    assert await two.next() == ("kn.watch.x", b"1")


async def test_publishing_to_nobody_is_no_error(ends: Ends) -> None:
    await ends.here.publish("kn.watch.nobody", b"1")


@pytest.mark.parametrize(
    ("pattern", "heard", "not_heard"),
    [
        ("kn.from.*.report", ["kn.from.a.report", "kn.from.b.report"], ["kn.from.a.event", "kn.from.a.b.report"]),
        ("kn.from.a.>", ["kn.from.a.report", "kn.from.a.b.c"], ["kn.from.a", "kn.from.ab.report"]),
        ("kn.*.a.>", ["kn.from.a.x", "kn.host.a.x"], ["kn.from.b.x", "kn.a.x"]),
    ],
)
async def test_wildcards(ends: Ends, pattern: str, heard: list[str], not_heard: list[str]) -> None:
    received = Received()
    await ends.there.subscribe(pattern, received)
    await ends.there.subscribe("kn.watch.last", received)
    for subject in [*not_heard, *heard]:
        await ends.here.publish(subject, subject.encode())
    assert await drained(ends, received) == [subject.encode() for subject in heard]


async def test_of_a_group_one_receives(ends: Ends) -> None:
    group, other, alone = Received(), Received(), Received()
    for bus in (ends.here, ends.there, ends.there):
        await bus.subscribe("kn.from.*.report", group, group="conductors.1")
    await ends.there.subscribe("kn.from.*.report", other, group="conductors.2")
    await ends.there.subscribe("kn.from.*.report", alone)
    sent = {str(number).encode() for number in range(30)}
    for payload in sorted(sent):
        await ends.here.publish("kn.from.a.report", payload)
    for received in (group, other, alone):
        assert {(await received.next())[1] for _ in sent} == sent
    # Nothing more is on the way: a marker sent after everything else is the next thing that arrives.
    await ends.here.publish("kn.from.a.report", b"marker")
    assert (await group.next())[1] == b"marker"


async def test_work_is_shared_within_a_group(ends: Ends) -> None:
    one, two = Received(), Received()
    await ends.here.subscribe("kn.work", one, group="g")
    await ends.there.subscribe("kn.work", two, group="g")
    for _ in range(100):
        await ends.here.publish("kn.work", b"")
    await one.next()
    await two.next()


async def test_a_request_to_a_group_is_answered_once(ends: Ends) -> None:
    first, second = Received(b"r"), Received(b"r")
    await ends.here.subscribe("kn.ask", first, group="g")
    await ends.there.subscribe("kn.ask", second, group="g")
    for _ in range(10):
        assert await ends.here.request("kn.ask", b"", timeout=LIMIT) == b"r"
    assert first.messages.qsize() + second.messages.qsize() == 10


async def test_many_requests_at_once_get_their_own_answers(ends: Ends) -> None:
    async def later(_subject: str, payload: bytes) -> bytes:
        await asyncio.sleep(0.001 * (payload[0] % 7))
        return payload

    await ends.there.subscribe("kn.host.a.command", later)
    payloads = [number.to_bytes(4, "little") for number in range(1000)]
    answers = await asyncio.gather(
        *(ends.here.request("kn.host.a.command", payload, timeout=LIMIT) for payload in payloads)
    )
    assert answers == payloads


async def test_a_slow_handler_delays_nobody(ends: Ends) -> None:
    release = asyncio.Event()

    async def handler(_subject: str, payload: bytes) -> bytes:
        if payload == b"slow":
            await release.wait()
        return payload

    await ends.there.subscribe("kn.host.a.command", handler)
    slow = asyncio.create_task(ends.here.request("kn.host.a.command", b"slow", timeout=LIMIT))
    assert await ends.here.request("kn.host.a.command", b"fast", timeout=LIMIT) == b"fast"
    assert not slow.done()
    release.set()
    assert await slow == b"slow"


async def test_after_unsubscribing_nothing_arrives(ends: Ends) -> None:
    received = Received()
    subscription = await ends.there.subscribe("kn.watch.x", received)
    await ends.there.subscribe("kn.watch.last", received)
    await subscription.unsubscribe()
    await subscription.unsubscribe()
    await ends.here.publish("kn.watch.x", b"1")
    assert await drained(ends, received) == []


async def test_a_running_handler_outlives_its_subscription(ends: Ends) -> None:
    running, release = asyncio.Event(), asyncio.Event()

    async def slow(_subject: str, _payload: bytes) -> bytes:
        running.set()
        await release.wait()
        return b"done"

    subscription = await ends.there.subscribe("kn.host.a.command", slow)
    asked = asyncio.create_task(ends.here.request("kn.host.a.command", b"", timeout=LIMIT))
    async with asyncio.timeout(LIMIT):
        await running.wait()
    await subscription.unsubscribe()
    release.set()
    assert await asked == b"done"


async def test_a_message_of_a_mebibyte_arrives_whole(ends: Ends) -> None:
    payload = bytes(range(256)) * 4096
    await ends.there.subscribe("kn.host.a.command", echo)
    assert await ends.here.request("kn.host.a.command", payload, timeout=LIMIT) == payload


async def test_messages_of_one_sender_start_in_order(ends: Ends) -> None:
    received = Received()
    await ends.there.subscribe("kn.watch.>", received)
    sent = [str(number).encode() for number in range(200)]
    for payload in sent:
        await ends.here.publish("kn.watch.x", payload)
    assert await drained(ends, received) == sent


async def test_closing_ends_running_handlers(ends: Ends) -> None:
    running, ended = asyncio.Event(), asyncio.Event()

    async def endless(_subject: str, _payload: bytes) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    await ends.there.subscribe("kn.watch.x", endless)
    await ends.here.publish("kn.watch.x", b"")
    async with asyncio.timeout(LIMIT):
        await running.wait()
        await ends.there.close()
    assert ended.is_set()
