"""Thousands of seeded clouds in virtual time, with everything going wrong, and what must hold afterwards.

`KILONOVA_SIMULATION_SEEDS` sets how many seeds are run (default 3,000), `KILONOVA_SIMULATION_FIRST` the first one.
A failing seed is printed; `KILONOVA_SIMULATION_SEEDS=1 KILONOVA_SIMULATION_FIRST=<seed>` replays it exactly.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections import Counter

import pytest
from simulation.run import Result, quiet, simulate
from simulation.world import Databases

from kilonova.agent.steps.power import GuestRef
from kilonova.conductor import conductor
from kilonova.engine.operation import Definitions, HostStep
from kilonova.operations.build import BUILD
from kilonova.operations.catalogue import CELL_OPERATIONS

SEEDS = int(os.environ.get("KILONOVA_SIMULATION_SEEDS", "3000"))
FIRST = int(os.environ.get("KILONOVA_SIMULATION_FIRST", "0"))
TOLD = 16
"""Of so many seeds one has listeners."""

_databases: list[Databases] = []


def _begin() -> None:
    quiet()
    _databases.extend((Databases(told=True), Databases()))


def _one(seed: int) -> Result:
    return simulate(seed, _databases[seed % TOLD != 0])


def _describe(failed: list[Result]) -> str:
    lines = [f"{len(failed)} seeds failed; the first ones:"]
    for result in failed[:5]:
        lines += [f"seed {result.seed}:", *(f"    {violation}" for violation in result.violations[:6])]
    return "\n".join(lines)


@pytest.mark.timeout(3600)
@pytest.mark.spec(
    "FND-08", "FND-10", "FND-11", "FND-15", "FND-34", "INI-012", "INI-111", "BLD-52", "BLD-56", "BLD-57", "BLD-59",
    "BLD-60", "BLD-68", "BLD-69", "BLD-80", "BLD-81", "BLD-102", "BLD-130", "DEL-23", "DEL-30", "DEL-46", "DEL-50",
    "DEL-51", "DEL-59", "DEL-62", "DEL-65", "NET-09", "NET-10", "PWR-13", "PWR-23", "RBT-24",
)
def test_nothing_gets_stuck_and_nothing_leaks() -> None:
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    operations = crashes = 0
    states: Counter[str] = Counter()
    failed: list[Result] = []
    with context.Pool(os.cpu_count(), _begin) as pool:
        for result in pool.imap_unordered(_one, range(FIRST, FIRST + SEEDS), chunksize=8):
            operations += result.operations
            crashes += result.crashes
            states.update(result.states)
            if result.violations:
                failed.append(result)
    seconds = time.monotonic() - began
    print(f"{SEEDS} seeds in {seconds:.0f} s: {operations} requests, {crashes} crashes, operations {dict(states)}")
    assert not failed, _describe(sorted(failed, key=lambda r: r.seed))
    assert operations >= SEEDS and (SEEDS < 100 or (crashes > SEEDS and states["cancelled"] and states["failed"]))


def test_a_failing_seed_replays_exactly() -> None:
    quiet()
    databases = Databases()
    first, second = simulate(4711, databases), simulate(4711, databases)
    assert first == second
    assert first.states != simulate(4712, databases).states or first.operations


async def _forget_disks(_host: object, _args: GuestRef) -> None:
    """The planted bug: an undo that does nothing."""


def test_a_skipped_undo_is_found_within_a_thousand_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet()
    broken_undo = HostStep("guest.destroy", _forget_disks, GuestRef)
    steps = tuple(
        dataclasses.replace(step, undo=broken_undo) if step.name == "create disks" else step for step in BUILD.steps
    )
    broken = dataclasses.replace(BUILD, steps=steps)
    others = [operation for operation in CELL_OPERATIONS if operation.name != BUILD.name]
    monkeypatch.setattr(conductor, "CELL_OPERATIONS", Definitions(broken, *others))
    databases = Databases()
    for seed in range(1000):
        if simulate(seed, databases).violations:
            return
    pytest.fail("1000 seeds did not notice that an undo was skipped")
