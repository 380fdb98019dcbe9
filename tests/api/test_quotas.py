"""Quota sets of projects and users, quota classes, and the limits a project sees."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from compute_cloud import OTHER_PROJECT, PROJECT
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.api.compute.quota_check import Limits

SET = f"/os-quota-sets/{PROJECT}"
CLASS = "/os-quota-class-sets/default"
USER = "user-of-member"
DEFAULTS = {
    "instances": 10, "cores": 20, "ram": 51200, "metadata_items": 128, "key_pairs": 100, "server_groups": 10,
    "server_group_members": 10, "injected_files": 5, "injected_file_content_bytes": 10240,
    "injected_file_path_bytes": 255, "fixed_ips": -1, "floating_ips": -1, "security_groups": -1,
    "security_group_rules": -1,
}
FILES = {"injected_files", "injected_file_content_bytes", "injected_file_path_bytes"}
NETWORK = {"fixed_ips", "floating_ips", "security_groups", "security_group_rules"}
GROUPS = {"server_groups", "server_group_members"}


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        yield running


def in_sets(version: int) -> dict[str, int]:
    gone = (NETWORK if version >= 36 else set()) | (FILES if version >= 57 else set())
    return {name: value for name, value in DEFAULTS.items() if name not in gone}


def in_classes(version: int) -> dict[str, int]:
    gone = (NETWORK if version >= 50 else GROUPS) | (FILES if version >= 57 else set())
    return {name: value for name, value in DEFAULTS.items() if name not in gone}


async def put(cloud: ResourceCloud, query: str = "", *, version: str = "2.36", expect: int = 200,
              **values: Any) -> dict[str, Any]:
    answer = await cloud.put(f"{SET}{query}", {"quota_set": values}, as_="admin", version=version)
    assert answer.status_code == expect, answer.text
    found: dict[str, Any] = answer.json()
    return found["quota_set"] if expect == 200 else found


async def values(cloud: ResourceCloud, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = (await cloud.get(f"{SET}{query}", as_="admin")).json()["quota_set"]
    return found


@pytest.mark.spec("API-251", "API-252", "API-253", "API-254", "API-466", "API-640", "API-536", "API-557")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_sets(cloud: ResourceCloud, version: int) -> None:
    at, expected = f"2.{version}", {"id": PROJECT, **in_sets(version)}
    assert (await cloud.get(SET, version=at, as_="reader")).json() == {"quota_set": expected}
    assert (await cloud.get(f"{SET}/defaults", version=at, as_="nobody")).json() == {"quota_set": expected}
    detail = (await cloud.get(f"{SET}/detail", version=at, as_="reader")).json()["quota_set"]
    assert detail.pop("id") == PROJECT
    assert detail == {
        name: {"limit": value, "in_use": 0, "reserved": 0} for name, value in in_sets(version).items()}
    assert await put(cloud, version=at) == in_sets(version), "the answer to an update has no id"


@pytest.mark.spec("API-256", "API-257", "API-466", "API-640", "API-550", "API-557")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_classes(cloud: ResourceCloud, version: int) -> None:
    at = f"2.{version}"
    answer = await cloud.get(CLASS, version=at, as_="admin")
    assert answer.json() == {"quota_class_set": {"id": "default", **in_classes(version)}}
    answer = await cloud.put(CLASS, {"quota_class_set": {"cores": 3}}, version=at, as_="admin")
    assert answer.json() == {"quota_class_set": {**in_classes(version), "cores": 3}}


@pytest.mark.spec("API-643", "API-254", "API-257", "API-024")
@pytest.mark.parametrize("name", DEFAULTS)
async def test_ranges_in_updates(cloud: ResourceCloud, name: str) -> None:
    for version in (1, 35, 36, 49, 50, 56, 57, 104):
        answer = await cloud.put(SET, {"quota_set": {name: 77}}, version=f"2.{version}", as_="admin")
        assert answer.status_code == (200 if name in in_sets(version) else 400)
        answer = await cloud.put(CLASS, {"quota_class_set": {name: 77}}, version=f"2.{version}", as_="admin")
        assert answer.status_code == (200 if name in in_classes(version) else 400)


@pytest.mark.spec("API-254", "API-640", "API-643")
@pytest.mark.parametrize("fields", [
    {"cores": -2}, {"cores": 2**31}, {"cores": "x"}, {"cores": None}, {"cores": 1.5}, {"wheels": 4},
    {"force": "perhaps"}, {"tenant_id": PROJECT},
])
async def test_bad_updates(cloud: ResourceCloud, fields: dict[str, Any]) -> None:
    await put(cloud, expect=400, **fields)
    fields.pop("force", None)
    if fields:
        answer = await cloud.put(CLASS, {"quota_class_set": fields}, as_="admin")
        assert answer.status_code == 400
    assert (await values(cloud))["cores"] == 20


@pytest.mark.spec("API-254", "API-251", "API-641")
async def test_limits_of_a_project(cloud: ResourceCloud) -> None:
    assert (await put(cloud, cores="5", ram=-1))["cores"] == 5
    found = await values(cloud)
    assert (found["cores"], found["ram"], found["instances"]) == (5, -1, 10)
    other = (await cloud.get(f"/os-quota-sets/{OTHER_PROJECT}", as_="stranger")).json()["quota_set"]
    assert other["cores"] == 20
    assert (await cloud.get(f"{SET}/defaults")).json()["quota_set"]["cores"] == 20
    await put(cloud, cores=6)
    assert (await values(cloud))["cores"] == 6


@pytest.mark.spec("API-641", "API-251", "API-254", "API-256", "API-257")
async def test_user_then_project_then_class_then_option() -> None:
    async with resource_cloud(limits=Limits(cores=40)) as cloud:
        assert (await values(cloud))["cores"] == 40
        await cloud.put(CLASS, {"quota_class_set": {"cores": 30}}, as_="admin")
        await cloud.put("/os-quota-class-sets/gold", {"quota_class_set": {"cores": 99}}, as_="admin")
        assert (await values(cloud))["cores"] == 30
        assert (await cloud.get(f"{SET}/defaults")).json()["quota_set"]["cores"] == 30
        await put(cloud, cores=25)
        assert (await values(cloud))["cores"] == 25
        assert (await put(cloud, f"?user_id={USER}", cores=5))["cores"] == 5
        assert (await values(cloud, f"?user_id={USER}"))["cores"] == 5
        assert (await values(cloud, "?user_id=somebody"))["cores"] == 25
        assert (await values(cloud))["cores"] == 25
        limits = await cloud.app._cloud.quotas.limits(PROJECT, USER)
        assert (limits.cores, limits.ram) == (5, 51200)


@pytest.mark.spec("API-641", "API-254")
async def test_a_user_cannot_have_more_than_the_project(cloud: ResourceCloud) -> None:
    for more in (21, -1):
        refused = await put(cloud, f"?user_id={USER}", expect=400, cores=more, force=True)
        assert "must be less than or equal to 20" in refused["badRequest"]["message"]
    await put(cloud, cores=-1)
    await put(cloud, f"?user_id={USER}", cores=1000)


@pytest.mark.spec("API-254", "API-252")
async def test_limits_below_usage_need_force(cloud: ResourceCloud) -> None:
    for user in (USER, USER, "user-of-colleague"):
        await cloud.boot(user_id=user)
    await cloud.boot(project_id=OTHER_PROJECT)
    refused = await put(cloud, expect=400, instances=2)
    assert "already used and reserved 3" in refused["badRequest"]["message"]
    assert (await values(cloud))["instances"] == 10
    await put(cloud, instances=3, ram=-1)
    assert (await put(cloud, instances=2, force="True"))["instances"] == 2
    await put(cloud, f"?user_id={USER}", expect=400, instances=1)
    await put(cloud, f"?user_id={USER}", instances=2)
    detail = (await cloud.get(f"{SET}/detail", version="2.57")).json()["quota_set"]
    assert detail["instances"] == {"limit": 2, "in_use": 3, "reserved": 0}
    assert (detail["cores"]["in_use"], detail["ram"]["in_use"]) == (3, 3 * 512)
    one = (await cloud.get(f"{SET}/detail?user_id={USER}", version="2.57")).json()["quota_set"]
    assert (one["instances"], one["cores"]["in_use"]) == ({"limit": 2, "in_use": 2, "reserved": 0}, 2)


@pytest.mark.spec("API-642", "API-252")
async def test_key_pairs_show_no_use(cloud: ResourceCloud) -> None:
    assert (await cloud.post("/os-keypairs", {"keypair": {"name": "k"}})).status_code == 200
    detail = (await cloud.get(f"{SET}/detail")).json()["quota_set"]
    assert (detail["key_pairs"]["in_use"], detail["server_group_members"]["in_use"]) == (0, 0)


@pytest.mark.spec("API-255", "API-033")
async def test_delete_goes_back_to_defaults(cloud: ResourceCloud) -> None:
    await put(cloud, cores=15)
    await put(cloud, f"?user_id={USER}", cores=5)
    answer = await cloud.delete(f"{SET}?user_id={USER}", as_="admin")
    assert (answer.status_code, answer.content) == (202, b"")
    assert (await values(cloud, f"?user_id={USER}"))["cores"] == 15
    await put(cloud, f"?user_id={USER}", cores=5)
    assert (await cloud.delete(SET, as_="admin")).status_code == 202
    assert (await values(cloud))["cores"] == 20
    assert (await values(cloud, f"?user_id={USER}"))["cores"] == 20
    assert (await cloud.delete("/os-quota-sets/unknown", as_="admin")).status_code == 202


@pytest.mark.spec("API-251", "API-252", "API-253", "API-254")
async def test_unknown_project(cloud: ResourceCloud) -> None:
    for path in ("", "/detail", "/defaults"):
        assert (await cloud.get(f"/os-quota-sets/nowhere{path}", as_="admin")).status_code == 400
    answer = await cloud.put("/os-quota-sets/nowhere", {"quota_set": {}}, as_="admin")
    assert answer.status_code == 400


@pytest.mark.spec("API-251", "API-252", "API-253", "API-254", "API-255", "API-256", "API-257", "API-041")
async def test_policies(cloud: ResourceCloud) -> None:
    for path, rule in ((SET, "show"), (f"{SET}/detail", "detail")):
        assert (await cloud.get(path, as_="reader")).status_code == 200
        for as_ in ("stranger", "nobody"):
            answer = await cloud.get(path, as_=as_)
            assert answer.status_code == 403
            assert f"os_compute_api:os-quota-sets:{rule} " in answer.text
    assert (await cloud.get(f"{SET}/defaults", as_="stranger")).status_code == 200
    for as_ in ("manager", "member", "reader"):
        for answer, rule in (
            (await cloud.put(SET, {"quota_set": {}}, as_=as_), "os-quota-sets:update"),
            (await cloud.delete(SET, as_=as_), "os-quota-sets:delete"),
            (await cloud.get(CLASS, as_=as_), "os-quota-class-sets:show"),
            (await cloud.put(CLASS, {"quota_class_set": {}}, as_=as_), "os-quota-class-sets:update"),
        ):
            assert answer.status_code == 403
            assert f"os_compute_api:{rule} " in answer.text


@pytest.mark.spec("API-029", "API-575", "API-052")
async def test_queries(cloud: ResourceCloud) -> None:
    for method, path in (("GET", SET), ("GET", f"{SET}/detail"), ("PUT", SET), ("DELETE", SET)):
        body = {"quota_set": {}} if method == "PUT" else None
        for version, status in (("2.74", {200, 202}), ("2.75", {400})):
            answer = await cloud.request(method, f"{path}?x=1", version=version, as_="admin", json=body)
            assert answer.status_code in status
    assert (await cloud.get(f"{SET}/defaults?x=1", version="2.104")).status_code == 200
    assert (await cloud.get(f"{CLASS}?x=1", version="2.101", as_="admin")).status_code == 200
    assert (await cloud.get(f"{CLASS}?x=1", version="2.102", as_="admin")).status_code == 400
    await put(cloud, f"?user_id={USER}&user_id=other", cores=5)
    assert (await values(cloud, f"?user_id={USER}&user_id=other"))["cores"] == 5
    assert (await values(cloud, "?user_id=other"))["cores"] == 20


@pytest.mark.spec("API-256")
async def test_an_unknown_class_shows_defaults(cloud: ResourceCloud) -> None:
    found = (await cloud.get("/os-quota-class-sets/tin", as_="admin")).json()["quota_class_set"]
    assert (found["id"], found["cores"]) == ("tin", 20)


ABSOLUTE = {
    "maxTotalInstances": 10, "maxTotalCores": 20, "maxTotalRAMSize": 51200, "maxTotalKeypairs": 100,
    "maxServerMeta": 128, "maxServerGroups": 10, "maxServerGroupMembers": 10, "totalInstancesUsed": 0,
    "totalCoresUsed": 0, "totalRAMUsed": 0, "totalServerGroupsUsed": 0,
}
UNTIL: dict[int, dict[str, int]] = {
    35: {"maxTotalFloatingIps": -1, "maxSecurityGroups": -1, "maxSecurityGroupRules": -1, "totalFloatingIpsUsed": 0,
         "totalSecurityGroupsUsed": 0},
    38: {"maxImageMeta": 128},
    56: {"maxPersonality": 5, "maxPersonalitySize": 10240},
}


@pytest.mark.spec("API-105", "API-465", "API-536", "API-539", "API-557")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_limits(cloud: ResourceCloud, version: int) -> None:
    expected = dict(ABSOLUTE)
    for until, fields in UNTIL.items():
        expected |= fields if version <= until else {}
    answer = await cloud.get("/limits", version=f"2.{version}", as_="nobody")
    assert answer.json() == {"limits": {"rate": [], "absolute": expected}}


@pytest.mark.spec("API-105", "API-465")
async def test_limits_tell_quota_and_use(cloud: ResourceCloud) -> None:
    await put(cloud, cores=7, instances=-1)
    await cloud.boot()
    await cloud.boot(project_id=OTHER_PROJECT)
    await cloud.boot(project_id=OTHER_PROJECT)
    found = (await cloud.get("/limits")).json()["limits"]["absolute"]
    assert (found["maxTotalCores"], found["maxTotalInstances"]) == (7, -1)
    assert (found["totalInstancesUsed"], found["totalCoresUsed"], found["totalRAMUsed"]) == (1, 1, 512)
    other = (await cloud.get(f"/limits?tenant_id={OTHER_PROJECT}&reserved=1", as_="admin")).json()["limits"]
    assert (other["absolute"]["totalInstancesUsed"], other["absolute"]["maxTotalCores"]) == (2, 20)


@pytest.mark.spec("API-105", "API-029")
async def test_limits_of_another_project(cloud: ResourceCloud) -> None:
    answer = await cloud.get(f"/limits?tenant_id={OTHER_PROJECT}", as_="manager")
    assert answer.status_code == 403
    assert "os_compute_api:limits:other_project " in answer.text
    assert (await cloud.get("/limits?x=1", version="2.74")).status_code == 200
    assert (await cloud.get("/limits?x=1", version="2.75")).status_code == 400


@pytest.mark.spec("API-059", "API-641")
async def test_a_stored_limit_refuses_servers(cloud: ResourceCloud) -> None:
    await cloud.flavor()
    await put(cloud, instances=0)
    body = {"server": {"name": "x", "imageRef": "11111111-1111-4111-8111-111111111111", "flavorRef": "1"}}
    answer = await cloud.post("/servers", body)
    assert answer.status_code == 403
    assert answer.json()["forbidden"]["message"].startswith("Quota exceeded for instances: Requested 1, ")
