"""What hosts have reaches placement, and stays as the hosts report it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from small_cloud import OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.conductor.hosts import HostReports
from kilonova.db import placement, services
from kilonova.db.placement import search
from kilonova.db.placement.errors import ConcurrentUpdate
from kilonova.db.placement.hosts import STATUS_DISABLED, publish_status
from kilonova.db.placement.providers import Inventory
from kilonova.domain.states import PowerState

REPORTS = 25.0
"""Virtual seconds in which every host has reported again."""


def offers(cloud: SmallCloud, host: str) -> dict[str, Inventory]:
    provider = cloud.provider(host)
    found: dict[str, Inventory] = cloud.api(
        lambda conn: search.inventories_of(conn, placement.find_provider(conn, provider).id)
    )
    return found


def traits(cloud: SmallCloud, host: str) -> set[str]:
    provider = cloud.provider(host)
    found: set[str] = cloud.api(
        lambda conn: search.traits_of_provider(conn, placement.find_provider(conn, provider).id)
    )
    return found


async def set_offers(cloud: SmallCloud, host: str, **changes: Inventory) -> None:
    provider, now = cloud.provider(host), offers(cloud, host)
    await cloud.databases.api.write(lambda conn: placement.set_inventories(conn, provider, now | changes))


@pytest.mark.spec("RSU-07")
@in_cloud(hosts=2)
async def test_what_a_host_has_now_is_written_host_by_host(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].memory_mib += 1024
    before = offers(cloud, "host1")
    await asyncio.sleep(REPORTS)
    assert offers(cloud, "host0")["MEMORY_MB"].total == before["MEMORY_MB"].total + 1024
    assert offers(cloud, "host1") == before


@pytest.mark.spec("RSU-07")
@in_cloud()
async def test_drift_in_placement_is_repaired_and_an_operators_ratio_stays(cloud: SmallCloud) -> None:
    right = offers(cloud, "host0")
    own_ratio = msgspec.structs.replace(right["VCPU"], allocation_ratio=9.0)
    await set_offers(
        cloud, "host0", VCPU=own_ratio, MEMORY_MB=Inventory(total=1), CUSTOM_GOLD=Inventory(total=3),
    )
    await cloud.databases.api.write(lambda conn: publish_status(conn, "host0", disabled=True))
    await asyncio.sleep(OPTIONS.update_resources_interval + REPORTS)
    now = offers(cloud, "host0")
    assert now == {**right, "VCPU": own_ratio, "CUSTOM_GOLD": Inventory(total=3)}
    assert STATUS_DISABLED not in traits(cloud, "host0")


@pytest.mark.spec("HST-12")
@in_cloud()
async def test_placement_learns_from_the_next_report_whether_a_host_gets_new_servers(cloud: SmallCloud) -> None:
    """Whoever changed the record of the service did not live to tell placement."""
    (service,) = await cloud.databases.cell.read(lambda conn: services.all_services(conn, host="host0"))
    for disabled in (True, False):
        await cloud.databases.cell.write(
            lambda conn, to=disabled: services.change_service(conn, service.uuid, now=1.0, disabled=to)
        )
        await asyncio.sleep(REPORTS)
        assert (STATUS_DISABLED in traits(cloud, "host0")) is disabled


@pytest.mark.spec("RSU-07", "PER-01")
@in_cloud(options=msgspec.structs.replace(OPTIONS, update_resources_interval=-1.0))
async def test_a_negative_interval_writes_only_what_has_changed(cloud: SmallCloud) -> None:
    """The time that a host is up, and what is free on it, are different in every report."""
    await asyncio.sleep(REPORTS)
    still = cloud.hypervisors["host0"].memory_mib
    await set_offers(cloud, "host0", MEMORY_MB=Inventory(total=1))
    await asyncio.sleep(1000.0)
    assert offers(cloud, "host0")["MEMORY_MB"].total == 1
    cloud.hypervisors["host0"].memory_mib = still + 1
    await asyncio.sleep(REPORTS)
    assert offers(cloud, "host0")["MEMORY_MB"].total == still + 1


@pytest.mark.spec("RSU-11")
@in_cloud(hosts=2)
async def test_what_placement_refuses_is_told_again_and_holds_up_no_other_host(
    cloud: SmallCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else changes the provider at the same time. The host's guests are observed all the same."""
    uuid = await cloud.build()
    here = cloud.server(uuid).host
    assert here is not None
    other = "host1" if here == "host0" else "host0"
    register = HostReports._register

    async def refused(self: HostReports, report: Any, now: float) -> str:
        if report.host == here:
            raise ConcurrentUpdate("changed")
        return await register(self, report, now)

    monkeypatch.setattr(HostReports, "_register", refused)
    for name in (here, other):
        cloud.hypervisors[name].memory_mib += 1
    await asyncio.sleep(10.0)
    with capture_logs() as logs:
        cloud.hypervisors[here].guests[uuid].power_state = PowerState.PAUSED
        await asyncio.sleep(REPORTS)
    assert {line["host"] for line in logs if line["event"] == "placement did not take what a host has"} == {here}
    assert offers(cloud, other)["MEMORY_MB"].total == offers(cloud, here)["MEMORY_MB"].total + 1
    assert cloud.server(uuid).power_state is PowerState.PAUSED
    monkeypatch.undo()
    await asyncio.sleep(REPORTS)
    assert offers(cloud, other)["MEMORY_MB"].total == offers(cloud, here)["MEMORY_MB"].total
