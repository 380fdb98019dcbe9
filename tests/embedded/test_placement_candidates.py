"""Allocation candidates over HTTP."""

from __future__ import annotations

import pytest
from placement_cloud import INVENTORY, Cloud, placement_cloud

__all__ = ["placement_cloud"]


@pytest.mark.spec("API-739", "EMP-07")
async def test_candidates_in_the_form_of_the_version(cloud: Cloud) -> None:
    one, two = await cloud.host("h1"), await cloud.host("h2")
    await cloud.claim(one, MEMORY_MB=8000)
    path = "/allocation_candidates?resources=VCPU:1,MEMORY_MB:200"
    newest = await cloud.get(path)
    assert newest["allocation_requests"] == [
        {"allocations": {two: {"resources": {"VCPU": 1, "MEMORY_MB": 200}}}, "mappings": {"": [two]}}
    ]
    assert newest["provider_summaries"] == {two: {
        "resources": {"VCPU": {"capacity": 32, "used": 0}, "MEMORY_MB": {"capacity": 8192, "used": 0},
                      "DISK_GB": {"capacity": 100, "used": 0}},
        "traits": sorted(INVENTORY.traits), "parent_provider_uuid": None, "root_provider_uuid": two,
    }}
    oldest = await cloud.get(path, version="1.10")
    assert oldest["allocation_requests"] == [{"allocations": [
        {"resource_provider": {"uuid": two}, "resources": {"VCPU": 1, "MEMORY_MB": 200}}
    ]}]
    assert set(oldest["provider_summaries"][two]) == {"resources"}
    assert set(oldest["provider_summaries"][two]["resources"]) == {"VCPU", "MEMORY_MB"}
    both = "/allocation_candidates?resources=VCPU:1"
    assert len((await cloud.get(both))["allocation_requests"]) == 2
    assert len((await cloud.get(f"{both}&limit=1"))["allocation_requests"]) == 1
    assert len((await cloud.get(f"{both}&required=HW_CPU_X86_AVX"))["allocation_requests"]) == 2
    assert (await cloud.get(f"{both}&required=!HW_CPU_X86_AVX"))["allocation_requests"] == []
    assert len((await cloud.get(f"{both}&in_tree={one}"))["allocation_requests"]) == 1
    assert len((await cloud.get(f"{both}&root_required=HW_CPU_X86_AVX"))["allocation_requests"]) == 2


@pytest.mark.spec("API-739", "EMP-05", "EMP-08")
async def test_granular_groups_and_child_providers(cloud: Cloud) -> None:
    host = await cloud.host()
    for name in ("eth0", "eth1"):
        await cloud.provider(name, parent=host, NET_BW_IGR_KILOBIT_PER_SEC=1000)
    await cloud.host()  # a report of the host leaves its children alone
    names = {p["uuid"]: p["name"] for p in (await cloud.get("/resource_providers"))["resource_providers"]}
    assert set(names.values()) == {"h1", "eth0", "eth1"}
    base = "/allocation_candidates?resources=VCPU:1&resources1=NET_BW_IGR_KILOBIT_PER_SEC:600"
    one = (await cloud.get(base))["allocation_requests"]
    assert {names[request["mappings"]["1"][0]] for request in one} == {"eth0", "eth1"}
    assert all(request["mappings"][""] == [host] for request in one)
    two = f"{base}&resources2=NET_BW_IGR_KILOBIT_PER_SEC:600"
    await cloud.call("GET", two, status=400)
    for policy in ("none", "isolate"):
        found = (await cloud.get(f"{two}&group_policy={policy}"))["allocation_requests"]
        assert len(found) == 2
        assert all({names[uuid] for uuid in request["allocations"]} == {"h1", "eth0", "eth1"} for request in found)
    small = two.replace("600", "400")
    assert len((await cloud.get(f"{small}&group_policy=none"))["allocation_requests"]) == 4
    assert len((await cloud.get(f"{small}&group_policy=isolate"))["allocation_requests"]) == 2
    text = ("/allocation_candidates?resources_CPU=VCPU:1&resources_NET=NET_BW_IGR_KILOBIT_PER_SEC:1"
            "&group_policy=none&same_subtree=_CPU,_NET")
    assert len((await cloud.get(text))["allocation_requests"]) == 2
    siblings = ("/allocation_candidates?resources_A=NET_BW_IGR_KILOBIT_PER_SEC:1"
                "&resources_B=NET_BW_IGR_KILOBIT_PER_SEC:1&group_policy=isolate&same_subtree=_A,_B")
    assert (await cloud.get(siblings))["allocation_requests"] == []
    await cloud.call("GET", text, version="1.32", status=400)
    assert (await cloud.get("/allocation_candidates?resources=NET_BW_IGR_KILOBIT_PER_SEC:1", version="1.28")
            )["allocation_requests"] == []


@pytest.mark.spec("EMP-03")
async def test_candidates_refuse_bad_questions(cloud: Cloud) -> None:
    for query, code in (
        ("", "missing_value"), ("resources=VCPU:1&resources=VCPU:2", "duplicate_key"),
        ("resources=VCPU:x", "bad_value"),
        ("resources=VCPU:1&limit=0", "bad_value"), ("resources=VCPU:1&group_policy=some", "bad_value"),
        ("required=HW_CPU_X86_AVX", "missing_value"), ("resources=VCPU:1&colour=red", "bad_value"),
        ("resources=VCPU:1&same_subtree=_X", "bad_value"),
    ):
        refused = await cloud.call("GET", f"/allocation_candidates?{query}", status=400)
        assert refused.json()["errors"][0]["code"] == f"placement.query.{code}", query
