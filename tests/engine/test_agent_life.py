"""How the service of a host starts and ends: in which order, and what an error on the way does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from kilonova.agent.agent import Agent
from kilonova.bus.protocol import Handler
from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import PowerState
from kilonova.engine.host import host_metadata
from kilonova.hypervisor.fake import FakeDriver, FakeGuest, FakeHypervisor
from kilonova.hypervisor.guest import GuestEvent, GuestOnHost, HostInventory

UUID = "77777777-7777-4777-8777-777777777777"
BROKEN = KilonovaError("it does not work")


class Steps:
    """What happened, in order, and at which of it an error is raised."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.breaks = ""

    def note(self, step: str) -> None:
        self.done.append(step)
        if step == self.breaks:
            raise BROKEN


class NotedDriver(FakeDriver):
    def __init__(self, hypervisor: FakeHypervisor, steps: Steps) -> None:
        super().__init__(hypervisor, SystemClock())
        self.steps = steps
        self.listener: Callable[[GuestEvent], None] | None = None

    async def start(self, on_event: Callable[[GuestEvent], None]) -> None:
        self.steps.note("driver.start")
        self.listener = on_event

    async def inventory(self) -> HostInventory:
        self.steps.note("inventory")
        return await super().inventory()

    async def guests(self) -> list[GuestOnHost]:
        self.steps.note("guests")
        return await super().guests()

    async def close(self) -> None:
        self.steps.note("driver.close")
        await super().close()


class NotedBus:
    """Answers every report, notes everything."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps

    async def publish(self, subject: str, payload: bytes) -> None:
        self.steps.note(f"publish {subject}")

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        self.steps.note(f"request {subject}")
        return b"noted"

    async def subscribe(self, subject: str, handler: Handler, *, group: str | None = None) -> NotedSubscription:
        self.steps.note(f"subscribe {subject}")
        return NotedSubscription(self.steps, subject)

    async def close(self) -> None:
        return None


class NotedSubscription:
    def __init__(self, steps: Steps, subject: str) -> None:
        self.steps, self.subject = steps, subject

    async def unsubscribe(self) -> None:
        self.steps.note(f"unsubscribe {self.subject}")


class Host:
    """An agent and what it stands on."""

    def __init__(self, journal: Database) -> None:
        self.steps = Steps()
        self.hypervisor = FakeHypervisor("host0")
        self.hypervisor.guests[UUID] = FakeGuest(
            uuid=UUID, disks=True, defined=True, power_state=PowerState.RUNNING
        )
        self.driver = NotedDriver(self.hypervisor, self.steps)
        self.agent = Agent(
            "host0", self.driver, NotedBus(self.steps), journal, SystemClock(), report_interval=3600.0
        )
        close = self.agent.executor.close

        async def noted() -> None:
            self.steps.note("executor.close")
            await close()

        self.agent.executor.close = noted  # type: ignore[method-assign]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    journal = Database.open("sqlite://")
    await journal.write(host_metadata.create_all)
    made = Host(journal)
    yield made
    made.steps.breaks = ""
    await made.agent.close()
    await journal.close()


START = [
    "driver.start", "inventory", "guests", "request kn.from.host0.report", "subscribe kn.host.host0.command",
    "subscribe kn.host.host0.query",
]


@pytest.mark.spec("INI-001", "INI-006", "INI-022", "LCE-01")
async def test_a_host_is_looked_at_and_announced_before_it_takes_a_command(host: Host) -> None:
    await host.agent.start()
    assert host.steps.done == START
    assert host.driver.listener is not None


@pytest.mark.spec("INI-006", "INI-023")
@pytest.mark.parametrize("breaks", ["driver.start", "inventory", "guests"])
async def test_a_host_that_cannot_be_looked_at_does_not_serve(breaks: str, host: Host) -> None:
    host.steps.breaks = breaks
    with pytest.raises(KilonovaError, match="does not work"):
        await host.agent.start()
    assert host.steps.done == START[: START.index(breaks) + 1]


EXIT = ["unsubscribe kn.host.host0.query", "unsubscribe kn.host.host0.command", "executor.close", "driver.close"]


@pytest.mark.spec("INI-183")
async def test_after_the_first_step_of_the_exit_no_event_is_told(host: Host) -> None:
    await host.agent.start()
    host.steps.done.clear()
    assert host.driver.listener is not None
    await host.agent.close()
    host.driver.listener(GuestEvent(uuid=UUID, transition="resumed", power_state=PowerState.RUNNING))
    assert host.steps.done == EXIT
    assert all(task.done() for task in host.agent._tasks)


@pytest.mark.spec("INI-189")
@pytest.mark.parametrize("breaks", EXIT)
async def test_each_step_of_the_exit_is_done_whatever_the_others_meet(breaks: str, host: Host) -> None:
    await host.agent.start()
    host.steps.done.clear()
    host.steps.breaks = breaks
    with pytest.raises(KilonovaError, match="does not work"):
        await host.agent.close()
    assert host.steps.done == EXIT
