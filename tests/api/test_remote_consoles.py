"""Remote consoles in the Compute API."""

from __future__ import annotations

from typing import Any

import pytest
from compute_cloud import HOST, ComputeCloud, compute_cloud, create

from kilonova.domain.console import ConsoleAddress
from kilonova.domain.errors import Conflict, NotFound, NotSupported
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.consoles import ConsoleOptions

SPICE = ConsoleOptions(
    spice_enabled=True, html5proxy_base_url="http://spice.test/auto.html", spice_direct_proxy_base_url="http://d.test/x"
)
OLD = {
    "os-getVNCConsole": ("novnc", "http://cloud.test/console/novnc/vnc_lite.html?path=%3Ftoken%3D"),
    "os-getSerialConsole": ("serial", "ws://cloud.test/console/?token="),
    "os-getSPICEConsole": ("spice-html5", "http://spice.test/auto.html?token="),
}


async def ask(cloud: ComputeCloud, server: Any, protocol: str, type_: str, version: str = "2.6", **more: Any) -> Any:
    body = {"remote_console": {"protocol": protocol, "type": type_}}
    return await cloud.post(f"/servers/{server.uuid}/remote-consoles", body, version=version, **more)


@pytest.mark.spec("API-145", "API-146", "API-147", "API-506", "CON-13")
@pytest.mark.parametrize("action", OLD)
async def test_an_action_for_each_kind_until_2_5(action: str) -> None:
    type_, start = OLD[action]
    async with compute_cloud(consoles=SPICE) as cloud:
        server = await cloud.boot(locked_by="owner")
        path = f"/servers/{server.uuid}/action"
        for version in ("2.1", "2.5"):
            answer = await cloud.post(path, {action: {"type": type_}}, version=version)
            assert answer.status_code == 200
            console = answer.json()["console"]
            assert console == {"type": type_, "url": console["url"]}
            assert console["url"].startswith(start)
        assert (await cloud.post(path, {action: {"type": type_}}, version="2.6")).status_code == 404
        for bad in ({"type": "telepathy"}, {}, {"type": type_, "x": 1}, None):
            assert (await cloud.post(path, {action: bad})).status_code == 400
        assert (await cloud.post(path, {action: {"type": type_}}, as_="reader")).status_code == 403


@pytest.mark.spec("API-145", "CON-11")
async def test_xvpvnc_is_known_and_gone(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"os-getVNCConsole": {"type": "xvpvnc"}})
    assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, "Invalid console type xvpvnc")


@pytest.mark.spec("API-148")
async def test_rdp_is_gone(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"os-getRDPConsole": {"type": "rdp-html5"}})
    assert answer.status_code == 400
    assert (await ask(cloud, server, "rdp", "rdp-html5")).status_code == 400


@pytest.mark.spec("API-337", "API-338")
async def test_the_consoles_of_long_ago_are_gone(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/consoles"
    for method, where in (("GET", path), ("POST", path), ("GET", f"{path}/1"), ("DELETE", f"{path}/1")):
        for version in ("2.1", "2.104"):
            assert (await cloud.request(method, where, version=version)).status_code == 410


@pytest.mark.spec("API-042")
async def test_the_old_actions_check_policy_before_they_look_for_the_server(cloud: ComputeCloud) -> None:
    unknown = "/servers/99999999-9999-4999-8999-999999999999"
    for action in ("os-getVNCConsole", "os-getSerialConsole", "os-getSPICEConsole"):
        body = {action: {"type": OLD[action][0]}}
        assert (await cloud.post(f"{unknown}/action", body, as_="reader")).status_code == 403
        assert (await cloud.post(f"{unknown}/action", body)).status_code == 404
    foreign = await cloud.boot()
    body = {"os-getVNCConsole": {"type": "novnc"}}
    assert (await cloud.post(f"/servers/{foreign.uuid}/action", body, as_="stranger")).status_code == 404
    assert (await ask(cloud, foreign, "vnc", "novnc", as_="stranger")).status_code == 404


@pytest.mark.spec("API-182", "API-506", "API-508", "API-599")
async def test_one_route_for_all_kinds_since_2_6() -> None:
    async with compute_cloud(consoles=SPICE) as cloud:
        server = await cloud.boot()
        assert (await ask(cloud, server, "vnc", "novnc", "2.5")).status_code == 404
        for protocol, type_, start in (
            ("vnc", "novnc", OLD["os-getVNCConsole"][1]), ("serial", "serial", OLD["os-getSerialConsole"][1]),
            ("spice", "spice-html5", OLD["os-getSPICEConsole"][1]), ("spice", "spice-direct", "http://d.test/x?token="),
        ):
            answer = await ask(cloud, server, protocol, type_, "2.99")
            assert answer.status_code == 200
            console = answer.json()["remote_console"]
            assert console == {"protocol": protocol, "type": type_, "url": console["url"]}
            assert console["url"].startswith(start)
        assert (await ask(cloud, server, "spice", "spice-direct", "2.98")).status_code == 400
        for version in ("2.7", "2.8"):
            answer = await ask(cloud, server, "mks", "webmks", version)
            assert answer.status_code == 400
            assert ("Unavailable console type mks" in answer.text) == (version == "2.8")
        for protocol, type_ in (("vnc", "serial"), ("vnc", "xvpvnc"), ("serial", "novnc"), ("spice", "novnc")):
            answer = await ask(cloud, server, protocol, type_)
            assert (answer.status_code, f"Invalid console type {type_}" in answer.text) == (400, True)
        assert (await ask(cloud, server, "vnc", "novnc", as_="reader")).status_code == 403
        path = f"/servers/{server.uuid}/remote-consoles"
        for bad in ({}, {"remote_console": {"protocol": "vnc"}}, {"remote_console": {"type": "novnc"}}):
            assert (await cloud.post(path, bad, version="2.6")).status_code == 400


@pytest.mark.spec("API-182", "CON-10")
async def test_a_kind_that_is_switched_off(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await ask(cloud, server, "spice", "spice-html5")
    assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, "Unavailable console type spice.")
    assert cloud.host.asked == []


@pytest.mark.spec("API-182", "API-062", "API-065", "CON-15", "CON-16", "CON-18", "CON-22")
async def test_refusals(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.STOPPED)
    for error, status in ((NotSupported("no screen"), 501), (Conflict("off"), 409), (NotFound("gone"), 404)):
        cloud.host.error = error
        answer = await ask(cloud, server, "vnc", "novnc")
        assert answer.status_code == status
    building = await cloud.boot(vm_state=VmState.BUILDING)
    assert (await ask(cloud, building, "vnc", "novnc")).status_code == 409
    cloud.host.error = None
    for fields in ({"task_state": TaskState.DELETING}, {"task_state": TaskState.MIGRATING}, {"host": None}):
        assert (await ask(cloud, await cloud.boot(**fields), "vnc", "novnc")).status_code == 409
    waiting = (await create(cloud)).json()["server"]["id"]
    answer = await cloud.post(
        f"/servers/{waiting}/remote-consoles", {"remote_console": {"protocol": "vnc", "type": "novnc"}}, version="2.6"
    )
    assert answer.status_code == 409
    answer = await ask(cloud, await cloud.boot(host="away"), "vnc", "novnc")
    assert answer.status_code == 503
    shown = (await cloud.get(f"/servers/{server.uuid}")).json()["server"]
    assert (shown["status"], shown.get("fault")) == ("SHUTOFF", None)
    assert await cloud.stored(server.uuid) == server


@pytest.mark.spec("API-265", "API-531", "API-599")
async def test_what_a_token_is_for() -> None:
    async with compute_cloud(consoles=SPICE) as cloud:
        server = await cloud.boot()
        cloud.host.address = ConsoleAddress(host="192.0.2.1", port=5900, tls_port=5901)

        async def token(protocol: str, type_: str) -> str:
            answer = await ask(cloud, server, protocol, type_, "2.99")
            return str(answer.json()["remote_console"]["url"].rpartition("token")[2].removeprefix("%3D").strip("="))

        path = f"/os-console-auth-tokens/{await token('vnc', 'novnc')}"
        known = {"instance_uuid": server.uuid, "host": "192.0.2.1", "port": 5900, "internal_access_path": None}
        for version in ("2.31", "2.98", "2.99"):
            answer = await cloud.get(path, version=version, as_="admin")
            assert (answer.status_code, answer.json()) == (200, {"console": known})
        assert (await cloud.get(path, version="2.30", as_="admin")).status_code == 400
        assert (await cloud.get(path, version="2.31")).status_code == 403
        assert (await cloud.get(f"{path}?x=1", version="2.98", as_="admin")).status_code == 200
        assert (await cloud.get(f"{path}?x=1", version="2.99", as_="admin")).status_code == 400
        direct = f"/os-console-auth-tokens/{await token('spice', 'spice-direct')}"
        assert "tls_port" not in (await cloud.get(direct, version="2.98", as_="admin")).json()["console"]
        answer = await cloud.get(direct, version="2.99", as_="admin")
        assert answer.json() == {"console": {**known, "tls_port": 5901}}
        cloud.host.address = ConsoleAddress(internal_access_path="/run/console.sock")
        answer = await cloud.get(
            f"/os-console-auth-tokens/{await token('serial', 'serial')}", version="2.31", as_="admin"
        )
        assert answer.json()["console"]["internal_access_path"] == "/run/console.sock"
        cloud.clock.time += 601
        for one in (path, "/os-console-auth-tokens/nonsense"):
            answer = await cloud.get(one, version="2.31", as_="admin")
            assert (answer.status_code, answer.json()["itemNotFound"]["message"]) == (404, "Token not found")
        assert cloud.host.asked[0].uuid == server.uuid
        assert server.host == HOST
