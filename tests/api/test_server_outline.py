"""A server whose cell does not answer is shown as far as the rest of the cloud knows it."""

from collections.abc import AsyncIterator

import pytest
from compute_cloud import CIRROS, OTHER_PROJECT, PROJECT, link
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.db import build_requests
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance, RequestSpec


@pytest.fixture
async def cells() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        yield running


async def remember(cloud: ResourceCloud, server: Instance, image: str = CIRROS) -> None:
    """The request spec, as it is kept beside the cells."""
    spec = RequestSpec(instance_uuid=server.uuid, project_id=server.project_id, user_id="creator",
                       flavor=server.flavor, image=Image(id=image), availability_zone="east")
    await cloud.cells.api.write(lambda conn: conn.execute(
        build_requests.request_specs.insert(), {"uuid": server.uuid, "body": spec}))


@pytest.mark.spec("API-452", "API-569")
async def test_what_is_known(cells: ResourceCloud) -> None:
    server = await cells.boot()
    await remember(cells, server)
    cells.silence(0)
    path = f"/servers/{server.uuid}"
    shown = (await cells.get(path, version="2.71", as_="reader")).json()["server"]
    assert link(shown, "self") == f"http://cloud.test/compute/v2.1{path}"
    del shown["links"]
    assert shown == {
        "id": server.uuid, "status": "UNKNOWN", "tenant_id": PROJECT, "created": "2023-11-14T22:13:20Z",
        "user_id": "creator", "OS-EXT-AZ:availability_zone": "east", "OS-EXT-STS:power_state": 0, "server_groups": [],
        "image": {"id": CIRROS, "links": [
            {"rel": "bookmark", "href": f"http://cloud.test/compute/images/{CIRROS}"}]},
        "flavor": {"vcpus": 1, "ram": 512, "disk": 1, "ephemeral": 0, "swap": 0, "original_name": "tiny",
                   "extra_specs": {"hw:cpu_policy": "shared"}},
    }
    assert "server_groups" not in (await cells.get(path, version="2.69")).json()["server"]


@pytest.mark.spec("API-452")
async def test_what_is_not_known(cells: ResourceCloud) -> None:
    server, volume_backed = await cells.boot(), await cells.boot()
    await remember(cells, volume_backed, image="")
    cells.silence(0)
    shown = (await cells.get(f"/servers/{server.uuid}", version="2.69")).json()["server"]
    assert {shown[key] for key in ("image", "flavor", "user_id", "OS-EXT-AZ:availability_zone")} == {"UNKNOWN"}
    assert (await cells.get(f"/servers/{volume_backed.uuid}", version="2.69")).json()["server"]["image"] == ""


@pytest.mark.spec("API-452", "API-042", "API-569")
async def test_who_is_told(cells: ResourceCloud) -> None:
    server, elsewhere = await cells.boot(), await cells.boot(project_id=OTHER_PROJECT)
    cells.silence(0)
    assert (await cells.get(f"/servers/{server.uuid}", version="2.68")).status_code == 503
    assert (await cells.get(f"/servers/{server.uuid}", version="2.69", as_="nobody")).status_code == 403
    assert (await cells.get(f"/servers/{elsewhere.uuid}", version="2.69")).status_code == 404
    assert (await cells.get(f"/servers/{elsewhere.uuid}", version="2.69", as_="admin")).status_code == 200
    assert (await cells.get(f"/servers/{PROJECT}", version="2.69")).status_code == 404
