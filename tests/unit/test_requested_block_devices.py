"""Block devices that a server is asked for with: what requests mean, and what is refused."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest

from kilonova.api.compute.block_devices import check_devices, requested_devices, root_image
from kilonova.api.compute.server_schema import SERVER_TO_CREATE
from kilonova.api.schema import Reading
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import InvalidBlockDevice, InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.resources import is_volume_backed

IMAGE, VOLUME, OTHER = (str(uuid.UUID(int=number)) for number in range(1, 4))
SMALL = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1, ephemeral_gib=2, swap_mib=64)
LOCAL = {"source_type": "image", "destination_type": "local", "uuid": IMAGE, "boot_index": 0}
BLANK = {"source_type": "blank", "destination_type": "local"}
BOOT = {"source_type": "volume", "destination_type": "volume", "uuid": VOLUME, "boot_index": 0}
DATA = {**BOOT, "uuid": OTHER, "boot_index": None}


def read(*entries: dict[str, Any], legacy: bool = False, **fields: Any) -> tuple[BlockDevice, ...]:
    """As the create route does, in the newest microversion."""
    form = "block_device_mapping" if legacy else "block_device_mapping_v2"
    body = {"name": "vm", "flavorRef": "1", "networks": "none", form: list(entries), **fields}
    return requested_devices(SERVER_TO_CREATE.read(body, Reading(version=102)))


def only(*entries: dict[str, Any], **fields: Any) -> BlockDevice:
    (found,) = read(*entries, **fields)
    return found


@pytest.mark.spec("API-613", "BDM-30", "BDM-31")
def test_every_place_that_a_disk_can_come_from_and_lie_in() -> None:
    made = {"volume_size": 1, "volume_type": "fast", "boot_index": "0"}
    for source, destination, own, field in (
        ("image", "volume", {"uuid": IMAGE, **made}, "image_id"), ("blank", "volume", made, None),
        ("snapshot", "volume", {"uuid": OTHER, "boot_index": 0}, "snapshot_id"),
        ("volume", "volume", {"uuid": VOLUME, "boot_index": 0}, "volume_id"),
        ("image", "local", {"uuid": IMAGE, "boot_index": 0}, "image_id"),
    ):
        entry = {"source_type": source, "destination_type": destination, **own}
        device = only(entry)
        assert (device.source_type, device.destination_type, device.boot_index) == (source, destination, 0)
        assert is_volume_backed([device]) is device.is_volume is (destination == "volume")
        named = {name: getattr(device, name) for name in ("image_id", "snapshot_id", "volume_id")}
        assert {name: value for name, value in named.items() if value is not None} == (
            {field: own["uuid"]} if field else {})
        assert device.volume_type == own.get("volume_type")
        if field is not None:
            again = only({**{name: value for name, value in entry.items() if name != "uuid"}, field: own["uuid"]})
            assert getattr(again, field) == own["uuid"]
            assert again.uuid != device.uuid


@pytest.mark.spec("API-613")
def test_what_stays_when_its_server_goes() -> None:
    assert not only(BOOT).delete_on_termination
    assert only({**BOOT, "delete_on_termination": "true"}).delete_on_termination
    assert only(LOCAL).delete_on_termination
    assert (only(BOOT).state, only(LOCAL).state) == (AttachState.RESERVED, AttachState.ATTACHED)


@pytest.mark.spec("API-613")
@pytest.mark.parametrize("index", [None, "None", -1, "-1"])
def test_devices_that_are_not_booted_from(index: Any) -> None:
    root, data = read(BOOT, {**DATA, "boot_index": index})
    assert (root.boot_index, data.boot_index) == (0, None)


@pytest.mark.spec("API-613")
@pytest.mark.parametrize(("order", "allowed"), [
    ((0,), True), ((1, 0), True), ((0, None), True), ((1,), False), ((0, 2), False), ((0, 0), False), ((None,), False),
])
@pytest.mark.parametrize("image", ["", IMAGE])
def test_the_order_of_booting(order: tuple[int | None, ...], allowed: bool, image: str) -> None:
    entries = [{**BOOT, "uuid": str(uuid.uuid4()), "boot_index": index} for index in order]
    if allowed or (image and order == (None,)):
        assert [device.boot_index for device in read(*entries, imageRef=image)] == list(order)
        return
    with pytest.raises(InvalidBlockDevice, match="oot"):
        read(*entries, imageRef=image)


@pytest.mark.spec("API-610")
def test_a_volume_to_boot_from_goes_before_the_image_and_another_image_is_refused() -> None:
    body = {"imageRef": IMAGE}
    from_image = {**LOCAL, "destination_type": "volume", "volume_size": 1, "uuid": OTHER}
    assert only(BOOT, imageRef=IMAGE).volume_id == VOLUME
    assert root_image(body, read(from_image, imageRef=IMAGE)) == OTHER
    assert root_image(body, read(DATA, imageRef=IMAGE)) == IMAGE
    assert root_image({}, read(LOCAL)) == IMAGE
    with pytest.raises(InvalidBlockDevice, match="another image"):
        read(LOCAL, imageRef=OTHER)
    with pytest.raises(InvalidInput, match="imageRef"):
        root_image({"imageRef": ""}, ())


@pytest.mark.spec("API-613", "BDM-29", "BDM-30")
@pytest.mark.parametrize(("entry", "named"), [
    ({"source_type": "volume", "uuid": VOLUME}, "destination_type is missing"),
    ({**BOOT, "destination_type": "local"}, "needs destination_type volume"),
    ({**BOOT, "source_type": "snapshot", "destination_type": "local"}, "needs destination_type volume"),
    ({**BOOT, "uuid": None}, "a uuid is needed"), ({**LOCAL, "uuid": None}, "a uuid is needed"),
    ({**BLANK, "uuid": VOLUME}, "a uuid cannot be given"),
    ({**BLANK, "destination_type": "volume"}, "needs its volume_size"),
    ({**LOCAL, "destination_type": "volume", "volume_size": ""}, "needs its volume_size"),
    ({**BOOT, "volume_type": "fast"}, "volumes made at boot"), ({**BLANK, "volume_type": "fast"}, "local"),
    ({**BOOT, "device_type": "lun"}, "not a lun"), ({**BLANK, "device_type": "cdrom"}, "not a cdrom"),
    ({**BLANK, "boot_index": 0}, "blank device"), ({**LOCAL, "boot_index": None}, "image to local"),
    ({**BLANK, "guest_format": "ntfs"}, "guest_format 'ntfs'"),
])
def test_devices_that_cannot_be(entry: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidBlockDevice, match=named) as refusal:
        read(entry, imageRef=IMAGE)
    assert refusal.value.status == 400
    assert refusal.value.message.startswith("Block Device Mapping is Invalid: ")


def test_a_name_and_a_volume_are_there_once() -> None:
    with pytest.raises(InvalidBlockDevice, match="device_name /dev/vdb is asked for twice"):
        read({**BOOT, "device_name": "vdb"}, {**DATA, "device_name": "/dev/vdb"})
    with pytest.raises(InvalidBlockDevice, match=f"volume {VOLUME} is asked for twice"):
        read(BOOT, {**DATA, "uuid": VOLUME})
    with pytest.raises(InvalidBlockDevice, match=f"volume {VOLUME} is asked for twice"):
        read({"volume_id": VOLUME, "device_name": "vda"}, {"volume_id": VOLUME}, legacy=True)


@pytest.mark.spec("API-610")
def test_the_first_form() -> None:
    root, data, copy, disk, swap = read(
        {"volume_id": VOLUME, "device_name": "vda", "delete_on_termination": True}, {"volume_id": OTHER},
        {"snapshot_id": OTHER, "device_name": "/dev/vdc", "volume_size": "2"}, {"virtual_name": "ephemeral3"},
        {"virtual_name": "swap"}, {"no_device": True, "device_name": "vdx"}, legacy=True,
    )
    assert (root.volume_id, root.boot_index, root.device_name, root.delete_on_termination) == (
        VOLUME, 0, "/dev/vda", True)
    assert (data.volume_id, data.boot_index, data.device_name, data.delete_on_termination) == (OTHER, None, None, False)
    assert (copy.source_type, copy.destination_type, copy.snapshot_id, copy.volume_size, copy.boot_index) == (
        "snapshot", "volume", OTHER, 2, None)
    assert [(one.source_type, one.destination_type, one.guest_format) for one in (disk, swap)] == [
        ("blank", "local", None), ("blank", "local", "swap")]


@pytest.mark.spec("API-610")
def test_refusals_of_the_first_form() -> None:
    for entry in ({"device_name": "vdb"}, {"virtual_name": "ami"}, {"virtual_name": "ephemeral"}):
        with pytest.raises(InvalidBlockDevice, match="names no snapshot"):
            read(entry, imageRef=IMAGE, legacy=True)
    with pytest.raises(InvalidBlockDevice, match="Boot sequence"):
        read({"volume_id": VOLUME, "device_name": "vdb"}, legacy=True)
    with pytest.raises(InvalidInput, match="different block_device_mapping syntaxes"):
        read(LOCAL, block_device_mapping=[])


@pytest.mark.spec("API-610")
def test_certificates_are_for_images() -> None:
    assert only(LOCAL, trusted_image_certificates=["c"]).image_id == IMAGE
    assert only(DATA, imageRef=IMAGE, trusted_image_certificates=["c"]).volume_id == OTHER
    with pytest.raises(InvalidInput, match="certificates"):
        read(BOOT, trusted_image_certificates=["c"])


def test_what_is_not_to_be_there() -> None:
    assert read({"no_device": True, "source_type": "blank"}, {"no_device": "x", "source_type": "volume"}) == ()


@pytest.mark.parametrize(("image", "fits"), [
    (Image(id=IMAGE, size=2 << 30), True), (Image(id=IMAGE, size=(2 << 30) + 1), False),
    (Image(id=IMAGE, size=1, virtual_size=3 << 30), False), (Image(id=IMAGE, min_disk=3), False),
])
def test_a_volume_has_room_for_the_image_that_it_is_made_of(image: Image, fits: bool) -> None:
    devices = read({**LOCAL, "destination_type": "volume", "volume_size": 2})
    if fits:
        check_devices(devices, image, SMALL)
        return
    with pytest.raises(InvalidInput, match="too small"):
        check_devices(devices, image, SMALL)


def test_only_the_root_volume_is_compared_with_the_image_of_the_server() -> None:
    other = {**LOCAL, "uuid": OTHER, "destination_type": "volume", "volume_size": 2, "boot_index": -1}
    check_devices(read(LOCAL, other), Image(id=IMAGE, min_disk=3), SMALL)


@pytest.mark.parametrize(("entries", "named"), [
    ([{**BLANK, "guest_format": "swap"}] * 2, "More than one swap"),
    ([{**BLANK, "guest_format": "swap", "volume_size": 65}], "Swap drive requested is larger"),
    ([{**BLANK, "volume_size": 1}, {**BLANK, "volume_size": 2}], "larger than the flavor allows"),
    ([{**DATA, "disk_bus": "scuzzy"}], "disk_bus"), ([{**DATA, "disk_bus": "ide"}], "hw_machine_type"),
])
def test_devices_that_the_flavor_or_the_guest_cannot_have(entries: list[dict[str, Any]], named: str) -> None:
    devices = read(LOCAL, *entries)
    with pytest.raises(InvalidInput, match=named):
        check_devices(devices, Image(id=IMAGE), SMALL)
    larger = msgspec.structs.replace(SMALL, ephemeral_gib=3, swap_mib=65)
    if "larger" in named:
        check_devices(devices, Image(id=IMAGE), larger)
