"""Quotas that the identity service holds: read from there, and changed nowhere else."""

import pytest
from compute_cloud import PROJECT, create
from resource_cloud import resource_cloud

SET, CLASS = f"/os-quota-sets/{PROJECT}", "/os-quota-class-sets/default"
REGISTERED = {"servers": 5, "class:VCPU": 6, "class:MEMORY_MB": 4096, "server_metadata_items": 7,
              "server_key_pairs": 8, "server_groups": 9, "server_group_members": 10, "server_injected_files": 3}


@pytest.mark.spec("API-644")
async def test_limits_are_read_and_not_changed() -> None:
    async with resource_cloud(identity_quotas=True) as cloud:
        cloud.identity.unified = {None: REGISTERED, PROJECT: {"servers": 2}}
        expected = {
            "instances": 2, "cores": 6, "ram": 4096, "metadata_items": 7, "key_pairs": 8, "server_groups": 9,
            "server_group_members": 10,
        }
        put = await cloud.put(SET, {"quota_set": {"cores": 99}}, version="2.57", as_="admin")
        assert (put.status_code, put.json()) == (200, {"quota_set": expected})
        assert (await cloud.put(SET, {"quota_set": {"nonsense": 1}}, version="2.57", as_="admin")).status_code == 400
        shown = await cloud.get(SET, version="2.57", as_="reader")
        assert shown.json() == {"quota_set": expected | {"id": PROJECT}}
        detail = (await cloud.get(f"{SET}/detail", version="2.57")).json()["quota_set"]
        assert detail["cores"] == {"limit": 6, "in_use": 0, "reserved": 0}
        defaults = (await cloud.get(f"{SET}/defaults", version="2.57")).json()["quota_set"]
        assert defaults == expected | {"id": PROJECT, "instances": 5}
        old = (await cloud.get(SET)).json()["quota_set"]
        assert (old["injected_files"], old["injected_file_content_bytes"], old["floating_ips"]) == (3, -1, -1)
        answer = await cloud.delete(SET, as_="admin")
        assert (answer.status_code, answer.content) == (202, b"")
        put = await cloud.put(CLASS, {"quota_class_set": {"cores": 99}}, version="2.57", as_="admin")
        assert put.json() == {"quota_class_set": expected | {"instances": 5}}
        assert (await cloud.get(CLASS, version="2.57", as_="admin")).json()["quota_class_set"]["cores"] == 6
        limits = (await cloud.get("/limits")).json()["limits"]["absolute"]
        assert (limits["maxTotalInstances"], limits["maxTotalCores"]) == (2, 6)


@pytest.mark.spec("API-644")
async def test_limits_hold() -> None:
    async with resource_cloud(identity_quotas=True) as cloud:
        assert (await create(cloud)).status_code == 403, "nobody has said how many servers there may be"
        cloud.identity.unified = {None: {"servers": 1}}
        assert (await create(cloud)).status_code == 202
        refused = await create(cloud)
        assert refused.status_code == 403
        assert "instances" in refused.json()["forbidden"]["message"]
        cloud.identity.unified = {None: {"servers": 1}, PROJECT: {"servers": -1}}
        assert (await create(cloud)).status_code == 202


@pytest.mark.spec("API-059", "API-644")
async def test_disks_on_hosts_have_a_limit_there() -> None:
    async with resource_cloud(identity_quotas=True) as cloud:
        cloud.identity.unified = {None: {"servers": -1, "class:DISK_GB": 1}}
        assert (await create(cloud)).status_code == 202
        refused = await create(cloud)
        assert (refused.status_code, refused.json()["forbidden"]["message"]) == (
            403, "Quota exceeded for disk: Requested 1, but already used 1 of 1 disk")
        cloud.identity.unified = {None: {"servers": -1}}
        assert (await create(cloud)).status_code == 202, "a limit that is not registered is none"
