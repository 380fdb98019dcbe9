"""Waiting for external events: what satisfies a wait, what ends it, and what is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest
import structlog
from simulation.loop import VirtualLoop, abandon
from simulation.process import SimClock
from small_cloud import SmallCloud, in_cloud

from kilonova.db.database import Database
from kilonova.db.journal import cell_journal
from kilonova.db.schema import cell_metadata
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import (
    TERMINAL,
    Asker,
    ExternalEvent,
    Failure,
    OperationRecord,
    OperationState,
    event_key,
)
from kilonova.engine import submit
from kilonova.engine.operation import Await, Definitions, Here, NoUndo, Operation, Tx
from kilonova.engine.run import Run
from kilonova.engine.runner import Runner
from kilonova.engine.workshop import Workshop

SERVER, OTHER = (f"{n}7777777-7777-4777-8777-777777777777" for n in (1, 2))
BROKEN = KilonovaError("the work failed")
SUCCEEDED, FAILED = OperationState.SUCCEEDED, OperationState.FAILED


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """work: seconds until events are waited for. wanted: events of the first wait, again: of the second.
    done: what the work finds done already."""

    wanted: tuple[str, ...] = ()
    again: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    work: float = 5.0
    timeout: float = 30.0
    fatal: bool = True
    breaks: bool = False


class Worked(msgspec.Struct, frozen=True):
    done: tuple[str, ...]


async def _work(clock: SimClock, run: Run[Order]) -> Worked:
    await clock.sleep(run.request.work)
    if run.request.breaks:
        raise BROKEN
    return Worked(run.request.done)


def _nothing(_tx: Tx, _run: Run[Order], _failure: Failure | None = None) -> None:
    return None


OPERATION = Operation(
    name="wait", request=Order, ends=_nothing, fails=_nothing,
    steps=(
        Here("work", _work, undo=NoUndo("changes nothing"), timeout=600.0),
        Await("wait", lambda run: tuple(k for k in run.request.wanted if k not in run.output(Worked).done),
              timeout=lambda run: run.request.timeout, fatal=lambda run: run.request.fatal),
        Await("wait again", lambda run: run.request.again, timeout=lambda run: run.request.timeout),
    ),
)


class Waiting:
    """A journal and a runner for it."""

    def __init__(self, loop: VirtualLoop, database: Database) -> None:
        self.loop = loop
        self.database = database
        self.clock = SimClock(loop)
        self.runner = Runner(Workshop(
            database=database, journal=cell_journal, definitions=Definitions(OPERATION), environment=self.clock,
            hosts=None, clock=self.clock, random=Random(1), owner="runner", ttl=10.0,  # type: ignore[arg-type]
            wake=lambda: self.runner.wake(),
        ))

    async def begin(self, order: Order, subject: str = SERVER) -> str:
        def accept(conn: Any) -> str:
            tx = Tx(conn, self.clock.now())
            return submit.submit(tx, cell_journal, OPERATION, subject, order, Asker()).record.id

        found = await self.database.write(accept)
        self.runner.wake()
        return found

    async def tell(self, name: str, tag: str = "", *, status: str = "completed", subject: str = SERVER) -> bool:
        event = ExternalEvent(subject=subject, name=name, tag=tag, status=status)
        kept = await self.database.write(lambda conn: cell_journal.add_event(conn, event, self.clock.now()))
        self.runner.wake()
        return kept

    async def record(self, id_: str) -> OperationRecord:
        found = await self.database.read(lambda conn: cell_journal.get(conn, id_))
        assert found is not None
        return found

    async def ended(self, id_: str, *, within: float = 200.0) -> OperationRecord:
        deadline = self.loop.time() + within
        while (record := await self.record(id_)).state not in TERMINAL:
            assert self.loop.time() < deadline, f"still {record.state} after {within} s"
            await asyncio.sleep(0.1)
        return record

    async def at(self, id_: str, step: str) -> None:
        while (record := await self.record(id_)).entries[-1:] == () or record.entries[-1].step != step:
            assert record.state not in TERMINAL
            await asyncio.sleep(0.1)

    async def kept(self, subject: str = SERVER) -> list[str]:
        return [e.key for e in await self.database.read(lambda conn: cell_journal.events_of(conn, subject))]


Story = Callable[..., Awaitable[None]]


def waiting(story: Story) -> Callable[[], None]:
    """Make a story a test, in virtual time."""

    def test() -> None:
        loop = VirtualLoop(Random(1))

        async def run() -> None:
            database = Database.open("sqlite://")
            await database.write(cell_metadata.create_all)
            there = Waiting(loop, database)
            await there.runner.start()
            await story(there)
            await there.runner.close()
            await database.close()

        try:
            loop.run_until_complete(run())
        finally:
            abandon(loop)

    test.__name__, test.__doc__, test.__module__ = story.__name__, story.__doc__, story.__module__
    return test


# --- what satisfies a wait ----------------------------------------------------------------------------------


@pytest.mark.spec("EVT-02", "EVT-20", "EVT-14", "EVT-04", "EVT-22", "XEV-12")
@waiting
async def test_an_event_may_come_before_anybody_waits_for_it(there: Waiting) -> None:
    assert not await there.tell("plugged", "a")  # nobody can be waiting: it is not kept
    assert await there.kept() == []
    id_ = await there.begin(Order(wanted=("plugged:a", "plugged:b")))
    assert await there.tell("plugged", "a")  # accepted, and not a step of it has begun
    assert (await there.record(id_)).entries == ()
    await there.at(id_, "work")
    assert await there.tell("plugged", "b")
    record = await there.ended(id_, within=10.0)
    assert (record.state, record.failure) == (SUCCEEDED, None)


@pytest.mark.spec("EVT-22", "EVT-07")
@waiting
async def test_a_wait_ends_with_the_last_event_and_nothing_is_kept(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a", "plugged:b", "resized")))
    await there.at(id_, "wait")
    for name, tag in (("resized", ""), ("plugged", "b")):
        assert await there.tell(name, tag)
        await asyncio.sleep(2.0)
        assert (await there.record(id_)).state is OperationState.RUNNING
    told = there.loop.time()
    assert await there.tell("plugged", "a")
    assert (await there.ended(id_)).state is SUCCEEDED
    assert there.loop.time() - told < 2.0
    assert await there.kept() == []


@pytest.mark.spec("EVT-06", "EVT-32", "EVT-15")
@waiting
async def test_an_event_satisfies_one_wait_of_one_operation(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a",), again=("plugged:a",)))
    other = await there.begin(Order(wanted=("plugged:a",)), OTHER)
    with pytest.raises(submit.Busy):  # never two that wait for a server
        await there.database.write(lambda conn: submit.submit(
            Tx(conn, 0.0), cell_journal, replace(OPERATION, name="another"), SERVER, Order(), Asker()
        ))
    await there.at(id_, "wait")
    await there.tell("plugged", "a")
    await there.at(id_, "wait again")
    assert await there.kept() == []
    await asyncio.sleep(5.0)
    assert (await there.record(id_)).state is OperationState.RUNNING
    await there.tell("plugged", "a")
    assert (await there.ended(id_)).state is SUCCEEDED
    assert (await there.ended(other)).state is FAILED


@pytest.mark.spec("EVT-08")
@waiting
async def test_an_event_that_nobody_waits_for_disturbs_nothing(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a",)))
    await there.at(id_, "wait")
    with structlog.testing.capture_logs() as logs:
        for name, tag in (("plugged", "b"), ("plugged", ""), ("unplugged", "a")):
            await there.tell(name, tag)
        await asyncio.sleep(3.0)
    assert (await there.record(id_)).state is OperationState.RUNNING
    (*_, line) = [e for e in logs if e["event"] == "still waiting for events"]
    assert line["log_level"] == "debug"
    assert (line["awaited"], line["came"]) == (["plugged:a"], ["plugged", "plugged:b", "unplugged:a"])
    await there.tell("plugged", "a")
    assert (await there.ended(id_)).state is SUCCEEDED
    assert await there.kept() == []


@pytest.mark.spec("EVT-04", "EVT-08")
@in_cloud()
async def test_an_event_for_a_server_at_rest_is_not_kept(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with structlog.testing.capture_logs() as logs:
        assert not await cloud.tell(uuid, "network-vif-plugged", "port")
    (line,) = [e for e in logs if e["event"] == "nobody waits for an event"]
    assert (line["log_level"], line["instance"], line["event_key"]) == ("debug", uuid, "network-vif-plugged:port")
    assert cloud.events(uuid) == []


@pytest.mark.spec("EVT-27")
@waiting
async def test_without_events_nothing_is_waited_for(there: Waiting) -> None:
    id_ = await there.begin(Order(timeout=1000.0))
    assert (await there.ended(id_, within=10.0)).state is SUCCEEDED


@pytest.mark.spec("EVT-28")
@waiting
async def test_what_was_found_done_is_not_waited_for(there: Waiting) -> None:
    order = Order(wanted=("plugged:a", "plugged:b"), done=("plugged:a",))
    id_ = await there.begin(order)
    await there.at(id_, "wait")
    await there.tell("plugged", "b")
    assert (await there.ended(id_)).state is SUCCEEDED
    began = there.loop.time()
    record = await there.ended(await there.begin(order))
    assert there.loop.time() - began == pytest.approx(order.work + order.timeout, abs=3.0)  # the full time
    assert record.failure is not None
    assert record.failure.message == "Timed out waiting for plugged:b."


# --- what ends it otherwise -----------------------------------------------------------------------------------


@pytest.mark.spec("EVT-21", "EVT-23", "EVT-33", "EVT-32")
@waiting
async def test_the_limit_is_for_all_events_and_counts_from_the_end_of_the_work(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:c", "plugged:a", "plugged:b"), work=100.0, timeout=30.0))
    await there.at(id_, "wait")
    began = there.loop.time()
    assert began > 99.0
    await asyncio.sleep(25.0)
    await there.tell("plugged", "a")  # which gains no time for the others
    record = await there.ended(id_)
    assert there.loop.time() - began == pytest.approx(30.0, abs=2.0)
    assert record.state is FAILED
    assert record.failure is not None
    assert (record.failure.kind, record.failure.step) == ("WaitTimedOut", "wait")
    assert record.failure.message == "Timed out waiting for plugged:b, plugged:c."
    assert await there.kept() == []
    assert not await there.tell("plugged", "b")  # late


@pytest.mark.spec("EVT-23", "EVT-32")
@waiting
async def test_an_operation_may_go_on_without_an_event(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a", "plugged:b"), fatal=False, again=("plugged:b",)))
    await there.at(id_, "wait")
    await there.tell("plugged", "b")
    await there.at(id_, "wait again")
    assert await there.kept() == []  # the one that came is used up as well
    await there.tell("plugged", "b")
    record = await there.ended(id_)
    assert record.state is SUCCEEDED
    noted = next(e.failure for e in record.entries if e.step == "wait")
    assert noted is not None
    assert noted.kind == "WaitTimedOut"


@pytest.mark.spec("EVT-24", "EVT-34")
@pytest.mark.parametrize("tag", ["a", "b", "c"])
@pytest.mark.parametrize("status", ["failed", "in-progress"])
def test_the_first_event_that_failed_ends_the_wait(tag: str, status: str) -> None:
    @waiting
    async def story(there: Waiting) -> None:
        id_ = await there.begin(Order(wanted=("plugged:a", "plugged:b", "plugged:c"), timeout=1000.0))
        await there.at(id_, "wait")
        await there.tell("plugged", tag, status=status)
        record = await there.ended(id_, within=3.0)
        assert record.state is FAILED
        assert record.failure is not None
        assert (record.failure.kind, record.failure.message) == (
            "EventFailed", f"plugged:{tag} was reported as {status}."
        )
        assert await there.kept() == []

    story()


@pytest.mark.spec("EVT-26", "EVT-32")
@waiting
async def test_work_that_fails_waits_for_nothing(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a",), breaks=True, timeout=1000.0))
    await there.at(id_, "work")
    await there.tell("plugged", "a")
    record = await there.ended(id_, within=10.0)
    assert record.failure is not None
    assert record.failure.message == BROKEN.message
    assert [e.step for e in record.entries] == ["work"]
    assert await there.kept() == []


@pytest.mark.spec("EVT-31")
@waiting
async def test_without_time_only_what_came_counts(there: Waiting) -> None:
    order = Order(wanted=("plugged:a",), timeout=0.0)
    id_ = await there.begin(order)
    await there.at(id_, "work")
    await there.tell("plugged", "a")
    assert (await there.ended(id_)).state is SUCCEEDED
    record = await there.ended(await there.begin(order), within=order.work + 2.0)
    assert record.failure is not None
    assert record.failure.kind == "WaitTimedOut"


@pytest.mark.spec("EVT-10", "EVT-32")
@waiting
async def test_a_wait_that_is_cancelled_leaves_no_event(there: Waiting) -> None:
    id_ = await there.begin(Order(wanted=("plugged:a", "plugged:b"), timeout=1000.0))
    await there.begin(Order(wanted=("plugged:a",), timeout=1000.0), OTHER)
    await there.at(id_, "wait")
    await there.tell("plugged", "a")
    await there.tell("plugged", "b", subject=OTHER, status="completed")
    assert await there.kept() == ["plugged:a"]
    await there.database.write(lambda conn: cell_journal.request_cancel(conn, id_, "deleted", there.clock.now()))
    there.runner.wake()
    assert (await there.ended(id_, within=3.0)).state is OperationState.CANCELLED
    assert await there.kept() == []
    assert await there.kept(OTHER) == ["plugged:b"]


@pytest.mark.spec("EVT-17")
def test_an_event_has_one_textual_key() -> None:
    for tag in ("", "66666666-6666-4666-8666-666666666666"):
        assert ExternalEvent(subject=SERVER, name="plugged", tag=tag).key == event_key("plugged", tag)
    assert event_key("plugged", "") == "plugged"
    assert event_key("plugged", "a") == "plugged:a"
