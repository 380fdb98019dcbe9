"""Events of other services: taken or refused one by one."""

import uuid
from typing import Any

import pytest
from compute_cloud import ComputeCloud, create
from structlog.testing import capture_logs

from kilonova.api.compute import external_events
from kilonova.domain.errors import NotFound, ServiceUnavailable

EVENTS = "/os-server-external-events"
PORT = "66666666-6666-4666-8666-666666666666"


async def send(cloud: ComputeCloud, *events: dict[str, Any], version: str = "2.104", as_: str = "service") -> Any:
    return await cloud.post(EVENTS, {"events": list(events)}, version=version, as_=as_)


@pytest.mark.spec("API-262", "API-469")
async def test_an_event_reaches_the_operation(cloud: ComputeCloud) -> None:
    server = (await cloud.boot()).uuid
    event = {"name": "network-vif-plugged", "server_uuid": server, "status": "failed", "tag": PORT}
    answer = await send(cloud, event, version="2.1")
    assert (answer.status_code, answer.json()) == (200, {"events": [{**event, "code": 200}]})
    (told,) = cloud.compute.told
    assert (told.subject, told.key, told.status) == (server, f"network-vif-plugged:{PORT}", "failed")


@pytest.mark.spec("API-469")
async def test_status_and_tag_may_be_left_out(cloud: ComputeCloud) -> None:
    server = (await cloud.boot()).uuid
    answer = await send(cloud, {"name": "network-changed", "server_uuid": server})
    assert answer.json() == {"events": [
        {"name": "network-changed", "server_uuid": server, "status": "completed", "code": 200}]}


@pytest.mark.spec("API-262", "API-469", "XEV-09", "XEV-10")
async def test_every_event_of_a_batch_is_handled_by_itself(cloud: ComputeCloud) -> None:
    """One that cannot be taken does not keep those behind it from their servers."""
    assert (await create(cloud)).status_code == 202
    waiting = cloud.compute.created[0].instance.uuid
    unplaced = (await cloud.boot(host=None, node=None)).uuid
    server, nobody = (await cloud.boot()).uuid, str(uuid.uuid4())
    answer = await send(
        cloud,
        {"name": "network-changed", "server_uuid": nobody},
        {"name": "network-changed", "server_uuid": waiting},
        {"name": "network-changed", "server_uuid": unplaced},
        {"name": "volume-extended", "server_uuid": server},
        {"name": "power-update", "server_uuid": server, "tag": "ON"},
        {"name": "accelerator-request-bound", "server_uuid": server, "tag": ""},
        {"name": "volume-reimaged", "server_uuid": server},
    )
    assert answer.status_code == 207
    assert [(one["code"], one["status"]) for one in answer.json()["events"]] == [
        (404, "failed"), (404, "failed"), (422, "failed"), (400, "failed"), (400, "failed"), (400, "failed"),
        (200, "completed")]
    assert [(event.subject, event.name) for event in cloud.compute.told] == [(server, "volume-reimaged")]


@pytest.mark.spec("API-469", "API-551", "API-576", "API-582", "API-593", "EMV-42")
@pytest.mark.parametrize(("name", "tag", "since"), [
    ("volume-extended", PORT, 51), ("power-update", "POWER_OFF", 76), ("accelerator-request-bound", PORT, 82),
    ("volume-reimaged", PORT, 93),
])
async def test_names_by_microversion(cloud: ComputeCloud, name: str, tag: str, since: int) -> None:
    event = {"name": name, "server_uuid": (await cloud.boot()).uuid, "tag": tag}
    assert (await send(cloud, event, version=f"2.{since - 1}")).status_code == 400
    assert (await send(cloud, event, version=f"2.{since}")).status_code == 200


@pytest.mark.spec("API-262", "EMN-60", "EMV-42")
@pytest.mark.parametrize("as_", ["member", "manager", "reader", "nobody"])
async def test_only_services_may(cloud: ComputeCloud, as_: str) -> None:
    server = (await cloud.boot()).uuid
    for name in ("network-changed", "volume-extended", "volume-reimaged"):
        assert (await send(cloud, {"name": name, "server_uuid": server, "tag": PORT}, as_=as_)).status_code == 403
    assert cloud.compute.told == []


@pytest.mark.spec("API-469")
async def test_bodies_that_are_refused(cloud: ComputeCloud) -> None:
    good = {"name": "network-changed", "server_uuid": str(uuid.uuid4())}
    for events in ([], [{**good, "name": "rain"}], [{**good, "server_uuid": "x"}], [{**good, "status": "done"}],
                   [{**good, "tag": "x" * 256}], [{**good, "more": 1}]):
        assert (await send(cloud, *events)).status_code == 400


@pytest.mark.spec("XEV-01")
async def test_events_are_told_in_order_each_to_its_server(cloud: ComputeCloud) -> None:
    one, two = (await cloud.boot()).uuid, (await cloud.boot()).uuid
    sent = [(one, "network-vif-unplugged"), (two, "network-vif-plugged"), (one, "network-vif-plugged")]
    answer = await send(cloud, *({"name": name, "server_uuid": uuid_, "tag": PORT} for uuid_, name in sent))
    assert answer.status_code == 200
    assert [(event.subject, event.name) for event in cloud.compute.told] == sent


@pytest.mark.spec("XEV-02", "XEV-09")
@pytest.mark.parametrize(("error", "level"), [(NotFound("gone"), "info"), (ServiceUnavailable("down"), "warning")])
async def test_a_network_service_that_does_not_tell_keeps_no_event_away(
    cloud: ComputeCloud, monkeypatch: pytest.MonkeyPatch, error: Exception, level: str
) -> None:
    server = (await cloud.boot()).uuid

    async def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(external_events, "refresh_interfaces", fails)
    with capture_logs() as logs:
        answer = await send(
            cloud, {"name": "network-changed", "server_uuid": server, "tag": PORT},
            {"name": "network-vif-plugged", "server_uuid": server, "tag": PORT},
        )
    assert [entry["code"] for entry in answer.json()["events"]] == [200, 200]
    assert [event.name for event in cloud.compute.told] == ["network-changed", "network-vif-plugged"]
    assert [line["log_level"] for line in logs if line["event"] == "interfaces not read anew"] == [level]
