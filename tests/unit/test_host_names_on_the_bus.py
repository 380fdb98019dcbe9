"""What a conductor accepts from a host, and how commands find one, whatever its name."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.agent.reports import HostReport, PowerReport
from kilonova.bus.local import LocalBus
from kilonova.bus.subjects import from_host, to_host
from kilonova.conductor.hosts import HostReports
from kilonova.db import services
from kilonova.db.database import Database
from kilonova.db.schema import cell_metadata
from kilonova.domain.clock import SystemClock
from kilonova.domain.states import PowerState
from kilonova.engine.commands import Command, Hosts, Reply
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.guest import HostInventory
from kilonova.operations.options import OperationOptions

HOST = "rack1.example.org"


class Registry:
    async def report(
        self, host: str, inventory: HostInventory, *, now: float, cell: str, kept_off: bool | None
    ) -> str:
        return "5a0ab0cc-5a0c-4b8e-9a3c-2c9b6b1e3d10"

    async def heartbeat(self, host: str, now: float) -> bool:
        return True


async def _known_hosts(speaks_as: str, says: str) -> list[str]:
    """The hosts that a conductor knows after a report by one that says it is `says`."""
    database = Database.open("sqlite://")
    await database.write(cell_metadata.create_all)
    clock = SystemClock()
    inventory = await FakeDriver(FakeHypervisor(says), clock).inventory()
    report = HostReport(host=says, driver="fake", started=True, version="1", inventory=inventory, guests=())
    reports = HostReports("cell1", database, Registry(), clock, OperationOptions())
    await reports.on_report(from_host(speaks_as, "report"), msgspec.msgpack.encode(report))
    event = PowerReport(host=says, uuid="x", power_state=PowerState.RUNNING, transition="started")
    await reports.on_event(from_host(speaks_as, "event"), msgspec.msgpack.encode(event))
    found = await database.read(lambda conn: list(conn.execute(sa.select(services.services.c.host)).scalars()))
    await database.close()
    return found


async def test_a_host_speaks_only_for_itself() -> None:
    assert await _known_hosts(HOST, HOST) == [HOST]
    assert await _known_hosts("rack2.example.org", HOST) == []


async def test_a_command_reaches_a_host_whose_name_has_dots() -> None:
    bus = LocalBus()

    async def answer(_subject: str, _payload: bytes) -> bytes:
        return msgspec.msgpack.encode(Reply(state="done", output=b"1"))

    await bus.subscribe(to_host(HOST, "command"), answer)
    command = Command(key="k", fence="f", epoch=1, subject="s", step="guest.spawn", args=b"{}")
    hosts = Hosts(bus, SystemClock())
    assert bytes(await hosts.run(HOST, command, deadline=1e18, interrupted=lambda: False)) == b"1"
    await bus.close()
