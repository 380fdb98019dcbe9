"""Flavors: lists, one, create, describe, delete, and who may use the private ones."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from compute_cloud import OTHER_PROJECT, PROJECT, link
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.db import flavors
from kilonova.domain.flavor import Flavor

ALWAYS = {
    "id", "name", "links", "ram", "disk", "vcpus", "swap", "OS-FLV-EXT-DATA:ephemeral", "os-flavor-access:is_public",
}
SINCE = {"description": 55, "extra_specs": 61}
UNTIL = {"OS-FLV-DISABLED:disabled": 101, "rxtx_factor": 101}
NEW = {"name": "big", "ram": 2048, "vcpus": 2, "disk": 20}


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        yield running


def fields_at(version: int) -> set[str]:
    later = {name for name, since in SINCE.items() if version >= since}
    return ALWAYS | later | {name for name, until in UNTIL.items() if version <= until}


async def add(cloud: ResourceCloud, flavor_id: str, **fields: Any) -> Flavor:
    given: dict[str, Any] = {"name": f"flavor {flavor_id}", "vcpus": 1, "memory_mib": 512, "root_gib": 1, **fields}
    return await cloud.flavor(Flavor(flavor_id=flavor_id, **given))


async def grant(cloud: ResourceCloud, flavor_id: str, project: str) -> httpx.Response:
    body = {"addTenantAccess": {"tenant": project}}
    return await cloud.post(f"/flavors/{flavor_id}/action", body, as_="admin", version="2.7")


async def ids(cloud: ResourceCloud, query: str = "", **more: Any) -> list[str]:
    answer = await cloud.get(f"/flavors{query}", **more)
    assert answer.status_code == 200, answer.text
    return [flavor["id"] for flavor in answer.json()["flavors"]]


@pytest.mark.spec("API-453", "API-203", "API-555", "API-561", "API-575", "API-602")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_one(cloud: ResourceCloud, version: int) -> None:
    await add(cloud, "1", swap_mib=0, extra_specs={"hw:cpu_policy": "shared"}, description="small")
    shown = (await cloud.get("/flavors/1", version=f"2.{version}", as_="reader")).json()["flavor"]
    assert set(shown) == fields_at(version)
    assert shown["swap"] == (0 if version >= 75 else "")
    if version >= 61:
        assert shown["extra_specs"] == {"hw:cpu_policy": "shared"}


@pytest.mark.spec("API-453", "API-201", "API-009")
async def test_values(cloud: ResourceCloud) -> None:
    await add(cloud, "a b", name="m", vcpus=3, memory_mib=640, root_gib=7, ephemeral_gib=4, swap_mib=9,
              rxtx_factor=1.5, description="words")
    (shown,) = (await cloud.get("/flavors/detail", version="2.55")).json()["flavors"]
    assert link(shown, "self") == "http://cloud.test/compute/v2.1/flavors/a%20b"
    assert link(shown, "bookmark") == "http://cloud.test/compute/flavors/a%20b"
    shown.pop("links")
    assert shown == {
        "id": "a b", "name": "m", "ram": 640, "disk": 7, "OS-FLV-EXT-DATA:ephemeral": 4, "swap": 9, "vcpus": 3,
        "OS-FLV-DISABLED:disabled": False, "os-flavor-access:is_public": True, "rxtx_factor": 1.5,
        "description": "words",
    }
    assert (await cloud.get("/flavors/a%20b")).status_code == 200


@pytest.mark.spec("API-453", "API-200", "API-201")
@pytest.mark.parametrize("version", [1, 54, 55, 60, 61, 101, 102])
async def test_fields_of_lists(cloud: ResourceCloud, version: int) -> None:
    await add(cloud, "1")
    (entry,) = (await cloud.get("/flavors", version=f"2.{version}")).json()["flavors"]
    assert set(entry) == {"id", "name", "links"} | ({"description"} if version >= 55 else set())
    (entry,) = (await cloud.get("/flavors/detail", version=f"2.{version}")).json()["flavors"]
    assert set(entry) == fields_at(version)


@pytest.mark.spec("API-045", "API-453")
async def test_extra_specs_need_the_role_of_a_reader(cloud: ResourceCloud) -> None:
    await add(cloud, "1")
    assert "extra_specs" not in (await cloud.get("/flavors/1", version="2.61", as_="nobody")).json()["flavor"]


@pytest.mark.spec("API-200", "API-203")
async def test_who_sees_what(cloud: ResourceCloud) -> None:
    await add(cloud, "public")
    await add(cloud, "ours", is_public=False)
    await add(cloud, "theirs", is_public=False)
    await add(cloud, "disabled", disabled=True)
    await grant(cloud, "ours", PROJECT)
    await grant(cloud, "theirs", OTHER_PROJECT)
    assert await ids(cloud, as_="reader") == ["ours", "public"]
    assert await ids(cloud, "?is_public=none", as_="reader") == ["ours", "public"]
    assert await ids(cloud, as_="stranger") == ["public", "theirs"]
    assert await ids(cloud, as_="system") == ["disabled", "public"]
    for query, expected in {
        "": ["disabled", "ours", "public"], "?is_public=true": ["disabled", "ours", "public"],
        "?is_public=0": ["ours", "theirs"], "?is_public=None": ["disabled", "ours", "public", "theirs"],
    }.items():
        assert await ids(cloud, query, as_="admin") == expected
    assert (await cloud.get("/flavors?is_public=x", as_="admin")).status_code == 400
    assert (await cloud.get("/flavors/theirs", as_="reader")).status_code == 404
    assert (await cloud.get("/flavors/ours", as_="reader")).status_code == 200
    assert (await cloud.get("/flavors/theirs", as_="admin")).status_code == 200
    assert (await cloud.get("/flavors/none")).status_code == 404


@pytest.mark.spec("API-200")
async def test_filters(cloud: ResourceCloud) -> None:
    for flavor_id, memory, disk in (("1", 128, 1), ("2", 512, 5), ("3", 1024, 10)):
        await add(cloud, flavor_id, memory_mib=memory, root_gib=disk)
    assert await ids(cloud, "?minRam=512") == ["2", "3"]
    assert await ids(cloud, "?minDisk=10") == ["3"]
    assert await ids(cloud, "?minRam=512&minDisk=5&minRam=600") == ["3"]
    for query in ("?minRam=x", "?minDisk=1.5", "?sort_dir=up", "?sort_key=links", "?limit=-1"):
        assert (await cloud.get(f"/flavors{query}")).status_code == 400


@pytest.mark.spec("API-200", "API-602", "API-029", "API-025")
async def test_name_is_a_regular_expression(cloud: ResourceCloud) -> None:
    for flavor_id, name in (("1", "m1.tiny"), ("2", "m1.large"), ("3", "c1.large")):
        await add(cloud, flavor_id, name=name)
    assert await ids(cloud, "?name=^m1", version="2.102") == ["1", "2"]
    assert await ids(cloud, "?name=large&limit=1", version="2.102") == ["2"]
    assert await ids(cloud, "?name=large&marker=2", version="2.102") == ["3"]
    assert (await cloud.get("/flavors?name=(", version="2.102")).status_code == 400
    assert await ids(cloud, "?name=^m1", version="2.74") == ["1", "2", "3"]
    assert (await cloud.get("/flavors?name=^m1", version="2.101")).status_code == 400


@pytest.mark.spec("API-029", "API-575")
@pytest.mark.parametrize("path", ["/flavors", "/flavors/detail"])
async def test_unknown_parameters(cloud: ResourceCloud, path: str) -> None:
    assert (await cloud.get(f"{path}?x=1", version="2.74")).status_code == 200
    assert (await cloud.get(f"{path}?x=1", version="2.75")).status_code == 400


@pytest.mark.spec("API-046", "API-047", "API-048", "API-049")
async def test_pages(cloud: ResourceCloud) -> None:
    for flavor_id in "edcba":
        await add(cloud, flavor_id)
    answer = (await cloud.get("/flavors?limit=2&minRam=1")).json()
    assert [flavor["id"] for flavor in answer["flavors"]] == ["a", "b"]
    (following,) = answer["flavors_links"]
    assert following == {
        "rel": "next", "href": "http://cloud.test/compute/v2.1/flavors?limit=2&marker=b&minRam=1"
    }
    assert await ids(cloud, "?limit=2&marker=b") == ["c", "d"]
    last = (await cloud.get("/flavors/detail?limit=2&marker=d")).json()
    assert [flavor["id"] for flavor in last["flavors"]] == ["e"]
    assert "flavors_links" not in last
    assert (await cloud.get("/flavors?limit=0")).json() == {"flavors": []}
    assert (await cloud.get("/flavors?marker=z")).status_code == 400


@pytest.mark.spec("API-048")
async def test_a_hidden_flavor_is_no_marker(cloud: ResourceCloud) -> None:
    await add(cloud, "secret", is_public=False)
    assert (await cloud.get("/flavors?marker=secret")).status_code == 400
    assert (await cloud.get("/flavors?marker=secret", as_="admin")).status_code == 200


@pytest.mark.spec("API-631", "API-051")
@pytest.mark.parametrize("key", [
    "created_at", "description", "disabled", "ephemeral_gb", "flavorid", "id", "is_public", "memory_mb", "name",
    "root_gb", "rxtx_factor", "swap", "updated_at", "vcpu_weight", "vcpus",
])
async def test_every_sort_key_with_pages(cloud: ResourceCloud, key: str) -> None:
    first = Flavor(flavor_id="a", name="a", vcpus=1, memory_mib=1, root_gib=1, description=None)
    second = Flavor(
        flavor_id="b", name="b", vcpus=2, memory_mib=2, root_gib=2, ephemeral_gib=1, swap_mib=1, rxtx_factor=2.0,
        vcpu_weight=1, disabled=True, is_public=True, description="b",
    )
    if key == "is_public":
        first, second = Flavor(flavor_id="a", name="a", vcpus=1, memory_mib=1, root_gib=1, is_public=False), second
    await cloud.flavor(first)
    cloud.clock.time += 1
    await cloud.flavor(second)
    if key == "updated_at":
        await cloud.put("/flavors/b", {"flavor": {"description": "x"}}, as_="admin", version="2.55")
    query = f"?is_public=none&sort_key={key}"
    assert await ids(cloud, query, as_="admin") == ["a", "b"]
    assert await ids(cloud, f"{query}&sort_dir=desc", as_="admin") == ["b", "a"]
    assert await ids(cloud, f"{query}&marker=a", as_="admin") == ["b"]
    assert await ids(cloud, f"{query}&sort_dir=desc&marker=b&limit=5", as_="admin") == ["a"]


@pytest.mark.spec("API-631", "API-602")
async def test_rxtx_factor_is_no_sort_key_in_the_end(cloud: ResourceCloud) -> None:
    assert (await cloud.get("/flavors?sort_key=rxtx_factor", version="2.101")).status_code == 200
    assert (await cloud.get("/flavors?sort_key=rxtx_factor", version="2.102")).status_code == 400


@pytest.mark.spec("API-631")
async def test_equal_ones_are_in_the_order_they_were_made(cloud: ResourceCloud) -> None:
    for flavor_id in "cab":
        await add(cloud, flavor_id)
    assert await ids(cloud, "?sort_key=vcpus") == ["c", "a", "b"]
    assert await ids(cloud, "?sort_key=vcpus&limit=1&marker=c") == ["a"]


@pytest.mark.spec("API-202", "API-617")
async def test_create_with_defaults(cloud: ResourceCloud) -> None:
    answer = await cloud.post("/flavors", {"flavor": NEW}, as_="admin", version="2.61")
    assert answer.status_code == 200
    made = answer.json()["flavor"]
    assert len(made["id"]) == 36
    assert (made["ram"], made["vcpus"], made["disk"], made["swap"], made["OS-FLV-EXT-DATA:ephemeral"]) == (
        2048, 2, 20, "", 0)
    assert (made["os-flavor-access:is_public"], made["rxtx_factor"], made["description"]) == (True, 1.0, None)
    assert made["extra_specs"] == {}
    assert (await cloud.get(f"/flavors/{made['id']}")).json()["flavor"]["name"] == "big"


@pytest.mark.spec("API-202", "API-617", "API-026", "API-027")
async def test_create_with_everything(cloud: ResourceCloud) -> None:
    wanted = {
        **NEW, "id": 7, "ram": "64", "OS-FLV-EXT-DATA:ephemeral": 3, "swap": 5, "rxtx_factor": "2.5",
        "os-flavor-access:is_public": "False", "description": "d",
    }
    made = (await cloud.post("/flavors", {"flavor": wanted}, as_="admin", version="2.55")).json()["flavor"]
    assert (made["id"], made["ram"], made["swap"], made["rxtx_factor"]) == ("7", 64, 5, 2.5)
    assert (made["os-flavor-access:is_public"], made["description"]) == (False, "d")
    access = await cloud.get("/flavors/7/os-flavor-access", as_="admin")
    assert access.json() == {"flavor_access": []}, "a private flavor gets no access entry"


@pytest.mark.spec("API-202", "API-057", "API-617")
@pytest.mark.parametrize("change", [
    {"name": None}, {"name": ""}, {"name": " x"}, {"name": "x" * 256}, {"name": "a\tb"}, {"ram": 0}, {"ram": "x"},
    {"vcpus": 0}, {"disk": -1}, {"swap": -1}, {"OS-FLV-EXT-DATA:ephemeral": -1}, {"rxtx_factor": 0},
    {"rxtx_factor": "nan"}, {"rxtx_factor": True}, {"id": ""}, {"id": "a/b"}, {"id": " a"}, {"id": "x" * 256},
    {"id": True}, {"os-flavor-access:is_public": "maybe"}, {"ram": 2**31}, {"colour": "red"},
    {"description": "x" * 65536}, {"description": 1},
])
async def test_bad_fields(cloud: ResourceCloud, change: dict[str, Any]) -> None:
    answer = await cloud.post("/flavors", {"flavor": {**NEW, **change}}, as_="admin", version="2.61")
    assert answer.status_code == 400, answer.text
    assert await ids(cloud, as_="admin") == []


@pytest.mark.spec("API-202", "API-617", "API-555", "API-602", "API-024", "API-025")
async def test_fields_of_create_by_microversion(cloud: ResourceCloud) -> None:
    async def status(version: str, **fields: Any) -> int:
        name = f"f{version}{len(fields)}"
        body = {"flavor": {**NEW, "name": name, **fields}}
        return (await cloud.post("/flavors", body, as_="admin", version=version)).status_code

    assert await status("2.54", description="x") == 400
    assert await status("2.55", description="x") == 200
    assert await status("2.101", rxtx_factor=1) == 200
    assert await status("2.102", rxtx_factor=1) == 400
    for missing in ("name", "ram", "vcpus", "disk"):
        body = {"flavor": {name: value for name, value in NEW.items() if name != missing}}
        assert (await cloud.post("/flavors", body, as_="admin")).status_code == 400


@pytest.mark.spec("API-202")
async def test_name_and_id_are_unique(cloud: ResourceCloud) -> None:
    await cloud.post("/flavors", {"flavor": {**NEW, "id": "1"}}, as_="admin")
    for change in ({"id": "1", "name": "other"}, {"id": "2"}):
        answer = await cloud.post("/flavors", {"flavor": {**NEW, **change}}, as_="admin")
        assert answer.status_code == 409


@pytest.mark.spec("API-204", "API-555")
async def test_only_the_description_changes(cloud: ResourceCloud) -> None:
    await add(cloud, "1", extra_specs={"a": "b"})
    assert (await cloud.put("/flavors/1", {"flavor": {"description": "x"}}, as_="admin", version="2.54"
                            )).status_code == 404
    answer = await cloud.put("/flavors/1", {"flavor": {"description": "x"}}, as_="admin", version="2.61")
    assert (answer.status_code, answer.json()["flavor"]["description"]) == (200, "x")
    assert set(answer.json()["flavor"]) == fields_at(61)
    answer = await cloud.put("/flavors/1", {"flavor": {"description": None}}, as_="admin", version="2.55")
    assert answer.json()["flavor"]["description"] is None
    for fields in ({}, {"description": "x", "name": "y"}, {"description": "x" * 65536}):
        assert (await cloud.put("/flavors/1", {"flavor": fields}, as_="admin", version="2.55")).status_code == 400
    gone = await cloud.put("/flavors/2", {"flavor": {"description": "x"}}, as_="admin", version="2.55")
    assert gone.status_code == 404


@pytest.mark.spec("API-205", "API-033")
async def test_delete(cloud: ResourceCloud) -> None:
    await add(cloud, "1", is_public=False)
    await grant(cloud, "1", PROJECT)
    answer = await cloud.delete("/flavors/1", as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await cloud.delete("/flavors/1", as_="admin")).status_code == 404
    await add(cloud, "1", is_public=False)
    assert (await cloud.get("/flavors/1")).status_code == 404, "access of a deleted flavor must not come back"


@pytest.mark.spec("API-202", "API-204", "API-205", "API-206", "API-207", "API-208", "API-041")
@pytest.mark.parametrize(("method", "path", "body", "rule"), [
    ("POST", "/flavors", {"flavor": NEW}, "os-flavor-manage:create"),
    ("PUT", "/flavors/1", {"flavor": {"description": "x"}}, "os-flavor-manage:update"),
    ("DELETE", "/flavors/1", None, "os-flavor-manage:delete"),
    ("POST", "/flavors/1/action", {"addTenantAccess": {"tenant": PROJECT}}, "os-flavor-access:add_tenant_access"),
    ("POST", "/flavors/1/action", {"removeTenantAccess": {"tenant": PROJECT}},
     "os-flavor-access:remove_tenant_access"),
    ("GET", "/flavors/1/os-flavor-access", None, "os-flavor-access"),
])
@pytest.mark.parametrize("as_", ["manager", "member", "reader", "service"])
async def test_only_admins_change_flavors(
    cloud: ResourceCloud, method: str, path: str, body: Any, rule: str, as_: str
) -> None:
    await add(cloud, "1")
    answer = await cloud.request(method, path, json=body, as_=as_, version="2.55")
    assert answer.status_code == 403
    assert answer.json()["forbidden"]["message"] == f"Policy doesn't allow os_compute_api:{rule} to be performed."


@pytest.mark.spec("API-206", "API-207", "API-208")
async def test_access(cloud: ResourceCloud) -> None:
    await add(cloud, "1", is_public=False)
    assert (await cloud.get("/flavors/1")).status_code == 404
    answer = await grant(cloud, "1", PROJECT)
    expected = {"flavor_access": [{"flavor_id": "1", "tenant_id": PROJECT}]}
    assert (answer.status_code, answer.json()) == (200, expected)
    assert (await cloud.get("/flavors/1/os-flavor-access", as_="admin")).json() == expected
    assert (await cloud.get("/flavors/1")).status_code == 200
    assert (await grant(cloud, "1", PROJECT)).status_code == 409
    assert (await grant(cloud, "1", "nowhere")).status_code == 400
    assert (await grant(cloud, "2", PROJECT)).status_code == 404
    remove = {"removeTenantAccess": {"tenant": PROJECT}}
    answer = await cloud.post("/flavors/1/action", remove, as_="admin")
    assert (answer.status_code, answer.json()) == (200, {"flavor_access": []})
    assert (await cloud.get("/flavors/1")).status_code == 404
    assert (await cloud.post("/flavors/1/action", remove, as_="admin")).status_code == 404
    assert (await cloud.post("/flavors/2/action", remove, as_="admin")).status_code == 404


@pytest.mark.spec("API-207")
async def test_access_of_a_project_that_is_gone_can_be_removed(cloud: ResourceCloud) -> None:
    await add(cloud, "1", is_public=False)
    await cloud.cells.api.write(lambda conn: flavors.add_access(conn, "1", "gone"))
    answer = await cloud.post("/flavors/1/action", {"removeTenantAccess": {"tenant": "gone"}}, as_="admin")
    assert (answer.status_code, answer.json()) == (200, {"flavor_access": []})


@pytest.mark.spec("API-206", "API-208", "API-507")
async def test_access_to_a_public_flavor(cloud: ResourceCloud) -> None:
    await add(cloud, "1")
    assert (await cloud.get("/flavors/1/os-flavor-access", as_="admin")).status_code == 404
    body = {"addTenantAccess": {"tenant": PROJECT}}
    assert (await cloud.post("/flavors/1/action", body, as_="admin", version="2.7")).status_code == 409
    assert (await cloud.post("/flavors/1/action", body, as_="admin", version="2.6")).status_code == 200


@pytest.mark.spec("API-206", "API-207", "API-023")
@pytest.mark.parametrize("body", [
    {"addTenantAccess": {}}, {"addTenantAccess": {"tenant": 1}}, {"addTenantAccess": {"tenant": "", "x": 1}},
    {"removeTenantAccess": None}, {"freeze": {}}, {},
])
async def test_bad_access_bodies(cloud: ResourceCloud, body: Any) -> None:
    await add(cloud, "1", is_public=False)
    assert (await cloud.post("/flavors/1/action", body, as_="admin")).status_code == 400


async def test_a_fresh_installation_gets_the_usual_flavors_once(cloud: ResourceCloud) -> None:
    for _ in range(2):
        await cloud.cells.api.write(lambda conn: flavors.seed(conn, now=1.0))
    found = (await cloud.get("/flavors/detail?sort_key=memory_mb")).json()["flavors"]
    assert [(f["name"], f["ram"], f["vcpus"], f["disk"]) for f in found] == [
        ("m1.nano", 128, 1, 1), ("m1.tiny", 512, 1, 1), ("m1.small", 2048, 1, 20), ("m1.medium", 4096, 2, 40),
        ("m1.large", 8192, 4, 80),
    ]
    await cloud.delete("/flavors/1", as_="admin")
    await cloud.cells.api.write(lambda conn: flavors.seed(conn, now=1.0))
    assert "1" not in await ids(cloud), "what an operator deleted stays deleted"
