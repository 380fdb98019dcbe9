"""Rescues and rebuilds of servers that have volumes, or boot from one."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from compute_cloud import CIRROS, ComputeCloud
from known_volumes import KnownVolumes

from kilonova.db import block_devices
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.services.volumes import Volume
from kilonova.shapes.image_disks import ImageDisk, properties_of

VOLUME = "00000000-0000-0000-0000-000000000001"
ROOT = BlockDevice(
    uuid="10000000-0000-0000-0000-000000000001", source_type="volume", destination_type="volume", boot_index=0,
    volume_id=VOLUME, device_name="/dev/vda",
)

SNAPSHOT = ImageDisk(source_type="snapshot", destination_type="volume", boot_index=0, snapshot_id=VOLUME)


def volume(volumes: KnownVolumes, **fields: Any) -> None:
    known = {"id": VOLUME, "status": "in-use", "size": 1, "project_id": "p", "image_metadata": {"image_id": CIRROS}}
    volumes.add(Volume(**known | fields))


async def on_volume(cloud: ComputeCloud, **fields: Any) -> Instance:
    server = await cloud.boot(image=Image(id=""), image_ref="", block_devices=(ROOT,), **fields)
    await cloud.cell.database.write(lambda conn: block_devices.insert(conn, server.uuid, ROOT, now=1.0))
    return server


async def act(cloud: ComputeCloud, server: Instance, version: int, **action: Any) -> httpx.Response:
    return await cloud.post(f"/servers/{server.uuid}/action", action, version=f"2.{version}")


@pytest.mark.spec("API-121", "API-587")
async def test_a_server_on_a_volume_is_rescued_from_287_by_an_image_that_says_how(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    cloud = volume_cloud
    volume(volumes)
    server = await on_volume(cloud)
    stable = cloud.images.add(properties={"hw_rescue_bus": "virtio"})
    answer = await act(cloud, server, 86, rescue={"rescue_image_ref": stable.id})
    assert (answer.status_code, "volume-backed" in answer.text) == (400, True)
    answer = await act(cloud, server, 87, rescue={"rescue_image_ref": CIRROS})
    assert (answer.status_code, "hw_rescue_device" in answer.text) == (400, True)
    assert cloud.compute.asked == []
    answer = await act(cloud, server, 87, rescue={"rescue_image_ref": stable.id})
    assert answer.status_code == 200, answer.text


@pytest.mark.spec("API-121")
async def test_a_server_one_of_whose_volumes_is_not_in_use_is_not_rescued(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    cloud = volume_cloud
    volume(volumes, status="detaching")
    server = await cloud.boot()
    data = BlockDevice(uuid=ROOT.uuid, source_type="volume", destination_type="volume", volume_id=VOLUME)
    await cloud.cell.database.write(lambda conn: block_devices.insert(conn, server.uuid, data, now=1.0))
    answer = await act(cloud, server, 1, rescue=None)
    assert (answer.status_code, "must be in-use" in answer.text) == (409, True)


@pytest.mark.spec("API-126")
async def test_a_server_on_a_volume_is_rebuilt_from_its_own_image_alone(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    cloud = volume_cloud
    volume(volumes)
    server = await on_volume(cloud)
    other = cloud.images.add()
    answer = await act(cloud, server, 92, rebuild={"imageRef": other.id})
    assert (answer.status_code, "different image" in answer.text) == (400, True)
    assert cloud.compute.asked == []
    answer = await act(cloud, server, 92, rebuild={"imageRef": CIRROS})
    assert answer.status_code == 202, answer.text
    request = cloud.compute.asked[-1][2]
    assert (request.after.image, request.after.image_ref) == (server.image, "")


@pytest.mark.spec("API-126", "API-593", "EMV-39")
async def test_since_293_any_image_that_fits_is_written_into_the_root_volume(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    cloud = volume_cloud
    volume(volumes)
    server = await on_volume(cloud)
    large, disks = cloud.images.add(min_disk=2), cloud.images.add(properties=properties_of([SNAPSHOT]))
    for image, why in ((large.id, "too small"), (disks.id, "consists of disks")):
        answer = await act(cloud, server, 93, rebuild={"imageRef": image})
        assert (answer.status_code, why in answer.text) == (400, True)
    answer = await act(cloud, server, 93, rebuild={"imageRef": CIRROS, "trusted_image_certificates": ["one"]})
    assert (answer.status_code, "certificates" in answer.text) == (400, True)
    assert cloud.compute.asked == []
    other = cloud.images.add(properties={"hw_disk_bus": "scsi"})
    for image_id in (other.id, CIRROS):
        answer = await act(cloud, server, 93, rebuild={"imageRef": image_id, "name": "new"})
        assert answer.status_code == 202, answer.text
    (kind, _, request), (_, _, again) = cloud.compute.asked
    assert (kind, request.image_id, again.image_id) == ("rebuild-root-volume", other.id, CIRROS)
    after = request.after
    assert (after.image.id, after.image_ref, after.image.properties) == ("", "", {"hw_disk_bus": "scsi"})
    assert after.system_metadata["image_hw_disk_bus"] == "scsi"
    assert request.changes == {"display_name": "new"}
    assert request.before.image == server.image


async def test_a_server_on_a_volume_needs_no_disk_of_its_flavor_to_be_rebuilt(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    cloud = volume_cloud
    volume(volumes)
    flavor = Flavor(flavor_id="9", name="no-disk", vcpus=1, memory_mib=512, root_gib=0)
    server = await on_volume(cloud, flavor=flavor)
    answer = await act(cloud, server, 93, rebuild={"imageRef": CIRROS})
    assert answer.status_code == 202, answer.text
