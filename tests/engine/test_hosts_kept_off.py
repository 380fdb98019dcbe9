"""Hosts that an operator has disabled get no new servers, whatever placement has been told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.cells import kept_off as kept_off_hosts
from kilonova.cells.kept_off import KeptOffHosts
from kilonova.cells.registry import Cell, Cells
from kilonova.db import services
from kilonova.db.placement.hosts import publish_status
from kilonova.domain.errors import ServiceUnavailable
from kilonova.domain.states import VmState


async def change(cloud: SmallCloud, host: str, **changes: bool) -> None:
    """In the record alone: whoever did it did not live to tell placement."""
    (service,) = await cloud.databases.cell.read(
        lambda conn: services.all_services(conn, binary=services.COMPUTE, host=host)
    )
    await cloud.databases.cell.write(
        lambda conn: services.change_service(conn, service.uuid, now=cloud.now, **changes)
    )


@pytest.mark.spec("HST-12")
@pytest.mark.parametrize("change_of", ["disabled", "forced_down"])
def test_a_host_whose_record_is_disabled_gets_no_servers_from_now_on(change_of: str) -> None:
    @in_cloud(hosts=2)
    async def story(cloud: SmallCloud) -> None:
        await change(cloud, "host0", **{change_of: True})
        assert {cloud.server(await cloud.build()).host for _ in range(3)} == {"host1"}
        await change(cloud, "host1", **{change_of: True})
        uuid = await cloud.ask(cloud.new())
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).host) == (VmState.ERROR, None)
        await change(cloud, "host0", **{change_of: False})
        await cloud.databases.api.write(lambda conn: publish_status(conn, "host0", disabled=False))
        assert cloud.server(await cloud.build()).host == "host0"

    story()


class Answers:
    """A database that answers what it is told to, or not at all."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: list[str] | None = list(hosts)

    async def read(self, _unit: Callable[[Any], Any]) -> Any:
        if self.hosts is None:
            raise ServiceUnavailable("The database does not answer.")
        return self.hosts


@pytest.mark.spec("HST-12")
async def test_of_a_cell_that_cannot_be_read_what_was_read_last_holds() -> None:
    one, two = Answers("h1"), Answers("h2", "h3")
    cells: Any = [Cell(name, name, database) for name, database in (("one", one), ("two", two))]  # type: ignore[arg-type]
    kept_off = KeptOffHosts(Cells(one, tuple(cells)))  # type: ignore[arg-type]
    two.hosts = None
    assert await kept_off() == {"h1"}
    two.hosts = ["h2"]
    assert await kept_off() == {"h1", "h2"}
    two.hosts, one.hosts = None, []
    assert await kept_off() == {"h2"}


class Slow(Answers):
    """Answers when it is told to."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(*hosts)
        self.go, self.asked = asyncio.Event(), 0

    async def read(self, unit: Callable[[Any], Any]) -> Any:
        self.asked += 1
        await self.go.wait()
        return await super().read(unit)


@pytest.mark.spec("HST-12")
async def test_a_cell_that_is_slow_holds_up_no_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_off_hosts, "PATIENCE", 0.01)
    one, two = Answers("h1"), Slow("h2")
    cells: Any = [Cell(name, name, database) for name, database in (("one", one), ("two", two))]  # type: ignore[arg-type]
    kept_off = KeptOffHosts(Cells(one, tuple(cells)))  # type: ignore[arg-type]
    assert [await kept_off() for _ in range(3)] == [{"h1"}] * 3
    assert two.asked == 1
    two.go.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await kept_off() == {"h1", "h2"}
