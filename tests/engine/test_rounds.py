"""Periodic work: when it comes, and that nothing keeps the next round from coming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from simulation.process import SimClock
from small_cloud import SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.engine.rounds import DEFAULT_INTERVAL, Round, Rounds


@asynccontextmanager
async def running(cloud: SmallCloud, *rounds: Round) -> AsyncIterator[None]:
    clock = SimClock(cloud.loop)
    work = Rounds(clock, rounds)
    work.start()
    try:
        yield
    finally:
        await work.close()


def noting(cloud: SmallCloud, times: list[float]) -> Callable[[], Awaitable[None]]:
    began = cloud.loop.time()

    async def work() -> None:
        times.append(round(cloud.loop.time() - began))

    return work


@pytest.mark.spec("PER-01", "PER-02")
@pytest.mark.parametrize(("interval", "at_start", "expected"), [
    (100.0, False, [100, 200, 300]), (100.0, True, [0, 100, 200, 300]), (-1.0, True, []), (-1.0, False, []),
    (0.0, False, [DEFAULT_INTERVAL * n for n in range(1, 6)]),
])
def test_when_it_comes(interval: float, at_start: bool, expected: list[float]) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        times: list[float] = []
        async with running(cloud, Round("it", noting(cloud, times), interval, at_start)):
            await asyncio.sleep(330.0)
        assert times == expected

    story()


@pytest.mark.spec("PER-03", "PER-20")
@in_cloud()
async def test_a_round_that_fails_is_logged_and_the_next_comes(cloud: SmallCloud) -> None:
    tries: list[int] = []

    async def fails() -> None:
        tries.append(1)
        raise RuntimeError("broken")

    with capture_logs() as logs:
        async with running(cloud, Round("it", fails, 10.0)):
            await asyncio.sleep(35.0)
    assert len(tries) == 3
    assert [(line["event"], line["work"]) for line in logs] == [("periodic work failed", "it")] * 3


@pytest.mark.spec("PER-06")
@in_cloud()
async def test_a_round_that_hangs_holds_up_no_other_and_is_not_started_twice(cloud: SmallCloud) -> None:
    hung: list[int] = []
    times: list[float] = []

    async def hangs() -> None:
        hung.append(1)
        await asyncio.sleep(10_000.0)

    async with running(cloud, Round("hangs", hangs, 10.0), Round("goes on", noting(cloud, times), 10.0)):
        await asyncio.sleep(95.0)
    assert hung == [1]
    assert len(times) == 9
