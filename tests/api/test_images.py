"""Images and their properties as old clients ask the Compute API for them."""

from typing import Any

import pytest
from compute_cloud import CIRROS, PROJECT, ComputeCloud, compute_cloud, link

from kilonova.api.compute.quota_check import Limits
from kilonova.domain.image import Image

SERVER = "99999999-9999-4999-8999-999999999999"
TIME = "2023-11-14T22:13:20Z"


def own(cloud: ComputeCloud, **fields: Any) -> Image:
    return cloud.images.add(**{
        "name": "mine", "owner": PROJECT, "visibility": "private", "created_at": TIME, "updated_at": TIME, **fields})


@pytest.mark.spec("API-266", "API-009")
async def test_list(cloud: ComputeCloud) -> None:
    mine = own(cloud)
    own(cloud, owner="someone")
    found = (await cloud.get("/images", as_="reader", version="2.35")).json()["images"]
    assert [(image["id"], image["name"]) for image in found] == [(CIRROS, "cirros"), (mine.id, "mine")]
    assert set(found[0]) == {"id", "name", "links"}
    assert link(found[0], "self") == f"http://cloud.test/compute/v2.1/images/{CIRROS}"
    assert link(found[0], "bookmark") == f"http://cloud.test/compute/images/{CIRROS}"
    assert link(found[0], "alternate") == f"http://cloud.test/compute/images/{CIRROS}"


@pytest.mark.spec("API-267", "API-268", "API-474")
async def test_details(cloud: ComputeCloud) -> None:
    properties = {"instance_uuid": SERVER, "auto_disk_config": "False", "os_distro": "debian"}
    mine = own(cloud, status="queued", size=7, min_ram=64, min_disk=2, properties=properties)
    found = (await cloud.get("/images/detail")).json()["images"]
    image = (await cloud.get(f"/images/{mine.id}")).json()["image"]
    assert image in found
    assert {key: value for key, value in image.items() if key not in ("links", "server")} == {
        "id": mine.id, "name": "mine", "status": "SAVING", "progress": 25, "minRam": 64, "minDisk": 2,
        "metadata": properties, "created": TIME, "updated": TIME, "OS-EXT-IMG-SIZE:size": 7,
        "OS-DCF:diskConfig": "MANUAL",
    }
    assert image["server"]["id"] == SERVER
    assert link(image["server"], "self").endswith(f"/v2.1/servers/{SERVER}")
    public = next(one for one in found if one["id"] == CIRROS)
    assert (public["status"], public["progress"]) == ("ACTIVE", 100)
    assert "server" not in public and "OS-DCF:diskConfig" not in public


@pytest.mark.spec("API-474")
@pytest.mark.parametrize(("theirs", "ours", "progress"), [
    ("saving", "SAVING", 50), ("killed", "ERROR", 0), ("pending_delete", "DELETED", 0), ("deactivated", "UNKNOWN", 0),
])
async def test_statuses(cloud: ComputeCloud, theirs: str, ours: str, progress: int) -> None:
    image = (await cloud.get(f"/images/{own(cloud, status=theirs).id}")).json()["image"]
    assert (image["status"], image["progress"]) == (ours, progress)


@pytest.mark.spec("API-266")
async def test_filters(cloud: ComputeCloud) -> None:
    query = ("name=x&status=active&changes-since=2023-01-01T00:00:00Z&minRam=1&minDisk=2&type=snapshot"
             f"&server=http://cloud.test/v2.1/servers/{SERVER}&property-os=linux&unknown=1")
    assert (await cloud.get(f"/images?{query}")).json() == {"images": []}
    assert cloud.images.filters == [
        ("name", "x"), ("image_type", "snapshot"), ("min_ram", "1"), ("min_disk", "2"), ("status", "in:active"),
        ("updated_at", "gte:2023-01-01T00:00:00Z"), ("instance_uuid", SERVER), ("os", "linux")]
    await cloud.get("/images?status=saving")
    assert cloud.images.filters == [("status", "in:queued,saving,importing,uploading")]
    await cloud.get("/images?status=rain")
    assert cloud.images.filters == [("status", "none")]


@pytest.mark.spec("API-266", "API-047", "API-048", "API-049")
async def test_pages(cloud: ComputeCloud) -> None:
    own(cloud)
    first = (await cloud.get("/images?limit=1")).json()
    assert link({"links": first["images_links"]}, "next").endswith(f"/images?limit=1&marker={CIRROS}")
    assert [i["name"] for i in (await cloud.get(f"/images?limit=1&marker={CIRROS}")).json()["images"]] == ["mine"]
    assert (await cloud.get("/images/detail?limit=0")).json() == {"images": []}
    assert (await cloud.get("/images?marker=x")).status_code == 400
    assert (await cloud.get("/images?limit=x")).status_code == 400


@pytest.mark.spec("API-268", "API-269")
async def test_delete(cloud: ComputeCloud) -> None:
    mine = own(cloud)
    assert (await cloud.delete(f"/images/{CIRROS}")).status_code == 403
    assert (await cloud.delete(f"/images/{mine.id}")).status_code == 204
    for method in ("GET", "DELETE"):
        gone = await cloud.request(method, f"/images/{mine.id}")
        assert (gone.status_code, gone.json()["itemNotFound"]["message"]) == (404, "Image not found.")


@pytest.mark.spec("API-270", "API-271", "API-272", "API-273", "API-274", "API-275")
async def test_properties(cloud: ComputeCloud) -> None:
    path = f"/images/{own(cloud, properties={'a': '1', 'b': '2'}).id}/metadata"
    assert (await cloud.get(path)).json() == {"metadata": {"a": "1", "b": "2"}}
    merged = await cloud.post(path, {"metadata": {"b": "3", "c": "4"}})
    assert merged.json() == {"metadata": {"a": "1", "b": "3", "c": "4"}}
    assert (await cloud.get(f"{path}/b")).json() == {"meta": {"b": "3"}}
    assert (await cloud.put(f"{path}/b", {"meta": {"b": "5"}})).json() == {"meta": {"b": "5"}}
    assert (await cloud.put(f"{path}/b", {"meta": {"c": "5"}})).status_code == 400
    assert (await cloud.delete(f"{path}/a")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await cloud.request(method, f"{path}/a")).status_code == 404
    assert (await cloud.get(path)).json() == {"metadata": {"b": "5", "c": "4"}}
    assert (await cloud.put(path, {"metadata": {"d": "6"}})).json() == {"metadata": {"d": "6"}}
    assert (await cloud.put(path, {"metadata": {"d": 6}})).status_code == 400


@pytest.mark.spec("API-270", "API-271", "API-272", "API-274", "API-275")
async def test_properties_of_others(cloud: ComputeCloud) -> None:
    path, nowhere = f"/images/{CIRROS}/metadata", "/images/x/metadata"
    for where, status in ((path, 403), (nowhere, 404)):
        assert (await cloud.post(where, {"metadata": {}})).status_code == status
        assert (await cloud.put(where, {"metadata": {}})).status_code == status
        assert (await cloud.put(f"{where}/a", {"meta": {"a": "1"}})).status_code == status
    assert (await cloud.get(path)).json() == {"metadata": {}}
    assert (await cloud.get(nowhere)).status_code == 404


@pytest.mark.spec("API-060", "API-271")
async def test_quota_of_properties() -> None:
    async with compute_cloud(limits=Limits(metadata_items=2)) as cloud:
        path = f"/images/{own(cloud, properties={'a': '1', 'b': '2', 'c': '3'}).id}/metadata"
        assert (await cloud.post(path, {"metadata": {"a": "4"}})).status_code == 200
        refused = await cloud.post(path, {"metadata": {"d": "4"}})
        assert (refused.status_code, refused.json()["forbidden"]["message"]) == (403, "Image metadata limit exceeded")


@pytest.mark.spec("API-536", "API-539")
async def test_where_they_end(cloud: ComputeCloud) -> None:
    mine = f"/images/{own(cloud).id}"
    for path, last in (("/images", 35), ("/images/detail", 35), (mine, 35), (f"{mine}/metadata", 38)):
        assert (await cloud.get(path, version=f"2.{last}")).status_code == 200
        assert (await cloud.get(path, version=f"2.{last + 1}")).status_code == 404
