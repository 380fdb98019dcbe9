"""The placement API: versions, errors, and every object over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from placement_cloud import INVENTORY, SMALL, Cloud, placement_cloud

from kilonova.db import placement

__all__ = ["placement_cloud"]


# --- Rules for every call --------------------------------------------------------------------------


@pytest.mark.spec("API-701", "EMP-01", "EMI-15")
async def test_the_version_document_needs_no_token_and_no_version(cloud: Cloud) -> None:
    for path in ("/placement", "/placement/"):
        response = await cloud.client.get(path, headers={"OpenStack-API-Version": "placement 9.9"},
                                          follow_redirects=True)
        assert response.status_code == 200
        (version,) = response.json()["versions"]
        assert {key: version[key] for key in ("id", "min_version", "max_version", "status")} == {
            "id": "v1.0", "min_version": "1.0", "max_version": "1.39", "status": "CURRENT",
        }
        assert version["links"] == [{"rel": "self", "href": ""}]


@pytest.mark.spec("API-702", "EMI-27", "EMI-28")
async def test_versions_are_negotiated(cloud: Cloud) -> None:
    for asked, status, answered in (
        (None, 200, "placement 1.0"), ("1.17", 200, "placement 1.17"), ("latest", 200, "placement 1.39"),
        ("1.40", 406, None), ("2.0", 406, None), ("one", 400, None), ("1", 400, None),
    ):
        response = await cloud.call("GET", "/resource_providers", version=asked, status=status)
        assert response.headers.get("OpenStack-API-Version") == answered
        assert response.headers["Vary"] == "OpenStack-API-Version"
    error = (await cloud.call("GET", "/resource_providers", version="1.40")).json()["errors"][0]
    assert (error["min_version"], error["max_version"]) == ("1.0", "1.39")


@pytest.mark.spec("API-703")
async def test_what_a_version_does_not_have_is_not_found(cloud: Cloud) -> None:
    host = await cloud.host()
    for method, path, since in (
        ("GET", f"/resource_providers/{host}/aggregates", 1), ("GET", "/resource_classes", 2),
        ("GET", f"/resource_providers/{host}/traits", 6), ("GET", "/traits", 6),
        ("GET", "/usages?project_id=x", 9), ("GET", "/allocation_candidates?resources=VCPU:1", 10),
    ):
        await cloud.call(method, path, version=f"1.{since - 1}", status=404)
        await cloud.call(method, path, version=f"1.{since}", status=200)
    await cloud.call("DELETE", f"/resource_providers/{host}/inventories", version="1.4", status=405)
    await cloud.call("DELETE", f"/resource_providers/{host}/inventories", version="1.5", status=204)
    refused = await cloud.call("DELETE", "/resource_providers", status=405)
    assert set(refused.headers["Allow"].split(", ")) == {"GET", "POST"}
    await cloud.call("GET", "/nothing/here", status=404)


@pytest.mark.spec("API-704", "EMI-03", "EMI-06")
async def test_errors_have_their_form(cloud: Cloud) -> None:
    missing = f"/resource_providers/{uuid.uuid4()}"
    for version, code in (("1.22", None), ("1.23", "placement.resource_provider.not_found")):
        response = await cloud.call("GET", missing, version=version, status=404)
        (error,) = response.json()["errors"]
        assert (error["status"], error["title"], error.get("code")) == (404, "Not Found", code)
        assert error["request_id"] == response.headers["x-openstack-request-id"]


@pytest.mark.spec("EMI-04", "API-706", "EMP-01")
async def test_who_may_call(cloud: Cloud) -> None:
    response = await cloud.call("GET", "/resource_providers", token="nobody", status=401)
    assert response.headers["WWW-Authenticate"] == 'Keystone uri="http://cloud.test/identity"'
    assert response.json()["errors"][0]["request_id"] == response.headers["x-openstack-request-id"]
    await cloud.call("GET", "/resource_providers", token="alice", status=403)
    await cloud.call("GET", "/resource_providers", token="service", status=200)
    await cloud.call("GET", "/usages?project_id=p-alice", token="alice", status=200)
    await cloud.call("GET", "/usages?project_id=p-admin", token="alice", status=403)
    await cloud.call("POST", "/reshaper", {"inventories": {}, "allocations": {}}, status=403)
    await cloud.call("POST", "/reshaper", {"inventories": {}, "allocations": {}}, token="service", status=204)


@pytest.mark.spec("API-707", "API-708", "EMI-01", "EMI-02")
async def test_media_types_and_cache_headers(cloud: Cloud) -> None:
    await cloud.call("POST", "/resource_providers", content=b"name=x", status=415,
                     headers={"Content-Type": "application/x-www-form-urlencoded"})
    await cloud.call("GET", "/resource_providers", headers={"Accept": "text/html"}, status=406)
    old = await cloud.call("GET", "/resource_providers", version="1.14")
    new = await cloud.call("GET", "/resource_providers", version="1.15")
    trait = await cloud.call("PUT", "/traits/CUSTOM_X", version="1.15", status=201)
    assert "Last-Modified" not in old.headers
    for response in (new, trait):
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["Last-Modified"].endswith("GMT")
    assert trait.content == b""
    assert new.headers["Content-Type"] == "application/json"


# --- Providers --------------------------------------------------------------------------------------


@pytest.mark.spec("EMP-04", "API-716", "API-719", "API-723", "API-726", "API-730")
async def test_a_compute_host_is_a_root_provider(cloud: Cloud) -> None:
    host = await cloud.host("node-1")
    server = await cloud.claim(host)
    shown = await cloud.get(f"/resource_providers/{host}")
    assert (shown["name"], shown["parent_provider_uuid"], shown["root_provider_uuid"]) == ("node-1", None, host)
    assert [link["rel"] for link in shown["links"]] == ["self", "inventories", "usages", "aggregates", "traits",
                                                        "allocations"]
    assert shown["links"][0]["href"] == f"/placement/resource_providers/{host}"
    old = await cloud.get(f"/resource_providers/{host}", version=None)
    assert set(old) == {"uuid", "name", "generation", "links"}
    offers = (await cloud.get(f"/resource_providers/{host}/inventories"))["inventories"]
    assert offers["VCPU"] == {"total": 8, "reserved": 0, "min_unit": 1, "max_unit": 8, "step_size": 1,
                              "allocation_ratio": 4.0}
    assert offers["MEMORY_MB"]["reserved"] == 512
    assert (await cloud.get(f"/resource_providers/{host}/usages"))["usages"] == SMALL
    assert (await cloud.get(f"/resource_providers/{host}/traits"))["traits"] == sorted(INVENTORY.traits)
    one = await cloud.get(f"/resource_providers/{host}/inventories/VCPU")
    assert one == {**offers["VCPU"], "resource_provider_generation": shown["generation"]}
    held = (await cloud.get(f"/allocations/{server}"))
    assert held["allocations"][host]["resources"] == SMALL
    assert (held["project_id"], held["user_id"], held["consumer_type"]) == ("p-alice", "alice", "INSTANCE")
    await cloud.call("GET", f"/resource_providers/{host}/inventories/PCPU", status=404)
    await cloud.call("GET", f"/resource_providers/{server}/inventories/VCPU", status=404)
    await cloud.call("GET", f"/resource_providers/{server}/allocations", status=404)
    old = await cloud.get(f"/resource_providers/{host}/allocations", version="1.27")
    assert old["allocations"] == {server: {"resources": SMALL}}
    on_host = (await cloud.get(f"/resource_providers/{host}/allocations"))["allocations"]
    assert on_host == {server: {"resources": SMALL, "consumer_generation": held["consumer_generation"]}}


@pytest.mark.spec("API-715", "API-717", "API-718")
async def test_providers_are_made_renamed_and_removed(cloud: Cloud) -> None:
    made = await cloud.call("POST", "/resource_providers", {"name": "a"}, version="1.19", status=201)
    assert made.content == b""
    one = made.headers["Location"].rpartition("/")[2]
    two = await cloud.provider("b", parent=one)
    taken = await cloud.call("POST", "/resource_providers", {"name": "a"}, status=409)
    assert taken.json()["errors"][0]["code"] == "placement.duplicate_name"
    await cloud.call("POST", "/resource_providers", {"name": "c", "uuid": one}, status=409)
    await cloud.call("POST", "/resource_providers", {"name": "c", "colour": "red"}, status=400)
    orphan = {"name": "c", "parent_provider_uuid": str(uuid.uuid4())}
    await cloud.call("POST", "/resource_providers", orphan, status=400)
    renamed = await cloud.call("PUT", f"/resource_providers/{two}", {"name": "B"}, status=200)
    assert (renamed.json()["name"], renamed.json()["parent_provider_uuid"]) == ("B", one)
    await cloud.call("PUT", f"/resource_providers/{two}", {"name": "B", "parent_provider_uuid": None},
                     version="1.36", status=400)
    await cloud.call("PUT", f"/resource_providers/{one}", {"name": "a", "parent_provider_uuid": two}, status=400)
    parent = await cloud.call("DELETE", f"/resource_providers/{one}", status=409)
    assert parent.json()["errors"][0]["code"] == "placement.resource_provider.cannot_delete_parent"
    alone = {"name": "B", "parent_provider_uuid": None}
    moved = await cloud.call("PUT", f"/resource_providers/{two}", alone, status=200)
    assert moved.json()["root_provider_uuid"] == two
    await cloud.call("DELETE", f"/resource_providers/{one}", status=204)
    await cloud.call("DELETE", f"/resource_providers/{one}", status=404)
    host = await cloud.host()
    await cloud.claim(host)
    used = await cloud.call("DELETE", f"/resource_providers/{host}", status=409)
    assert used.json()["errors"][0]["code"] == "placement.resource_provider.inuse"


@pytest.mark.spec("API-714")
async def test_providers_are_found_by_what_they_offer(cloud: Cloud) -> None:
    one, two = await cloud.host("h1"), await cloud.host("h2")
    await cloud.call("PUT", "/resource_classes/CUSTOM_BW", status=201)
    child = await cloud.provider("nic", parent=two, CUSTOM_BW=5)
    aggregate, other = str(uuid.uuid4()), str(uuid.uuid4())
    for host, wanted in ((one, [aggregate]), (two, [aggregate, other])):
        await cloud.db.write(lambda c, h=host, w=wanted: placement.set_aggregates(c, h, w))
    await cloud.claim(one, MEMORY_MB=8000)
    await cloud.call("PUT", "/traits/CUSTOM_T", status=201)
    await cloud.db.write(lambda c: placement.set_traits(c, two, ["CUSTOM_T", "HW_CPU_X86_AVX"]))
    for query, expected in (
        ("", {one, two, child}), ("name=h1", {one}), ("name=h", set()), (f"uuid={two}", {two}),
        (f"in_tree={child}", {two, child}), ("resources=MEMORY_MB:500", {two}), ("resources=CUSTOM_BW:5", {child}),
        (f"member_of={aggregate}", {one, two}), (f"member_of={other}", {two}),
        (f"member_of=in:{aggregate},{other}", {one, two}),
        (f"member_of={aggregate}&member_of=!{other}", {one}), ("required=CUSTOM_T", {two}),
        ("required=HW_CPU_X86_AVX,!CUSTOM_T", {one}), ("required=in:CUSTOM_T,COMPUTE_VOLUME_EXTEND", {one, two}),
    ):
        found = (await cloud.get(f"/resource_providers?{query}"))["resource_providers"]
        assert {provider["uuid"] for provider in found} == expected, query
    for query, version in (
        ("colour=red", "1.39"), ("uuid=x", "1.39"), ("resources=VCPU", "1.39"), ("resources=VCPU:0", "1.39"),
        ("resources=NOPE:1", "1.39"), ("required=NOPE", "1.39"), ("member_of=x", "1.39"), ("name=a&name=b", "1.39"),
        ("resources=VCPU:1", "1.3"), ("required=HW_CPU_X86_AVX", "1.17"), ("required=!HW_CPU_X86_AVX", "1.21"),
        (f"member_of=!{other}", "1.31"), (f"member_of={other}&member_of={aggregate}", "1.23"),
    ):
        await cloud.call("GET", f"/resource_providers?{query}", version=version, status=400)


# --- Inventories, traits, aggregates ----------------------------------------------------------------


@pytest.mark.spec("API-720", "API-721", "API-722", "API-724", "API-725", "API-742", "API-743", "API-748", "API-749",
                  "EMP-02")
async def test_inventories_are_written_with_their_generation(cloud: Cloud) -> None:
    host = await cloud.provider("p")
    path = f"/resource_providers/{host}/inventories"
    made = await cloud.call("POST", path, {"resource_class": "VCPU", "total": 4}, status=201)
    assert made.json() == {"total": 4, "reserved": 0, "min_unit": 1, "max_unit": 2147483647, "step_size": 1,
                           "allocation_ratio": 1.0, "resource_provider_generation": 1}
    again = await cloud.call("POST", path, {"resource_class": "VCPU", "total": 4}, status=409)
    assert again.json()["errors"][0]["code"] == "placement.concurrent_update"
    await cloud.call("PUT", f"{path}/VCPU", {"total": 8, "resource_provider_generation": 0}, status=409)
    await cloud.call("PUT", f"{path}/VCPU", {"total": 8, "resource_provider_generation": 1}, status=200)
    await cloud.call("PUT", f"{path}/DISK_GB", {"total": 8, "resource_provider_generation": 2}, status=400)
    await cloud.call("PUT", f"{path}/NOPE", {"total": 8, "resource_provider_generation": 2}, status=400)
    for bad in ({"total": 0}, {"total": 8, "reserved": 9}, {"total": 8, "colour": 1}, {}, {"total": "8"}):
        await cloud.call("PUT", f"{path}/VCPU", {"resource_provider_generation": 2, **bad}, status=400)
    full = {"total": 8, "reserved": 8, "resource_provider_generation": 2}
    await cloud.call("PUT", f"{path}/VCPU", full, version="1.25", status=400)
    await cloud.call("PUT", f"{path}/VCPU", full, version="1.26", status=200)
    both = {"VCPU": {"total": 4}, "DISK_GB": {"total": 9}}
    await cloud.call("PUT", path, {"inventories": both, "resource_provider_generation": 2}, status=409)
    put = await cloud.call("PUT", path, {"inventories": both, "resource_provider_generation": 3}, status=200)
    assert set(put.json()["inventories"]) == {"VCPU", "DISK_GB"}
    await cloud.claim(host, VCPU=2)
    for method, where in (("DELETE", path), ("DELETE", f"{path}/VCPU")):
        in_use = await cloud.call(method, where, status=409)
        assert in_use.json()["errors"][0]["code"] == "placement.inventory.inuse"
    generation = (await cloud.get(path))["resource_provider_generation"]
    assert generation == 5
    await cloud.call("PUT", f"{path}/VCPU", {"total": 1, "resource_provider_generation": generation}, status=200)
    await cloud.call("DELETE", f"{path}/DISK_GB", status=204)
    await cloud.call("DELETE", f"{path}/DISK_GB", status=404)
    assert set((await cloud.get(path))["inventories"]) == {"VCPU"}


@pytest.mark.spec("API-727", "API-728", "API-729")
async def test_traits_and_aggregates_of_a_provider(cloud: Cloud) -> None:
    path, aggregate = f"/resource_providers/{await cloud.provider('p')}", str(uuid.uuid4())
    body = {"traits": ["HW_CPU_X86_AVX"], "resource_provider_generation": 0}
    put = await cloud.call("PUT", f"{path}/traits", body, status=200)
    assert put.json() == {"traits": ["HW_CPU_X86_AVX"], "resource_provider_generation": 1}
    await cloud.call("PUT", f"{path}/traits", body, status=409)
    await cloud.call("PUT", f"{path}/traits", {"traits": ["NOPE"], "resource_provider_generation": 1}, status=400)
    await cloud.call("DELETE", f"{path}/traits", status=204)
    assert (await cloud.get(f"{path}/traits"))["traits"] == []
    old = await cloud.call("PUT", f"{path}/aggregates", [aggregate], version="1.18", status=200)
    assert old.json() == {"aggregates": [aggregate]}
    new = {"aggregates": [], "resource_provider_generation": 2}
    await cloud.call("PUT", f"{path}/aggregates", new, status=409)
    put = await cloud.call("PUT", f"{path}/aggregates", {**new, "resource_provider_generation": 3}, status=200)
    assert put.json() == {"aggregates": [], "resource_provider_generation": 4}


@pytest.mark.spec("API-731", "API-732", "API-733", "API-734")
async def test_traits(cloud: Cloud) -> None:
    await cloud.host()
    await cloud.call("PUT", "/traits/CUSTOM_A", status=201)
    await cloud.call("PUT", "/traits/CUSTOM_A", status=204)
    await cloud.call("PUT", "/traits/PLAIN", status=400)
    await cloud.call("GET", "/traits/CUSTOM_A", status=204)
    await cloud.call("GET", "/traits/CUSTOM_B", status=404)
    assert (await cloud.get("/traits?name=startswith:CUSTOM_"))["traits"] == ["CUSTOM_A"]
    assert (await cloud.get("/traits?name=in:CUSTOM_A,HW_CPU_X86_AVX,NO"))["traits"] == ["CUSTOM_A", "HW_CPU_X86_AVX"]
    assert (await cloud.get("/traits?associated=true"))["traits"] == sorted(INVENTORY.traits)
    await cloud.call("GET", "/traits?associated=maybe", status=400)
    await cloud.call("DELETE", "/traits/HW_CPU_X86_AVX", status=400)
    await cloud.call("DELETE", "/traits/CUSTOM_A", status=204)
    await cloud.call("DELETE", "/traits/CUSTOM_A", status=404)
    await cloud.call("PUT", "/traits/CUSTOM_USED", status=201)
    host = await cloud.provider("p")
    await cloud.call("PUT", f"/resource_providers/{host}/traits",
                     {"traits": ["CUSTOM_USED"], "resource_provider_generation": 0}, status=200)
    await cloud.call("DELETE", "/traits/CUSTOM_USED", status=409)


@pytest.mark.spec("API-709", "API-710", "API-711", "API-712", "API-713")
async def test_resource_classes(cloud: Cloud) -> None:
    made = await cloud.call("POST", "/resource_classes", {"name": "CUSTOM_A"}, status=201)
    assert made.headers["Location"] == "http://cloud.test/placement/resource_classes/CUSTOM_A"
    await cloud.call("POST", "/resource_classes", {"name": "CUSTOM_A"}, status=409)
    await cloud.call("POST", "/resource_classes", {"name": "GOLD"}, status=400)
    names = [entry["name"] for entry in (await cloud.get("/resource_classes"))["resource_classes"]]
    assert {"VCPU", "MEMORY_MB", "DISK_GB", "CUSTOM_A"} <= set(names)
    await cloud.call("PUT", "/resource_classes/CUSTOM_A", {"name": "CUSTOM_B"}, version="1.6", status=200)
    await cloud.call("GET", "/resource_classes/CUSTOM_A", status=404)
    await cloud.call("PUT", "/resource_classes/CUSTOM_C", status=201)
    await cloud.call("PUT", "/resource_classes/CUSTOM_C", status=204)
    await cloud.provider("p", CUSTOM_C=3)
    await cloud.call("DELETE", "/resource_classes/CUSTOM_C", status=409)
    await cloud.call("DELETE", "/resource_classes/VCPU", status=400)
    await cloud.call("DELETE", "/resource_classes/CUSTOM_B", status=204)
    await cloud.call("DELETE", "/resource_classes/CUSTOM_B", status=404)


# --- Allocations ------------------------------------------------------------------------------------


def consumer_body(provider: str, generation: int | None, **resources: int) -> dict[str, Any]:
    return {"allocations": {provider: {"resources": resources}} if resources else {}, "project_id": "p-alice",
            "user_id": "alice", "consumer_generation": generation, "consumer_type": "INSTANCE"}


@pytest.mark.spec("API-735", "API-736", "API-737", "API-745", "API-746", "API-747", "API-751", "EMP-02", "EMP-06")
async def test_allocations_are_replaced_whole(cloud: Cloud) -> None:
    host, server = await cloud.host(), str(uuid.uuid4())
    path = f"/allocations/{server}"
    assert await cloud.get(path) == {"allocations": {}}
    await cloud.call("PUT", path, consumer_body(host, 1, VCPU=1), status=409)
    await cloud.call("PUT", path, consumer_body(host, None, VCPU=1), status=204)
    conflict = await cloud.call("PUT", path, consumer_body(host, None, VCPU=2), status=409)
    assert conflict.json()["errors"][0]["code"] == "placement.concurrent_update"
    generation = (await cloud.get(path))["consumer_generation"]
    await cloud.call("PUT", path, consumer_body(host, generation, VCPU=2, DISK_GB=5), status=204)
    used = (await cloud.get(f"/resource_providers/{host}/usages"))["usages"]
    assert used == {"VCPU": 2, "MEMORY_MB": 0, "DISK_GB": 5}
    generation = (await cloud.get(path))["consumer_generation"]
    for resources, status in (({"VCPU": 9}, 409), ({"MEMORY_MB": 9000}, 409), ({"NOPE": 1}, 400), ({"VCPU": 0}, 400),
                              ({"PCPU": 1}, 409)):
        await cloud.call("PUT", path, consumer_body(host, generation, **resources), status=status)
    await cloud.call("PUT", path, consumer_body(str(uuid.uuid4()), generation, VCPU=1), status=400)
    assert (await cloud.get(path))["allocations"][host]["resources"] == {"VCPU": 2, "DISK_GB": 5}
    await cloud.call("PUT", path, consumer_body(host, generation), status=204)
    assert await cloud.get(path) == {"allocations": {}}
    await cloud.call("PUT", path, consumer_body(host, None, VCPU=1), status=204)
    await cloud.call("DELETE", path, status=204)
    await cloud.call("DELETE", path, status=404)
    assert (await cloud.get(f"/resource_providers/{host}/usages"))["usages"]["VCPU"] == 0


@pytest.mark.spec("API-736")
async def test_older_forms_of_allocations(cloud: Cloud) -> None:
    host, server = await cloud.host(), str(uuid.uuid4())
    listed = {"allocations": [{"resource_provider": {"uuid": host}, "resources": {"VCPU": 1}}]}
    owned = {"project_id": "p-alice", "user_id": "alice"}
    await cloud.call("PUT", f"/allocations/{server}", listed, version="1.7", status=204)
    await cloud.call("PUT", f"/allocations/{server}", listed, version="1.8", status=400)
    await cloud.call("PUT", f"/allocations/{server}", {**listed, **owned}, version="1.8", status=204)
    keyed = {"allocations": {host: {"resources": {"VCPU": 1}}}, **owned}
    await cloud.call("PUT", f"/allocations/{server}", keyed, version="1.12", status=204)
    await cloud.call("PUT", f"/allocations/{server}", keyed, version="1.28", status=400)
    await cloud.call("PUT", f"/allocations/{server}", {**owned, "allocations": {}}, version="1.12", status=400)
    shown = await cloud.get(f"/allocations/{server}", version="1.11")
    assert set(shown) == {"allocations"}


@pytest.mark.spec("API-750")
async def test_capacity_is_rounded_down(cloud: Cloud) -> None:
    host = await cloud.provider("p")
    offer = {"total": 5, "reserved": 1, "allocation_ratio": 1.3}
    body = {"inventories": {"VCPU": offer}, "resource_provider_generation": 0}
    await cloud.call("PUT", f"/resource_providers/{host}/inventories", body, status=200)
    path = f"/allocations/{uuid.uuid4()}"
    await cloud.call("PUT", path, consumer_body(host, None, VCPU=6), status=409)
    await cloud.call("PUT", path, consumer_body(host, None, VCPU=5), status=204)


@pytest.mark.spec("API-705")
async def test_error_codes(cloud: Cloud) -> None:
    """What the other tests do not meet on their way, and one of each that they do."""
    host = await cloud.host()
    server = str(uuid.uuid4())
    await cloud.claim(host)
    nowhere = f"/resource_providers/{uuid.uuid4()}"
    stale = {"total": 1, "resource_provider_generation": 99}
    name = (await cloud.get(f"/resource_providers/{host}"))["name"]
    await cloud.provider("child", parent=(parent := await cloud.provider("parent")))
    for method, path, body, status, code in (
        ("GET", nowhere, None, 404, "resource_provider.not_found"),
        ("GET", "/allocation_candidates?resources=VCPU:1,VCPU:2", None, 400, "query.duplicate_key"),
        ("GET", "/resource_providers?uuid=x", None, 400, "query.bad_value"),
        ("GET", "/allocation_candidates", None, 400, "query.missing_value"),
        ("GET", "/traits/CUSTOM_NONE", None, 404, "undefined_code"),
        ("PUT", f"/allocations/{server}", consumer_body(host, None, VCPU=9999), 409, "undefined_code"),
        ("PUT", f"/resource_providers/{host}/inventories/VCPU", stale, 409, "concurrent_update"),
        ("DELETE", f"/resource_providers/{host}/inventories", None, 409, "inventory.inuse"),
        ("POST", "/resource_providers", {"name": name}, 409, "duplicate_name"),
        ("DELETE", f"/resource_providers/{host}", None, 409, "resource_provider.inuse"),
        ("DELETE", f"/resource_providers/{parent}", None, 409, "resource_provider.cannot_delete_parent"),
    ):
        (error,) = (await cloud.call(method, path, body, status=status)).json()["errors"]
        assert error["code"] == f"placement.{code}", path


@pytest.mark.spec("API-738", "API-752")
async def test_a_move_is_written_at_once_or_not_at_all(cloud: Cloud) -> None:
    one, two, server, migration = await cloud.host("h1"), await cloud.host("h2"), str(uuid.uuid4()), str(uuid.uuid4())
    await cloud.call("PUT", f"/allocations/{server}", consumer_body(one, None, MEMORY_MB=8000), status=204)
    generation = (await cloud.get(f"/allocations/{server}"))["consumer_generation"]
    moved = {migration: {**consumer_body(one, None, MEMORY_MB=8000), "consumer_type": "MIGRATION"},
             server: consumer_body(two, generation, MEMORY_MB=8000)}
    stale = {**moved, server: consumer_body(two, 77, MEMORY_MB=8000)}
    await cloud.call("POST", "/allocations", stale, status=409)
    assert await cloud.get(f"/allocations/{migration}") == {"allocations": {}}
    await cloud.call("POST", "/allocations", moved, status=204)
    assert set((await cloud.get(f"/allocations/{server}"))["allocations"]) == {two}
    assert set((await cloud.get(f"/allocations/{migration}"))["allocations"]) == {one}


@pytest.mark.spec("API-740")
async def test_usages_of_a_project(cloud: Cloud) -> None:
    host = await cloud.host()
    await cloud.claim(host)
    await cloud.claim(host)
    moving = await cloud.claim(host)
    await cloud.db.write(lambda c: placement.move(c, moving, str(uuid.uuid4()), target_type="MIGRATION"))
    total = {name: 3 * amount for name, amount in SMALL.items()}
    assert (await cloud.get("/usages?project_id=p-alice", version="1.9"))["usages"] == total
    assert (await cloud.get("/usages?project_id=p-alice&user_id=bob", version="1.9"))["usages"] == {}
    by_type = (await cloud.get("/usages?project_id=p-alice"))["usages"]
    assert {name: usage["consumer_count"] for name, usage in by_type.items()} == {"INSTANCE": 2, "MIGRATION": 1}
    assert by_type["MIGRATION"] == {"consumer_count": 1, **SMALL}
    everything = (await cloud.get("/usages?project_id=p-alice&consumer_type=all"))["usages"]
    assert everything == {"all": {"consumer_count": 3, **total}}
    missing = await cloud.call("GET", "/usages", status=400)
    assert missing.json()["errors"][0]["code"] == "placement.query.missing_value"


@pytest.mark.spec("API-741")
async def test_reshaping_moves_inventory_and_allocations_together(cloud: Cloud) -> None:
    host = await cloud.host()
    child = await cloud.provider("child", parent=host)
    server = await cloud.claim(host, VCPU=2, MEMORY_MB=100)
    generation = (await cloud.get(f"/allocations/{server}"))["consumer_generation"]
    offers = (await cloud.get(f"/resource_providers/{host}/inventories"))
    vcpus = offers["inventories"].pop("VCPU")
    body = {
        "inventories": {host: offers, child: {"inventories": {"VCPU": vcpus}, "resource_provider_generation": 0}},
        "allocations": {server: {**consumer_body(child, generation, VCPU=2), "allocations": {
            child: {"resources": {"VCPU": 2}}, host: {"resources": {"MEMORY_MB": 100}}}}},
    }
    await cloud.call("POST", "/reshaper", body, token="service", status=204)
    assert set((await cloud.get(f"/resource_providers/{host}/inventories"))["inventories"]) == {"MEMORY_MB", "DISK_GB"}
    assert (await cloud.get(f"/resource_providers/{child}/usages"))["usages"] == {"VCPU": 2}
    await cloud.call("POST", "/reshaper", body, token="service", status=409)
