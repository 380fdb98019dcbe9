"""Networks and floating IPs in the Compute API, as long as it had them."""

from typing import Any

import pytest
from compute_cloud import NETWORK, ComputeCloud, vif

from kilonova.services.network import NetworkSummary

PUBLIC = "77777777-7777-4777-8777-777777777777"


def public(cloud: ComputeCloud) -> None:
    cloud.networks.all.append(NetworkSummary(id=PUBLIC, name="public", project_id="x", external=True))


@pytest.mark.spec("API-276", "API-277", "API-278", "API-279", "API-536")
async def test_networks(cloud: ComputeCloud) -> None:
    for path in ("/os-networks", "/os-tenant-networks"):
        (found,) = (await cloud.get(path, version="2.35", as_="reader")).json()["networks"]
        assert (found["id"], found["label"]) == (NETWORK, "private")
        assert (await cloud.get(f"{path}/{NETWORK}")).json() == {"network": found}
        assert (await cloud.get(f"{path}/{PUBLIC}")).status_code == 404
        assert (await cloud.get(path, version="2.36")).status_code == 404
        assert (await cloud.get(f"{path}/{NETWORK}", version="2.36")).status_code == 404
    assert found["cidr"] == "None"
    mine = (await cloud.get("/os-networks")).json()["networks"][0]
    all_ = (await cloud.get("/os-networks", as_="admin")).json()["networks"][0]
    assert mine["gateway_v6"] is None
    assert len(all_) - len(mine) == 21


@pytest.mark.spec("API-280", "API-281", "API-282", "API-283", "API-284", "API-536")
async def test_floating_ips(cloud: ComputeCloud) -> None:
    path = "/os-floating-ips"
    assert (await cloud.post(path, {})).status_code == 404
    public(cloud)
    assert (await cloud.get("/os-floating-ip-pools")).json() == {"floating_ip_pools": [{"name": "public"}]}
    made = []
    for body in ({"pool": "public"}, {"pool": PUBLIC}, {"pool": None}, {}, None):
        answer = await cloud.post(path, body, version="2.35")
        assert answer.status_code == 200
        made.append(answer.json()["floating_ip"])
    first = {"id": made[0]["id"], "ip": "203.0.113.1", "pool": "public", "fixed_ip": None, "instance_id": None}
    assert made[0] == first
    assert (await cloud.get(path, as_="reader")).json() == {"floating_ips": made}
    assert (await cloud.get(f"{path}/{first['id']}")).json() == {"floating_ip": first}
    answer = await cloud.delete(f"{path}/{first['id']}")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await cloud.get(f"{path}/{first['id']}")).status_code == 404
    assert (await cloud.delete(f"{path}/{first['id']}")).status_code == 404
    assert (await cloud.get(f"{path}/x")).status_code == 400
    assert (await cloud.post(path, {"pool": "nothing"})).status_code == 404
    assert (await cloud.post(path, {}, as_="reader")).status_code == 403
    cloud.networks.no_more_addresses = True
    assert (await cloud.post(path, {})).status_code == 404
    for gone in (path, "/os-floating-ip-pools"):
        assert (await cloud.get(gone, version="2.36")).status_code == 404


@pytest.mark.spec("API-153", "API-154", "API-544")
async def test_floating_ips_of_a_server(cloud: ComputeCloud) -> None:
    public(cloud)
    interface = vif()
    server = await cloud.boot(network_info=(interface,), locked_by="owner")
    cloud.networks.interfaces[server.uuid] = (interface,)
    item = (await cloud.post("/os-floating-ips", {})).json()["floating_ip"]

    async def act(body: Any, *, version: int = 43, server_id: str = server.uuid, as_: str = "member") -> int:
        answer = await cloud.post(f"/servers/{server_id}/action", body, version=f"2.{version}", as_=as_)
        return answer.status_code

    add = {"addFloatingIp": {"address": item["ip"]}}
    remove = {"removeFloatingIp": {"address": item["ip"]}}
    assert await act(remove) == 409
    assert await act({"addFloatingIp": {"address": item["ip"], "fixed_address": "10.0.0.77"}}) == 400
    assert await act(add, as_="reader") == 403
    assert await act(add) == 202
    shown = (await cloud.get(f"/os-floating-ips/{item['id']}")).json()["floating_ip"]
    assert (shown["fixed_ip"], shown["instance_id"]) == ("10.0.0.5", server.uuid)
    assert await act(add) == 202
    second = (await cloud.post("/os-floating-ips", {})).json()["floating_ip"]
    assert await act({"addFloatingIp": {"address": second["ip"]}}) == 400
    assert await act(remove) == 202
    assert await act({"addFloatingIp": {"address": item["ip"], "fixed_address": "10.0.0.5"}}) == 202
    elsewhere = vif()
    other = await cloud.boot(network_info=(elsewhere,))
    cloud.networks.interfaces[other.uuid] = (elsewhere,)
    assert await act(add, server_id=other.uuid) == 202  # it moves
    assert await act(remove) == 409
    assert await act(remove, server_id=other.uuid) == 202
    for bad, code in (
        ({"addFloatingIp": {"address": "203.0.113.99"}}, 404), ({"removeFloatingIp": {"address": "203.0.113.99"}}, 404),
        ({"addFloatingIp": {"address": "x"}}, 400), ({"removeFloatingIp": {}}, 400),
    ):
        assert await act(bad) == code
    assert await act(add, version=44) == 404
    assert await act(remove, version=44) == 404
    unready = await cloud.boot()
    assert await act(add, server_id=unready.uuid) == 400
