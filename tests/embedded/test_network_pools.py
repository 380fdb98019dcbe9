"""Subnet pools, and the networks that projects get without having made any, over the in-memory wiring."""

import asyncio
from typing import Any

import pytest
import test_network_api
from test_network_api import SERVER, A, B, Cloud
from test_network_routers import external

cloud = test_network_api.cloud
TOPOLOGY = f"/auto-allocated-topology/{A}"


async def pooled(cloud: Cloud, status: int = 201, **fields: Any) -> Any:
    network = await cloud.a.make("network")
    return await cloud.a.make("subnet", status, network_id=network["id"], ip_version=4, **fields)


async def test_pools_give_ranges_to_subnets(cloud: Cloud) -> None:
    pool = await cloud.a.make("subnetpool", name="p", prefixes=["10.8.0.0/24", "10.8.1.0/24"], min_prefixlen=25,
                              default_prefixlen=26)
    assert (pool["prefixes"], pool["default_prefixlen"], pool["max_prefixlen"]) == (["10.8.0.0/23"], 26, 30)
    assert (pool["shared"], pool["is_default"], pool["ip_version"], pool["project_id"]) == (False, False, 4, A)
    id_ = pool["id"]
    first = await pooled(cloud, subnetpool_id=id_)
    assert (first["cidr"], first["subnetpool_id"], first["gateway_ip"]) == ("10.8.0.0/26", id_, "10.8.0.1")
    assert (await pooled(cloud, subnetpool_id=id_, prefixlen=25))["cidr"] == "10.8.0.128/25"
    assert (await pooled(cloud, subnetpool_id=id_))["cidr"] == "10.8.0.64/26"
    assert (await pooled(cloud, subnetpool_id=id_, cidr="10.8.1.128/25"))["cidr"] == "10.8.1.128/25"
    for refused in ({"cidr": "10.8.1.192/26"}, {"cidr": "10.9.0.0/26"}, {"prefixlen": 24}, {"prefixlen": 31}):
        assert await pooled(cloud, 400, subnetpool_id=id_, **refused) == "InvalidInput"
    assert (await pooled(cloud, subnetpool_id=id_, prefixlen=25))["cidr"] == "10.8.1.0/25"
    assert await pooled(cloud, 409, subnetpool_id=id_) == "SubnetPoolQuotaExceeded"
    assert await cloud.a.delete(f"/subnetpools/{id_}", 409) == "SubnetPoolInUse"
    await cloud.a.delete(f"/subnets/{first['id']}")
    assert (await pooled(cloud, subnetpool_id=id_))["cidr"] == first["cidr"]
    assert await cloud.a.put("subnet", (await pooled(cloud, cidr="10.1.0.0/24"))["id"], 400,
                             subnetpool_id=id_) == "InvalidInput"


async def test_pools_belong_to_projects(cloud: Cloud) -> None:
    mine = await cloud.a.make("subnetpool", name="mine", prefixes=["10.8.0.0/24"])
    await cloud.b.get(f"/subnetpools/{mine['id']}", 404)
    network = await cloud.b.make("network")
    assert await cloud.b.make("subnet", 404, network_id=network["id"], ip_version=4,
                              subnetpool_id=mine["id"]) == "SubnetPoolNotFound"
    for field in ("shared", "is_default"):
        assert await cloud.a.make("subnetpool", 403, prefixes=["10.8.0.0/24"], **{field: True}) == "PolicyNotAuthorized"
    shared = await cloud.admin.make("subnetpool", name="all", prefixes=["10.9.0.0/24"], shared=True)
    found = (await cloud.b.get("/subnetpools"))["subnetpools"]
    assert [pool["id"] for pool in found] == [shared["id"]]
    assert await cloud.b.put("subnetpool", shared["id"], 403, name="x") == "PolicyNotAuthorized"
    changed = await cloud.a.put("subnetpool", mine["id"], name="ours", prefixes=["10.8.0.0/23"], default_prefixlen=28)
    assert (changed["name"], changed["prefixes"], changed["default_prefixlen"]) == ("ours", ["10.8.0.0/23"], 28)
    for bad in ({"prefixes": ["10.8.0.0/24"]}, {"prefixes": []}, {"default_prefixlen": 31}, {"default_quota": 3}):
        assert await cloud.a.put("subnetpool", mine["id"], 400, **bad) == "InvalidInput"
    for bad in ({}, {"prefixes": ["x"]}, {"prefixes": ["10.8.0.0/24"], "min_prefixlen": 28, "max_prefixlen": 27}):
        assert await cloud.a.make("subnetpool", 400, **bad) == "InvalidInput"
    await cloud.a.delete(f"/subnetpools/{mine['id']}")
    await cloud.a.get(f"/subnetpools/{mine['id']}", 404)


async def test_there_is_one_default_pool(cloud: Cloud) -> None:
    assert await pooled(cloud, 400, use_default_subnetpool=True) == "InvalidInput"
    pool = await cloud.admin.make("subnetpool", prefixes=["10.8.0.0/24"], default_prefixlen=26, shared=True,
                                  is_default=True)
    assert await cloud.admin.make("subnetpool", 400, prefixes=["10.9.0.0/24"], is_default=True) == "InvalidInput"
    assert (await pooled(cloud, use_default_subnetpool=True))["subnetpool_id"] == pool["id"]


@pytest.mark.spec("EMN-15")
async def test_a_dry_run_says_what_lacks(cloud: Cloud) -> None:
    async def lacks(word: str) -> None:
        for path in (f"{TOPOLOGY}?fields=dry-run", TOPOLOGY):
            error = (await cloud.a.get(path, 409))["NeutronError"]
            assert error["type"] == "AutoAllocationFailure" and word in error["message"]

    await lacks("external network")
    public, _ = await external(cloud)
    await lacks("external network")
    await cloud.admin.put("network", public, is_default=True)
    await lacks("subnetpool")
    await cloud.admin.make("subnetpool", prefixes=["10.8.0.0/16"], default_prefixlen=26, shared=True, is_default=True)
    passed = await cloud.a.get(f"{TOPOLOGY}?fields=dry-run")
    assert passed == {"auto_allocated_topology": {"id": "dry-run=pass", "tenant_id": A}}
    assert [network["id"] for network in (await cloud.a.get("/networks"))["networks"]] == [public]
    assert await cloud.b.call("GET", TOPOLOGY, 403)


@pytest.mark.spec("EMN-16")
async def test_a_project_gets_one_network_however_often_it_asks(cloud: Cloud) -> None:
    public, _ = await external(cloud)
    await cloud.admin.put("network", public, is_default=True)
    await cloud.admin.make("subnetpool", prefixes=["10.8.0.0/16"], default_prefixlen=26, shared=True, is_default=True)
    answers = await asyncio.gather(*(cloud.a.get(TOPOLOGY) for _ in range(5)))
    (id_,) = {answer["auto_allocated_topology"]["id"] for answer in answers}
    network = (await cloud.a.get(f"/networks/{id_}"))["network"]
    assert (network["admin_state_up"], network["project_id"], len(network["subnets"])) == (True, A, 1)
    (router,) = (await cloud.a.get("/routers"))["routers"]
    assert router["external_gateway_info"]["network_id"] == public
    assert cloud.wiring.routed[0].network_ids == (id_,)
    other = (await cloud.b.get(f"/auto-allocated-topology/{B}"))["auto_allocated_topology"]["id"]
    assert other != id_
    port = await cloud.a.make("port", network_id=id_, device_id=SERVER)
    assert await cloud.a.delete(TOPOLOGY, 409) == "NetworkInUse"
    assert (await cloud.a.get(f"/networks/{id_}"))["network"]["id"] == id_
    assert len((await cloud.a.get("/routers"))["routers"]) == 1
    await cloud.a.delete(f"/ports/{port['id']}")
    for _ in range(2):
        await cloud.a.delete(TOPOLOGY)
    await cloud.a.get(f"/networks/{id_}", 404)
    assert (await cloud.a.get("/routers"))["routers"] == []
    assert (await cloud.a.get(TOPOLOGY))["auto_allocated_topology"]["id"] == id_


@pytest.mark.spec("EMN-08")
async def test_pools_are_of_one_version_and_each_has_a_default(cloud: Cloud) -> None:
    pool = await cloud.admin.make("subnetpool", prefixes=["fd00:8::/56"], is_default=True, shared=True)
    assert (pool["ip_version"], pool["min_prefixlen"], pool["default_prefixlen"]) == (6, 64, 64)
    await cloud.admin.make("subnetpool", prefixes=["10.8.0.0/16"], is_default=True, shared=True, min_prefixlen=24)
    await cloud.admin.make("subnetpool", 400, prefixes=["fd00:9::/56"], is_default=True)
    await cloud.admin.make("subnetpool", 400, prefixes=["fd00:9::/56", "10.9.0.0/16"])
    network = (await cloud.a.make("network"))["id"]
    modes = {"ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}
    first = await cloud.a.make("subnet", network_id=network, ip_version=6, use_default_subnetpool=True, **modes)
    second = await cloud.a.make("subnet", network_id=network, ip_version=6, subnetpool_id=pool["id"])
    v4 = await cloud.a.make("subnet", network_id=network, ip_version=4, use_default_subnetpool=True)
    assert [item["cidr"] for item in (first, second, v4)] == ["fd00:8::/64", "fd00:8:0:1::/64", "10.8.0.0/24"]
    await cloud.a.make("subnet", 400, network_id=network, ip_version=4, subnetpool_id=pool["id"])
    grown = await cloud.admin.put("subnetpool", pool["id"], prefixes=["fd00:8::/52"])
    assert grown["prefixes"] == ["fd00:8::/52"]
    await cloud.admin.put("subnetpool", pool["id"], 400, prefixes=["10.0.0.0/8"])
