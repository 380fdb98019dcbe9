"""POST /servers with volumes: what is asked of the volume service, what the server becomes, and what is refused."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import CIRROS, TINY, ComputeCloud, create
from known_volumes import KnownVolumes

from kilonova.domain.block_device import AttachState
from kilonova.domain.image import Image
from kilonova.domain.instance import BuildRequest
from kilonova.services.volumes import Snapshot, Volume
from kilonova.shapes.image_disks import ImageDisk, properties_of

VOLUME, OTHER, SNAPSHOT = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
KEPT = {"image_id": CIRROS, "image_name": "old", "min_ram": "256", "min_disk": "1", "size": "5", "checksum": "c",
        "disk_format": "qcow2", "container_format": "bare", "hw_disk_bus": "scsi", "os_distro": "cirros"}


def volume(volumes: KnownVolumes, id_: str = VOLUME, **fields: Any) -> dict[str, Any]:
    """A volume, as a block device to boot from."""
    known = {"id": id_, "status": "available", "size": 1, "project_id": "p", "bootable": True, "image_metadata": KEPT}
    volumes.add(Volume(**known | fields))
    return {"source_type": "volume", "destination_type": "volume", "uuid": id_, "boot_index": 0}


def snapshot(volumes: KnownVolumes, **fields: Any) -> dict[str, Any]:
    known = {"id": SNAPSHOT, "volume_id": VOLUME, "project_id": "p", "status": "available", "size": 2}
    volumes.snapshots[SNAPSHOT] = Snapshot(**known | fields)
    return {"source_type": "snapshot", "destination_type": "volume", "uuid": SNAPSHOT, "boot_index": 0}


def of_image(**fields: Any) -> dict[str, Any]:
    return {"source_type": "image", "destination_type": "volume", "uuid": CIRROS, "boot_index": 0, "volume_size": 1,
            **fields}


def blank(**fields: Any) -> dict[str, Any]:
    return {"source_type": "blank", "destination_type": "volume", "volume_size": 1, "boot_index": -1, **fields}


async def made(cloud: ComputeCloud, *devices: dict[str, Any], version: int = 67, **fields: Any) -> BuildRequest:
    answer = await create(cloud, version, block_device_mapping_v2=list(devices), **fields)
    assert answer.status_code == 202, answer.text
    return cloud.compute.created[-1]


async def refused(cloud: ComputeCloud, *devices: dict[str, Any], version: int = 67, code: int = 400,
                  **fields: Any) -> str:
    answer = await create(cloud, version, block_device_mapping_v2=list(devices), **fields)
    assert (answer.status_code, cloud.compute.created) == (code, []), answer.text
    (fault,) = answer.json().values()
    message: str = fault["message"]
    return message


@pytest.mark.spec("API-108", "API-411", "EMG-34")
async def test_a_server_that_boots_from_a_volume(volume_cloud: ComputeCloud, volumes: KnownVolumes) -> None:
    """What its volume keeps of the image it was made from counts as its image, which has no id."""
    request = await made(volume_cloud, volume(volumes), imageRef="")
    instance = request.instance
    assert instance.image is not None
    assert (instance.image_ref, instance.image.id, request.spec.image) == ("", "", instance.image)
    assert (instance.image.name, instance.image.min_ram, instance.image.min_disk) == ("old", 256, 1)
    assert instance.image.properties == {"hw_disk_bus": "scsi", "os_distro": "cirros"}
    assert instance.system_metadata["image_os_distro"] == "cirros"
    shown = (await volume_cloud.get(f"/servers/{instance.uuid}", version="2.98")).json()["server"]
    assert shown["image"] == ""
    assert await refused_by_memory(volume_cloud, volume(volumes, image_metadata={"min_ram": "1024"}))


async def refused_by_memory(cloud: ComputeCloud, *devices: dict[str, Any]) -> bool:
    cloud.compute.created.clear()
    return "memory is too small" in await refused(cloud, *devices)


@pytest.mark.spec("API-108", "API-610")
async def test_where_the_image_of_a_root_volume_is_known_from(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    volume_cloud.images.add(id=CIRROS, name="cirros", properties={"os_distro": "x"})
    volume(volumes)
    of_snapshot = snapshot(volumes)
    for device, name in ((of_snapshot, "old"), (of_image(), "cirros"), (blank(boot_index=0), "")):
        request = await made(volume_cloud, device, imageRef="")
        assert request.instance.image is not None
        assert (request.instance.image.name, request.instance.image.id) == (name, "")
    del volumes.volumes[VOLUME]
    request = await made(volume_cloud, of_snapshot, imageRef=CIRROS)
    assert request.spec.image == Image(id="", disk_format="raw")


@pytest.mark.spec("BDM-12", "BDM-17", "BDM-18", "BDM-19", "BDM-20", "BDM-31")
async def test_volumes_are_named_and_have_uuids_of_their_own(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    await volume_cloud.flavor(msgspec.structs.replace(TINY, flavor_id="d", name="d", ephemeral_gib=1))
    volume(volumes, OTHER)
    other = {"source_type": "volume", "destination_type": "volume", "uuid": OTHER, "device_name": "/dev/vdd"}
    request = await made(volume_cloud, blank(), other, of_image(), blank(disk_bus="scsi"), imageRef="", flavorRef="d")
    devices = request.spec.block_devices
    assert [one.device_name for one in devices] == ["/dev/vdc", "/dev/vdd", "/dev/vda", "/dev/sda"]
    assert {one.state for one in devices} == {AttachState.RESERVED}
    assert request.instance.block_devices == devices
    local = await made(volume_cloud, blank(), other)
    assert [one.device_name for one in local.spec.block_devices] == ["/dev/vdb", "/dev/vdd"]
    await made(volume_cloud, of_image(), imageRef="", min_count=2, max_count=2)
    uuids = [one.uuid for request in volume_cloud.compute.created for one in request.spec.block_devices]
    assert len(set(uuids)) == len(uuids)


async def test_two_volumes_do_not_have_one_name(volume_cloud: ComputeCloud) -> None:
    devices = [blank(device_name="/dev/vdb"), blank(device_name="vdb")]
    assert "asked for twice" in await refused(volume_cloud, *devices)
    many = [blank() for _ in range(27)]
    assert "at most 26 disks" in await refused(volume_cloud, *many, code=403)


@pytest.mark.spec("API-109", "API-059")
async def test_the_root_disk_of_the_flavor_counts_for_nothing(
    volume_cloud: ComputeCloud, volumes: KnownVolumes
) -> None:
    await volume_cloud.flavor(msgspec.structs.replace(TINY, flavor_id="0", name="0", root_gib=0))
    await made(volume_cloud, volume(volumes), flavorRef="0", imageRef="")
    volume_cloud.images.add(id=CIRROS, min_disk=5)
    await volume_cloud.flavor(msgspec.structs.replace(TINY, flavor_id="big", name="big", root_gib=9))
    await made(volume_cloud, of_image(volume_size=5), imageRef="")
    volume_cloud.compute.created.clear()
    for small in (of_image(volume_size=4), of_image(volume_size=4, boot_index=-1)):
        assert "too small for image" in await refused(volume_cloud, small, imageRef=CIRROS, flavorRef="big")


@pytest.mark.spec("API-108", "BDM-34")
@pytest.mark.parametrize(("fields", "message"), [
    ({"status": "in-use"}, "must be available to be attached"), ({"status": "error"}, "must be available"),
    ({"bootable": False}, "is not bootable"),
])
async def test_volumes_that_cannot_be_had(
    volume_cloud: ComputeCloud, volumes: KnownVolumes, fields: dict[str, Any], message: str
) -> None:
    assert message in await refused(volume_cloud, volume(volumes, **fields), imageRef="")


@pytest.mark.spec("API-108")
async def test_sources_that_cannot_be_had(volume_cloud: ComputeCloud, volumes: KnownVolumes) -> None:
    unknown = {"source_type": "volume", "destination_type": "volume", "uuid": OTHER, "boot_index": 0}
    assert await refused(volume_cloud, unknown) == f"Block Device Mapping is Invalid: failed to get volume {OTHER}."
    device = snapshot(volumes)
    assert "2 GiB" in await refused(volume_cloud, {**device, "volume_size": 1})
    assert "is error" in await refused(volume_cloud, snapshot(volumes, status="error"))
    volumes.snapshots.clear()
    assert f"failed to get snapshot {SNAPSHOT}" in await refused(volume_cloud, device)
    data = of_image(uuid=str(uuid.uuid4()), boot_index=-1)
    assert "Can not find requested image" in await refused(volume_cloud, data)
    volumes.away = True
    for one in (unknown, device, blank(), of_image()):
        assert "no volume service" in await refused(volume_cloud, one, code=503)


@pytest.mark.spec("EMG-30")
async def test_an_image_that_consists_of_snapshots(volume_cloud: ComputeCloud, volumes: KnownVolumes) -> None:
    """What the request says of a disk counts for more than what the image says of it."""
    volume(volumes)
    snapshot(volumes)
    disks = [
        ImageDisk(source_type="snapshot", destination_type="volume", snapshot_id=SNAPSHOT, boot_index=0,
                  device_name="/dev/vda", volume_size=2, delete_on_termination=True),
        ImageDisk(source_type="blank", destination_type="volume", volume_size=1, device_name="/dev/vdb"),
    ]
    image = volume_cloud.images.add(properties={**properties_of(disks), "os_distro": "x"}, min_ram=64)
    local = {"source_type": "image", "destination_type": "local", "uuid": image.id, "boot_index": 0}
    for devices in ([], [local]):
        fields = {"block_device_mapping_v2": devices} if devices else {}
        answer = await create(volume_cloud, 67, imageRef=image.id, **fields)
        assert answer.status_code == 202, answer.text
        instance = volume_cloud.compute.created[-1].instance
        assert [(one.snapshot_id, one.boot_index, one.device_name) for one in instance.block_devices] == [
            (SNAPSHOT, 0, "/dev/vda"), (None, None, "/dev/vdb")]
        assert instance.image is not None
        assert (instance.image.id, instance.image.properties) == ("", {"os_distro": "x"})
    larger = blank(device_name="/dev/vdb", volume_size=7)
    request = await made(volume_cloud, local, larger, imageRef=image.id)
    assert [one.volume_size for one in request.instance.block_devices] == [2, 7]
    request = await made(volume_cloud, of_image(device_name="/dev/vda"), imageRef=CIRROS)
    assert [one.source_type for one in request.instance.block_devices] == ["image"]
    volume_cloud.compute.created.clear()
    without_root = volume_cloud.images.add(properties=properties_of(disks[1:]))
    assert "Boot sequence" in await refused(volume_cloud, imageRef=without_root.id)
    volumes.snapshots.clear()
    assert "failed to get snapshot" in await refused(volume_cloud, imageRef=image.id)


@pytest.mark.spec("API-560")
async def test_volumes_that_several_servers_may_have(volume_cloud: ComputeCloud, volumes: KnownVolumes) -> None:
    shared, own = volume(volumes, multiattach=True, status="in-use"), volume(volumes, OTHER)
    assert "2.60" in await refused(volume_cloud, shared, imageRef="", version=59)
    assert "several servers" in await refused(volume_cloud, own, imageRef="", max_count=2)
    await made(volume_cloud, shared, imageRef="", version=60, max_count=2)
    assert len(volume_cloud.compute.created) == 2


async def test_certificates_and_policy(volume_cloud: ComputeCloud, volumes: KnownVolumes) -> None:
    device = volume(volumes)
    assert "certificates" in await refused(
        volume_cloud, device, imageRef="", trusted_image_certificates=["one"])
    answer = await create(volume_cloud, 67, as_="reader", imageRef="", block_device_mapping_v2=[device])
    assert answer.status_code == 403
