"""A whole cloud beside an accelerator service that is reached over HTTP, and what its audit finds there."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from accelerated import PCI_DEVICES, offer_devices
from cyborg import Server, StandIn, cyborg

from tests.control_cloud import ControlCloud, control_cloud, kinds, until


@pytest.fixture
def service() -> Iterator[Server]:
    with cyborg(StandIn()) as listening:
        yield listening


@pytest.fixture
async def cloud(tmp_path: Path, service: Server) -> AsyncIterator[ControlCloud]:
    async with control_cloud(tmp_path, options={"accelerator.endpoint": service.endpoint}) as running:
        await running.database.write(offer_devices)
        for agent in running.machine.agents:
            running.hypervisor(agent.host).devices = PCI_DEVICES
        flavors = f"{running.state.compute_url}/flavors"
        body = {"flavor": {"name": "fast", "ram": 64, "vcpus": 1, "disk": 1, "id": "fast"}}
        await asyncio.to_thread(running.session.post, flavors, body)
        specs = {"extra_specs": {"accel:device_profile": "fpga"}}
        await asyncio.to_thread(running.session.post, f"{flavors}/fast/os-extra_specs", specs)
        yield running


async def ready(cloud: ControlCloud) -> str:
    """A server with an accelerator that runs."""
    id_ = await cloud.ask_for_server(flavor="fast")

    async def look() -> bool | None:
        found = await asyncio.to_thread(cloud.api.server, id_)
        assert found is not None and found.status != "ERROR", found
        return found.status == "ACTIVE" or None

    await until(look)
    return id_


@pytest.mark.spec("EMP-09", "API-582", "BLD-120", "DEL-23")
async def test_the_service_tells_through_the_compute_api(cloud: ControlCloud, service: Server) -> None:
    service.service.at_once = False
    id_ = await cloud.ask_for_server(flavor="fast")

    async def bound() -> list[str] | None:
        return service.service.resolve(id_) or None

    (request,) = await until(bound)
    event = {"name": "accelerator-request-bound", "server_uuid": id_, "tag": request}
    url = f"{cloud.state.compute_url}/os-server-external-events"
    await asyncio.to_thread(cloud.session.post, url, {"events": [event]}, version="2.82")

    async def active() -> bool | None:
        found = await asyncio.to_thread(cloud.api.server, id_)
        return (found is not None and found.status == "ACTIVE") or None

    await until(active)
    hosts = [agent.host for agent in cloud.machine.agents]
    (guest,) = [g for host in hosts if (g := cloud.hypervisor(host).guests.get(id_)) is not None]
    assert [device.address for device in guest.host_devices] == ["0000:5e:00.0"]
    assert (await cloud.audit()).clean
    await cloud.delete(id_)
    assert service.service.arqs == {}
    assert (await cloud.audit()).clean


async def test_requests_of_nobody_are_deleted(cloud: ControlCloud, service: Server) -> None:
    server, stranger = await ready(cloud), str(uuid.uuid4())
    stand_in = service.service
    (own,) = stand_in.arqs
    _, unbound = stand_in.answer("POST", "/v2/accelerator_requests", {}, {"device_profile_name": "fpga"})
    left = [unbound["arqs"][0]["uuid"]]
    for owner in (stranger, server):
        _, made = stand_in.answer("POST", "/v2/accelerator_requests", {}, {"device_profile_name": "fpga"})
        left.append(made["arqs"][0]["uuid"])
        stand_in.arqs[left[-1]] |= {"instance_uuid": owner, "state": "Bound"}
    found = await cloud.audit()
    assert sorted(kinds(found)) == sorted(("accelerator-request-left", id_) for id_ in left)
    assert (await cloud.heal()).after.clean
    assert list(stand_in.arqs) == [own]


async def test_a_request_that_a_server_has_lost_needs_a_decision(cloud: ControlCloud, service: Server) -> None:
    server = await ready(cloud)
    (own,) = service.service.arqs
    service.service.arqs[own]["state"] = "Unbound"
    assert kinds(await cloud.audit()) == [("accelerator-request-missing", own)]
    service.service.arqs.clear()
    healing = await cloud.heal()
    assert kinds(healing.after) == [("accelerator-request-missing", own)]
    await cloud.delete(server)
    assert (await cloud.audit()).clean


async def test_nothing_is_called_left_that_a_build_may_be_about_to_bind(cloud: ControlCloud, service: Server) -> None:
    stand_in = service.service
    stand_in.at_once = False
    id_ = await cloud.ask_for_server(flavor="fast")

    async def binding() -> bool | None:
        return bool(stand_in.of(id_)) or None

    await until(binding)
    _, made = stand_in.answer("POST", "/v2/accelerator_requests", {}, {"device_profile_name": "fpga"})
    assert (await cloud.audit()).clean
    await cloud.delete(id_)
    assert kinds(await cloud.audit()) == [("accelerator-request-left", made["arqs"][0]["uuid"])]


async def test_a_service_that_is_away_is_a_difference(cloud: ControlCloud, service: Server) -> None:
    await ready(cloud)
    service.broken = True
    assert kinds(await cloud.audit()) == [("accelerators-silent", "accelerator")]
