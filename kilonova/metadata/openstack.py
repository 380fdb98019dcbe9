"""The OpenStack tree, served by the metadata service and written on config drives."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.network_data import network_data

VERSIONS = (
    "2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06", "2017-02-22",
    "2018-08-27", "2020-10-14",
)  # fmt: skip
LATEST = VERSIONS[-1]
PASSWORD = "password"
"""Where a guest posts the password it has made, encrypted. A place of the service, never a file."""

VENDOR_DATA, DYNAMIC_VENDOR_DATA = "vendor_data.json", "vendor_data2.json"

SINCE = {
    "meta_data.json": "2012-08-10",
    "user_data": "2012-08-10",
    PASSWORD: "2013-04-04",
    VENDOR_DATA: "2013-10-17",
    "network_data.json": "2015-10-15",
    DYNAMIC_VENDOR_DATA: "2016-10-06",
}
"""Each document and the version that brought it."""
SINCE_RANDOM_SEED = "2013-04-04"
SINCE_PROJECT = "2015-10-15"
SINCE_DEVICES = "2016-06-30"
SINCE_DEDICATED_CPUS = "2020-10-14"
SEED_BYTES = 512

Random = Callable[[int], bytes]
"""Gives that many random bytes."""


class VendorDocuments(msgspec.Struct, frozen=True):
    """What the operator tells a guest. static: `vendor_data.json`. dynamic: `vendor_data2.json`."""

    static: dict[str, Any] = {}
    dynamic: dict[str, Any] = {}


class Key(msgspec.Struct, frozen=True):
    name: str
    type: str
    data: str


class ContentFile(msgspec.Struct, frozen=True):
    """A file to be put into the guest. content_path is below the tree's own root."""

    content_path: str
    path: str


class DiskDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A disk that the user named with a tag; the guest finds a volume by its serial number, which is left out of other
    disks."""

    type: str = "disk"
    bus: str = "none"
    address: str = "none"
    serial: str | msgspec.UnsetType
    path: str
    tags: list[str]


class NetworkDevice(msgspec.Struct, frozen=True, kw_only=True):
    """An interface that the user named with a tag; the guest finds it by its MAC address."""

    type: str = "nic"
    bus: str = "none"
    address: str = "none"
    mac: str
    tags: list[str]


class MetaData(msgspec.Struct, frozen=True, kw_only=True):
    """`meta_data.json`. What is unset is left out."""

    uuid: str
    name: str
    hostname: str
    launch_index: int
    availability_zone: str
    meta: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    public_keys: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    keys: list[Key] | msgspec.UnsetType = msgspec.UNSET
    files: list[ContentFile] | msgspec.UnsetType = msgspec.UNSET
    admin_pass: str | msgspec.UnsetType = msgspec.UNSET
    random_seed: str | msgspec.UnsetType = msgspec.UNSET
    project_id: str | msgspec.UnsetType = msgspec.UNSET
    devices: list[NetworkDevice | DiskDevice] | msgspec.UnsetType = msgspec.UNSET
    dedicated_cpus: list[int] | msgspec.UnsetType = msgspec.UNSET


def documents(metadata: GuestMetadata, version: str) -> list[str]:
    """Names of the documents that this version has for this guest."""
    return [
        name
        for name, since in SINCE.items()
        if since <= version and (name != "user_data" or metadata.user_data is not None)
    ]


def document(metadata: GuestMetadata, version: str, name: str, random: Random, vendor: VendorDocuments) -> bytes:
    """One document by a name that `documents` gave."""
    match name:
        case "meta_data.json":
            return msgspec.json.encode(meta_data(metadata, version, random))
        case "network_data.json":
            return msgspec.json.encode(network_data(metadata.vifs))
        case "user_data":
            return base64.b64decode(metadata.user_data or "")
        case "vendor_data.json":
            return msgspec.json.encode(vendor.static)
        case "vendor_data2.json":
            return msgspec.json.encode(vendor.dynamic)
        case "password":
            return metadata.told_password.encode()
        case _:
            return b""


def meta_data(metadata: GuestMetadata, version: str, random: Random) -> MetaData:
    """What every reader may see: no password and no injected files, which travel on the config drive."""
    unset = msgspec.UNSET
    tagged: list[NetworkDevice | DiskDevice] = [
        NetworkDevice(mac=vif.mac, tags=[vif.tag]) for vif in metadata.vifs if vif.tag
    ]
    tagged += [
        DiskDevice(serial=disk.serial or unset, path=disk.device_name, tags=[disk.tag]) for disk in metadata.disks
    ]
    keys = [Key(name, _key_type(data), data) for name, data in metadata.keys.items()]
    return MetaData(
        uuid=metadata.instance_uuid,
        name=metadata.name,
        hostname=metadata.hostname,
        launch_index=metadata.launch_index,
        availability_zone=metadata.availability_zone,
        meta=metadata.metadata or unset,
        public_keys=metadata.keys or unset,
        keys=keys or unset,
        random_seed=base64.b64encode(random(SEED_BYTES)).decode() if version >= SINCE_RANDOM_SEED else unset,
        project_id=metadata.project_id if version >= SINCE_PROJECT else unset,
        devices=tagged if version >= SINCE_DEVICES else unset,
        dedicated_cpus=[] if version >= SINCE_DEDICATED_CPUS else unset,
    )


def _key_type(data: str) -> str:
    return "x509" if data.startswith("-----BEGIN CERTIFICATE") else "ssh"
