"""The list of extensions."""

import pytest
from compute_cloud import ComputeCloud

from kilonova.api.compute.extensions import ALIASES


@pytest.mark.spec("API-103", "API-475")
async def test_list_is_the_same_at_every_microversion(cloud: ComputeCloud) -> None:
    first = (await cloud.get("/extensions", as_="nobody")).json()
    assert first == (await cloud.get("/extensions", version="2.104")).json()
    entries = {entry["alias"]: entry for entry in first["extensions"]}
    assert tuple(entries) == ALIASES
    assert len(ALIASES) == 99
    assert {"NMN", "OS-SRV-USG", "os-access-ips", "os-instance_usage_audit_log", "os-volumes"} < entries.keys()
    assert "OS-EXT-VIF-NET" not in entries
    for entry in entries.values():
        assert set(entry) == {"alias", "name", "description", "updated", "namespace", "links"}
        assert (entry["updated"], entry["links"]) == ("2014-12-03T00:00:00Z", [])
    assert len({entry["namespace"] for entry in entries.values()}) == 1


@pytest.mark.spec("API-104", "API-475")
async def test_one(cloud: ComputeCloud) -> None:
    found = (await cloud.get("/extensions/os-keypairs", as_="nobody")).json()["extension"]
    assert (found["alias"], found["name"]) == ("os-keypairs", "Keypairs")
    assert (await cloud.get("/extensions/os-nothing")).status_code == 404


@pytest.mark.spec("API-007")
async def test_one_more_through_the_old_endpoint(cloud: ComputeCloud) -> None:
    aliases = [e["alias"] for e in (await cloud.get("/extensions", root="/v2")).json()["extensions"]]
    assert sorted(aliases) == sorted([*ALIASES, "OS-EXT-VIF-NET"])
    assert (await cloud.get("/extensions/OS-EXT-VIF-NET", root="/v2")).status_code == 200
    assert (await cloud.get("/extensions/OS-EXT-VIF-NET")).status_code == 404
