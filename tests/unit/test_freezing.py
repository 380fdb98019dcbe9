"""Holding the file systems of a guest still, with an agent that is not always willing."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kilonova.domain.errors import KilonovaError, NotSupported
from kilonova.hypervisor.libvirt import agent
from kilonova.hypervisor.libvirt.freeze import ATTEMPTS, LONGEST, Freezer
from kilonova.shapes.quiesce import Quiesce

GUEST = str(uuid.uuid4())


class Agent:
    """Takes what the freezer says, and fails as often as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self.fails: dict[str, int] = {}
        for name in ("require", "freeze", "thaw"):
            monkeypatch.setattr(agent, name, lambda _open, _uuid, name=name: self._hear(name))

    def _hear(self, name: str) -> None:
        self.said.append(name)
        if self.fails.get(name, 0) > 0:
            self.fails[name] -= 1
            raise KilonovaError(f"{name} failed")

    async def call(self, fn: Callable[[Any], Any], *, uuid: str = "", limit: float = 0.0) -> Any:
        return fn(None)


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class Disks:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.of(GUEST).mkdir()

    def of(self, uuid_: str) -> Path:
        return self._directory / uuid_

    async def owners(self) -> list[str]:
        return [GUEST]


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Agent:
    return Agent(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def freezer(tmp_path: Path, clock: Clock) -> Iterator[Freezer]:
    workers = ThreadPoolExecutor(1)
    yield Freezer(Disks(tmp_path), clock, workers)  # type: ignore[arg-type]
    workers.shutdown()


async def hold(freezer: Freezer, guest: Agent, quiesce: Quiesce, error: BaseException | None = None) -> None:
    async with freezer.held(guest, GUEST, quiesce):  # type: ignore[arg-type]
        guest.said.append("copy")
        if error is not None:
            raise error


def marks(tmp_path: Path) -> int:
    return len(list((tmp_path / GUEST).iterdir()))


@pytest.mark.spec("QUI-01", "QUI-08")
async def test_a_copy_begins_while_the_guest_is_frozen(guest: Agent, freezer: Freezer, tmp_path: Path) -> None:
    await hold(freezer, guest, Quiesce.MUST)
    assert guest.said == ["require", "freeze", "copy", "thaw"]
    await hold(freezer, guest, Quiesce.NO)
    assert guest.said[4:] == ["copy"]
    assert marks(tmp_path) == 0


@pytest.mark.spec("QUI-11")
async def test_thawing_is_tried_again_and_again(guest: Agent, freezer: Freezer, tmp_path: Path) -> None:
    guest.fails = {"thaw": ATTEMPTS - 1}
    await hold(freezer, guest, Quiesce.TRY)
    assert guest.said.count("thaw") == ATTEMPTS
    assert marks(tmp_path) == 0


@pytest.mark.spec("QUI-09", "QUI-11", "QUI-12")
async def test_a_guest_that_stays_frozen_is_told_and_thawed_later(
    guest: Agent, freezer: Freezer, clock: Clock, tmp_path: Path
) -> None:
    guest.fails = {"thaw": ATTEMPTS}
    with pytest.raises(KilonovaError, match="may still be frozen"):
        await hold(freezer, guest, Quiesce.TRY)
    assert guest.said.count("thaw") == ATTEMPTS
    assert marks(tmp_path) == 1
    await freezer.thaw_all(guest, overdue=True)  # type: ignore[arg-type]
    assert guest.said.count("thaw") == ATTEMPTS
    clock.time += LONGEST
    await freezer.thaw_all(guest, overdue=True)  # type: ignore[arg-type]
    assert guest.said.count("thaw") == ATTEMPTS + 1
    assert marks(tmp_path) == 0


@pytest.mark.spec("QUI-02")
@pytest.mark.parametrize("quiesce", [Quiesce.TRY, Quiesce.MUST])
@pytest.mark.parametrize("what", ["require", "freeze"])
async def test_an_agent_that_does_not_freeze(
    guest: Agent, freezer: Freezer, tmp_path: Path, quiesce: Quiesce, what: str
) -> None:
    """One that has not answered may have frozen all the same, and is told to thaw."""
    guest.fails = {what: 1}
    if quiesce is Quiesce.MUST:
        with pytest.raises(NotSupported, match=rf"os_require_quiesce.*{what} failed"):
            await hold(freezer, guest, quiesce)
    else:
        await hold(freezer, guest, quiesce)
    assert ("copy" in guest.said) is (quiesce is Quiesce.TRY)
    assert guest.said.count("thaw") == (what == "freeze")
    assert marks(tmp_path) == 0


@pytest.mark.spec("QUI-03")
@pytest.mark.parametrize("error", [KilonovaError("no copy"), asyncio.CancelledError(), TimeoutError()])
async def test_whatever_ends_the_copy_the_guest_is_thawed(
    guest: Agent, freezer: Freezer, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        await hold(freezer, guest, Quiesce.MUST, error)
    assert guest.said[-1] == "thaw"
    assert marks(tmp_path) == 0


@pytest.mark.spec("QUI-03", "QUI-12")
async def test_what_a_process_that_died_has_frozen_is_thawed(guest: Agent, freezer: Freezer, tmp_path: Path) -> None:
    (tmp_path / GUEST / "frozen-until").write_text("99999999999.0")
    await freezer.thaw_all(guest, overdue=False)  # type: ignore[arg-type]
    assert (guest.said, marks(tmp_path)) == (["thaw"], 0)
