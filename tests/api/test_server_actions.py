"""What can be done to a server, and what can be read of it: actions, console, metadata, tags, its history."""

import uuid
from typing import Any

import pytest
from compute_cloud import HOST, PROJECT, ComputeCloud, compute_cloud, create

from kilonova.api.compute.quota_check import Limits
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.action_log import Action, ActionEvent
from kilonova.operations.start import StartServer


async def act(cloud: ComputeCloud, server: Instance, body: Any, *, version: int = 1, as_: str = "member") -> int:
    answer = await cloud.post(f"/servers/{server.uuid}/action", body, version=f"2.{version}", as_=as_)
    return answer.status_code


async def state(cloud: ComputeCloud, server: Instance) -> VmState:
    return (await cloud.stored(server.uuid)).vm_state


@pytest.mark.spec("API-114", "API-115", "API-113")
async def test_stop_and_start(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    assert await act(cloud, server, {"os-stop": {"anything": 1}}) == 202
    assert await state(cloud, server) is VmState.STOPPED
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"os-stop": None})
    assert answer.status_code == 409
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'stop' instance {server.uuid} while it is in vm_state stopped")
    assert await act(cloud, server, {"os-start": None}) == 202
    assert cloud.compute.asked == [("start", server.uuid, StartServer())]
    assert (await cloud.stored(server.uuid)).task_state is TaskState.POWERING_ON


@pytest.mark.spec("API-116")
async def test_reboot(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    for kind in ("SOFT", "Hard", "hard", "soft"):
        assert await act(cloud, server, {"reboot": {"type": kind}}) == 202
    assert [call for call, _ in cloud.compute.calls] == ["reboot soft", "reboot hard", "reboot hard", "reboot soft"]
    for bad in (None, {}, {"type": "MEDIUM"}, {"type": None}, {"type": "HARD", "x": 1}):
        assert await act(cloud, server, {"reboot": bad}) == 400


@pytest.mark.spec("API-138", "API-139", "API-573", "API-438", "API-444")
async def test_lock_and_unlock(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}"
    assert await act(cloud, server, {"lock": {"locked_reason": "x"}}, version=72) == 202
    shown = (await cloud.get(path, version="2.73")).json()["server"]
    assert (shown["locked"], shown["locked_reason"]) == (True, None)
    assert await act(cloud, server, {"os-stop": None}) == 409
    assert await act(cloud, server, {"unlock": None}) == 202
    assert await act(cloud, server, {"lock": {"locked_reason": "why"}}, version=73) == 202
    assert (await cloud.get(path, version="2.73")).json()["server"]["locked_reason"] == "why"
    assert await act(cloud, server, {"unlock": {"any": "thing"}}, version=73) == 202
    assert await act(cloud, server, {"lock": None}, version=73) == 202
    for bad in ({"locked_reason": ""}, {"locked_reason": "x" * 256}, {}, {"locked_reason": "x", "y": 1}, "x"):
        assert await act(cloud, server, {"lock": bad}, version=73) == 400


@pytest.mark.spec("API-139")
async def test_lock_of_the_other_kind(cloud: ComputeCloud) -> None:
    server = await cloud.boot(locked_by="admin")
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"unlock": None})
    assert answer.status_code == 403
    assert "os_compute_api:os-lock-server:unlock:unlock_override" in answer.text
    assert await act(cloud, server, {"unlock": None}, as_="admin") == 202


@pytest.mark.spec("API-141")
async def test_reset_state(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    assert await act(cloud, server, {"os-resetState": {"state": "error"}}, as_="manager") == 403
    assert await act(cloud, server, {"os-resetState": {"state": "error"}}, as_="admin") == 202
    assert await state(cloud, server) is VmState.ERROR
    assert await act(cloud, server, {"os-resetState": {"state": "active"}}, as_="admin") == 202
    assert await state(cloud, server) is VmState.ACTIVE
    assert await act(cloud, server, {"os-resetState": {"state": "paused"}}, as_="admin") == 400


@pytest.mark.spec("API-144", "CON-03", "CON-06")
async def test_console_output(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/action"
    cloud.compute.consoles[server.uuid] = "a\x1b[0m\tb\r\nc\x00\nd\n"
    for value, output in (({}, "a[0m\tb\nc\nd\n"), ({"length": 1}, "d\n"), ({"length": "2"}, "c\nd\n"),
                          ({"length": None}, "a[0m\tb\nc\nd\n"), ({"length": -1}, "a[0m\tb\nc\nd\n"),
                          ({"length": 0}, "")):
        answer = await cloud.post(path, {"os-getConsoleOutput": value})
        assert (answer.status_code, answer.json()) == (200, {"output": output})
    for bad in ({"length": -2}, {"length": "x"}, {"lines": 1}, None):
        assert (await cloud.post(path, {"os-getConsoleOutput": bad})).status_code == 400
    homeless = await cloud.boot(host=None)
    assert await act(cloud, homeless, {"os-getConsoleOutput": {}}) == 409


@pytest.mark.spec("API-112")
async def test_delete(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    assert (await cloud.delete(f"/servers/{server.uuid}", as_="reader")).status_code == 403
    assert (await cloud.delete(f"/servers/{server.uuid}")).status_code == 204
    assert (await cloud.delete(f"/servers/{server.uuid}")).status_code == 404
    waiting = (await create(cloud)).json()["server"]["id"]
    assert (await cloud.delete(f"/servers/{waiting}")).status_code == 204
    assert (await cloud.get(f"/servers/{waiting}")).status_code == 404
    locked = await cloud.boot(locked_by="owner")
    assert (await cloud.delete(f"/servers/{locked.uuid}")).status_code == 409


@pytest.mark.spec("API-111", "API-614", "API-519", "API-590")
async def test_update(cloud: ComputeCloud) -> None:
    server = await cloud.boot(locked_by="owner", vm_state=VmState.ERROR)
    body = {"server": {"name": "new", "OS-DCF:diskConfig": "MANUAL", "accessIPv4": "192.0.2.7",
                       "accessIPv6": "2001:db8::7", "description": None, "hostname": "new-host"}}
    cloud.clock.time += 10
    answer = await cloud.put(f"/servers/{server.uuid}", body, version="2.90")
    assert answer.status_code == 200
    stored = await cloud.stored(server.uuid)
    assert (stored.display_name, stored.auto_disk_config, stored.hostname) == ("new", False, "new-host")
    assert (stored.access_ip_v4, stored.access_ip_v6, stored.updated_at) == (
        "192.0.2.7", "2001:db8::7", cloud.clock.now())
    bad_fields: list[tuple[int, dict[str, Any]]] = [
        (18, {"description": "x"}), (89, {"hostname": "x1"}), (103, {"pinned_availability_zone": None}),
        (104, {"color": 1}), (104, {"name": ""}), (104, {"accessIPv4": "x"})]
    for version, field in bad_fields:
        answer = await cloud.put(f"/servers/{server.uuid}", {"server": field}, version=f"2.{version}")
        assert answer.status_code == 400
    assert (await cloud.put(f"/servers/{server.uuid}", {"server": {}}, as_="reader")).status_code == 403


@pytest.mark.spec("API-111", "DEL-46")
async def test_update_while_it_waits_for_a_cell(cloud: ComputeCloud) -> None:
    waiting = (await create(cloud)).json()["server"]["id"]
    answer = await cloud.put(f"/servers/{waiting}", {"server": {"name": "renamed"}})
    assert answer.json()["server"]["name"] == "renamed"
    built = await cloud.build(waiting)
    assert built.display_name == "renamed"
    assert (await cloud.get(f"/servers/{waiting}")).json()["server"]["status"] == "ACTIVE"


@pytest.mark.spec("API-615", "API-604", "API-614")
async def test_pinned_zone(cloud: ComputeCloud) -> None:
    server_id = (await create(cloud)).json()["server"]["id"]
    await cloud.build(server_id, availability_zone="east")

    async def pin(zone: str | None) -> tuple[int, Any]:
        body = {"server": {"pinned_availability_zone": zone}}
        answer = await cloud.put(f"/servers/{server_id}", body, version="2.104")
        shown = (await cloud.get(f"/servers/{server_id}", version="2.104")).json()["server"]
        return answer.status_code, shown["pinned_availability_zone"]

    assert await pin("west") == (409, None)
    assert await pin("east") == (200, "east")
    assert await pin("east") == (200, "east")
    assert await pin("west") == (409, "east")
    assert await pin(None) == (200, None)


@pytest.mark.spec("API-158", "API-159", "API-160", "API-161", "API-162", "API-163")
async def test_metadata(cloud: ComputeCloud) -> None:
    server = await cloud.boot(metadata={"a": "1"})
    path = f"/servers/{server.uuid}/metadata"
    assert (await cloud.get(path)).json() == {"metadata": {"a": "1"}}
    assert (await cloud.post(path, {"metadata": {"b": "2"}})).json() == {"metadata": {"a": "1", "b": "2"}}
    assert (await cloud.put(f"{path}/b", {"meta": {"b": "3"}})).json() == {"meta": {"b": "3"}}
    assert (await cloud.get(f"{path}/b")).json() == {"meta": {"b": "3"}}
    assert (await cloud.put(f"{path}/b", {"meta": {"c": "3"}})).status_code == 400
    assert (await cloud.put(f"{path}/b", {"meta": {"b": "3", "c": "4"}})).status_code == 400
    answer = await cloud.delete(f"{path}/a")
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await cloud.delete(f"{path}/a")).status_code == 404
    assert (await cloud.get(f"{path}/a")).status_code == 404
    assert (await cloud.put(path, {"metadata": {"z": "9"}})).json() == {"metadata": {"z": "9"}}
    assert (await cloud.stored(server.uuid)).metadata == {"z": "9"}
    for method, below in (("POST", ""), ("PUT", ""), ("PUT", "/b"), ("DELETE", "/z")):
        body = {"meta": {"b": "1"}} if below else {"metadata": {}}
        assert (await cloud.request(method, f"{path}{below}", json=body, as_="reader")).status_code == 403


@pytest.mark.spec("API-159", "API-163", "API-062", "API-064", "API-067", "API-068")
async def test_metadata_in_wrong_states(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.ERROR, metadata={"a": "1"})
    path = f"/servers/{server.uuid}/metadata"
    answer = await cloud.post(path, {"metadata": {}})
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'update metadata' instance {server.uuid} while it is in vm_state error")
    assert "'delete metadata'" in (await cloud.delete(f"{path}/a")).text
    locked = await cloud.boot(vm_state=VmState.ERROR, locked_by="owner")
    answer = await cloud.put(f"/servers/{locked.uuid}/metadata", {"metadata": {}})
    assert answer.json()["conflictingRequest"]["message"] == f"Instance {locked.uuid} is locked"
    idle = await cloud.boot(vm_state=VmState.STOPPED, locked_by="owner")
    answer = await cloud.put(f"/servers/{idle.uuid}/metadata", {"metadata": {}}, as_="admin")
    assert answer.status_code == 200


@pytest.mark.spec("API-060", "API-061")
async def test_metadata_quota() -> None:
    async with compute_cloud(limits=Limits(metadata_items=2)) as cloud:
        path = f"/servers/{(await cloud.boot(metadata={'a': '1'})).uuid}/metadata"
        assert (await cloud.post(path, {"metadata": {"b": "1"}})).status_code == 200
        answer = await cloud.put(f"{path}/c", {"meta": {"c": "1"}})
        assert answer.json()["forbidden"]["message"] == "Maximum number of metadata items exceeds 2"
        assert (await cloud.post(path, {"metadata": {"b": "2"}})).status_code == 200


@pytest.mark.spec("API-188", "API-189", "API-190", "API-191", "API-192", "API-193", "API-526")
async def test_tags(cloud: ComputeCloud) -> None:
    server = await cloud.boot(tags=("a",), locked_by="owner")
    path, at = f"/servers/{server.uuid}/tags", {"version": "2.26"}
    assert (await cloud.get(path, **at)).json() == {"tags": ["a"]}
    assert (await cloud.get(f"{path}/a", **at)).status_code == 204
    assert (await cloud.get(f"{path}/b", **at)).status_code == 404
    answer = await cloud.request("PUT", f"{path}/b%20c", **at)
    assert (answer.status_code, answer.content) == (201, b"")
    assert answer.headers["location"].endswith(f"{path}/b%20c")
    assert (await cloud.request("PUT", f"{path}/b%20c", **at)).status_code == 204
    assert (await cloud.put(path, {"tags": ["x", "y", "x"]}, **at)).json() == {"tags": ["x", "y"]}
    assert (await cloud.delete(f"{path}/x", **at)).status_code == 204
    assert (await cloud.delete(f"{path}/x", **at)).status_code == 404
    assert (await cloud.stored(server.uuid)).tags == ("y",)
    assert (await cloud.delete(path, **at)).status_code == 204
    assert (await cloud.get(path, **at)).json() == {"tags": []}


@pytest.mark.spec("API-189", "API-192", "API-042", "API-057", "API-062", "API-067")
async def test_tags_refused(cloud: ComputeCloud) -> None:
    server = await cloud.boot(tags=tuple(f"t{number}" for number in range(50)))
    path, at = f"/servers/{server.uuid}/tags", {"version": "2.26"}
    for bad in ("a,b", "x" * 61):
        assert (await cloud.request("PUT", f"{path}/{bad}", **at)).status_code == 400
    for tags in (["a/b"], [""], ["x" * 61], ["t"] * 51, "t"):
        assert (await cloud.put(path, {"tags": tags}, **at)).status_code == 400
    assert (await cloud.request("PUT", f"{path}/new", **at)).status_code == 400
    assert (await cloud.request("PUT", f"{path}/t1", **at)).status_code == 204
    assert (await cloud.get(path, as_="stranger", **at)).status_code == 403
    assert (await cloud.request("PUT", f"{path}/t1", as_="reader", **at)).status_code == 403
    broken = f"/servers/{(await cloud.boot(vm_state=VmState.ERROR, tags=('t',))).uuid}/tags"
    for method, below, action in (("PUT", "", "update tags"), ("PUT", "/t", "update tag"),
                                  ("DELETE", "", "delete tags"), ("DELETE", "/t", "delete tag")):
        answer = await cloud.request(method, f"{broken}{below}", json={"tags": []}, **at)
        assert answer.status_code == 409
        assert f"Cannot '{action}' instance" in answer.text


def action_of(server: Instance, number: int, **fields: Any) -> Action:
    given = {
        "action": "stop", "instance_uuid": server.uuid, "request_id": f"req-{uuid.UUID(int=number)}",
        "user_id": "u", "project_id": PROJECT, "start_time": 1_700_000_000.0 + number,
        "updated_at": 1_700_000_000.5 + number, **fields,
    }
    return Action(**given)


@pytest.mark.spec("API-168", "API-460", "API-521", "API-558", "API-055")
async def test_history(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    cloud.actions.recorded = [action_of(server, 0, action="create"), action_of(server, 1, message="Error")]
    path = f"/servers/{server.uuid}/os-instance-actions"
    found = (await cloud.get(path)).json()["instanceActions"]
    assert found[0] == {
        "action": "stop", "instance_uuid": server.uuid, "request_id": f"req-{uuid.UUID(int=1)}", "user_id": "u",
        "project_id": PROJECT, "start_time": "2023-11-14T22:13:21.000000", "message": "Error"}
    assert found[1]["action"] == "create"
    newer = (await cloud.get(path, version="2.58")).json()["instanceActions"][0]
    assert newer["updated_at"] == "2023-11-14T22:13:21.500000"
    await cloud.delete(f"/servers/{server.uuid}")
    assert (await cloud.get(path, version="2.20")).status_code == 404
    assert len((await cloud.get(path, version="2.21")).json()["instanceActions"]) == 2
    assert (await cloud.get(path, version="2.21", as_="stranger")).status_code == 404


@pytest.mark.spec("API-168", "API-049", "API-048", "API-052", "API-053", "API-558", "API-566")
async def test_history_in_pages(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    cloud.actions.recorded = [action_of(server, number) for number in range(3)]
    path = f"/servers/{server.uuid}/os-instance-actions"
    first = (await cloud.get(f"{path}?limit=2", version="2.58")).json()
    marker = first["instanceActions"][-1]["request_id"]
    assert first["links"] == [
        {"rel": "next", "href": f"http://cloud.test/compute/v2.1{path}?limit=2&marker={marker}"}]
    rest = (await cloud.get(f"{path}?limit=2&marker={marker}", version="2.58")).json()
    assert len(rest["instanceActions"]) == 1
    assert "links" not in rest
    assert len((await cloud.get(f"{path}?limit=2", version="2.57")).json()["instanceActions"]) == 3
    for query, version, code in (
        ("limit=1&limit=2", 58, 400), ("marker=req-x", 58, 400), ("limit=-1", 58, 400), ("changes-since=x", 58, 400),
        ("changes-before=2023-01-01T00:00:00Z", 65, 400), ("changes-before=2023-01-01T00:00:00Z", 66, 200),
        ("changes-since=2024-01-01T00:00:00Z&changes-before=2023-01-01T00:00:00Z", 66, 400),
    ):
        assert (await cloud.get(f"{path}?{query}", version=f"2.{version}")).status_code == code, query
    since = (await cloud.get(f"{path}?changes-since=2023-11-14T22:13:22Z", version="2.58")).json()
    assert len(since["instanceActions"]) == 1


@pytest.mark.spec("API-169", "API-461", "API-551", "API-562", "API-584")
async def test_events(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    event = ActionEvent(event="compute_stop_instance", start_time=1_700_000_000.0, finish_time=1_700_000_001.5,
                        result="Error", traceback="trace", host=HOST, details="no")
    cloud.actions.recorded = [action_of(server, 7, events=(event,))]
    path = f"/servers/{server.uuid}/os-instance-actions/req-{uuid.UUID(int=7)}"

    async def events(version: int, as_: str) -> Any:
        answer = await cloud.get(path, version=f"2.{version}", as_=as_)
        return answer.json()["instanceAction"].get("events")

    basic = {"event": "compute_stop_instance", "start_time": "2023-11-14T22:13:20.000000",
             "finish_time": "2023-11-14T22:13:21.500000", "result": "Error"}
    traced = {**basic, "traceback": "trace"}
    shown = (await cloud.get(f"/servers/{server.uuid}")).json()["server"]
    hosted = {"hostId": shown["hostId"]}
    assert await events(50, "reader") is None
    assert await events(50, "admin") == [traced]
    assert await events(51, "reader") == [basic]
    assert await events(62, "reader") == [{**basic, **hosted}]
    assert await events(83, "admin") == [{**traced, **hosted, "host": HOST}]
    assert await events(84, "reader") == [{**basic, **hosted}]
    assert await events(84, "admin") == [{**traced, **hosted, "host": HOST, "details": "no"}]
    answer = await cloud.get(f"/servers/{server.uuid}/os-instance-actions/req-none")
    assert answer.status_code == 404
