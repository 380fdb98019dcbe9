"""Bodies of requests on servers. Spec: API-610 to API-614, API-616, API-618."""

from __future__ import annotations

from kilonova.api.compute.field_types import (
    ADDRESS,
    BASE64,
    DESCRIPTION,
    DISK_CONFIG,
    FULL_HOSTNAME,
    HOST,
    HOSTNAME,
    IPV4,
    IPV6,
    METADATA,
    NAME,
    POSITIVE,
    TAG,
    USER_DATA,
    UUID,
)
from kilonova.api.schema import (
    Anything,
    Boolean,
    Enum,
    Fields,
    Integer,
    ListOf,
    Object,
    OneOf,
    Text,
    nullable,
    optional,
    required,
)

TRUSTED_CERTIFICATES = nullable(ListOf(Text(1, 255), 1, 50, unique=True))
HOSTNAMES = (optional(HOSTNAME, since=90, until=93), optional(FULL_HOSTNAME, since=94))

_DEVICE_TAG = (optional(TAG, since=32, until=36), optional(TAG, since=42))

_NETWORK_FIELDS: Fields = {
    "uuid": (optional(Text(), until=36), optional(UUID, since=37)),
    "port": optional(nullable(UUID)),
    "fixed_ip": optional(ADDRESS),
    "tag": _DEVICE_TAG,
}
_NETWORKS = ListOf(Object(_NETWORK_FIELDS))

_PERSONALITY = ListOf(Object({"path": required(Text()), "contents": required(BASE64)}))
_BLOCK_DEVICE_NAME = nullable(Text(0, 255, r"\S*"))
MOST_BLOCK_DEVICES = 255
_SIZE = OneOf(Integer(1), Enum("", None))

_BLOCK_DEVICE = Object({
    "source_type": required(Enum("volume", "image", "snapshot", "blank")),
    "destination_type": optional(Enum("local", "volume")),
    "uuid": optional(nullable(Text(1, 255, r"[a-zA-Z0-9._-]*"))),
    "image_id": optional(UUID),
    "volume_id": optional(UUID),
    "snapshot_id": optional(UUID),
    "boot_index": optional(OneOf(Integer(None), Enum(None, "None"))),
    "volume_size": optional(_SIZE),
    "delete_on_termination": optional(Boolean()),
    "device_name": optional(_BLOCK_DEVICE_NAME),
    "device_type": optional(nullable(Text(0, 255))),
    "disk_bus": optional(nullable(Text(0, 255))),
    "guest_format": optional(nullable(Text(0, 255))),
    "virtual_name": optional(Text(1, 255)),
    "connection_info": optional(Text(1, 255)),
    "no_device": optional(Anything()),
    "tag": (optional(TAG, since=32, until=32), optional(TAG, since=42)),
    "volume_type": optional(nullable(Text(0, 255)), since=67),
})

_LEGACY_BLOCK_DEVICE = Object({
    "virtual_name": optional(Text(0, 255)),
    "volume_id": optional(UUID),
    "snapshot_id": optional(UUID),
    "volume_size": optional(_SIZE),
    "device_name": optional(_BLOCK_DEVICE_NAME),
    "delete_on_termination": optional(Boolean()),
    "no_device": optional(Anything()),
    "connection_info": optional(Text(0, 255)),
})

_UUIDS = OneOf(UUID, ListOf(UUID))
HINTS = Object(
    {
        "group": optional(UUID),
        "different_host": optional(_UUIDS),
        "same_host": optional(_UUIDS),
        "query": optional(OneOf(Text(), Object({}, others=Anything()))),
        "target_cell": optional(NAME),
        "different_cell": optional(OneOf(Text(), ListOf(Text()))),
        "build_near_host_ip": optional(ADDRESS),
        "cidr": optional(Text(pattern=r"/[0-9a-f.:]+")),
    },
    others=Anything(),
)

SERVER_TO_CREATE = Object({
    "name": required(NAME),
    "flavorRef": required(OneOf(Text(1), Integer(0))),
    "imageRef": optional(OneOf(UUID, Enum(""))),
    "adminPass": optional(Text()),
    "metadata": optional(METADATA),
    "networks": (
        optional(_NETWORKS, until=36),
        required(OneOf(_NETWORKS, Enum("none", "auto")), since=37),
    ),
    "security_groups": optional(ListOf(Object({"name": optional(Text(1, 255))}, others=Anything()))),
    "availability_zone": optional(NAME),
    "key_name": optional(NAME),
    "config_drive": optional(Boolean()),
    "user_data": optional(USER_DATA),
    "personality": optional(_PERSONALITY, until=56),
    "OS-DCF:diskConfig": optional(DISK_CONFIG),
    "accessIPv4": optional(IPV4),
    "accessIPv6": optional(IPV6),
    "min_count": optional(POSITIVE),
    "max_count": optional(POSITIVE),
    "return_reservation_id": optional(Boolean()),
    "block_device_mapping": optional(ListOf(_LEGACY_BLOCK_DEVICE, 0, MOST_BLOCK_DEVICES)),
    "block_device_mapping_v2": optional(ListOf(_BLOCK_DEVICE, 0, MOST_BLOCK_DEVICES)),
    "description": optional(DESCRIPTION, since=19),
    "tags": optional(ListOf(TAG, 0, 50), since=52),
    "trusted_image_certificates": optional(TRUSTED_CERTIFICATES, since=63),
    "host": optional(HOST, since=74),
    "hypervisor_hostname": optional(HOST, since=74),
    "hostname": HOSTNAMES,
})

CREATE = Object({
    "server": required(SERVER_TO_CREATE),
    "os:scheduler_hints": optional(HINTS),
    "OS-SCH-HNT:scheduler_hints": optional(HINTS),
})

UPDATE = Object({
    "server": required(Object({
        "name": optional(NAME),
        "OS-DCF:diskConfig": optional(DISK_CONFIG),
        "accessIPv4": optional(IPV4),
        "accessIPv6": optional(IPV6),
        "description": optional(DESCRIPTION, since=19),
        "hostname": HOSTNAMES,
        "pinned_availability_zone": optional(nullable(NAME), since=104),
    })),
})

REBUILD = Object({
    "imageRef": required(UUID),
    "name": optional(NAME),
    "adminPass": optional(Text()),
    "metadata": optional(METADATA),
    "preserve_ephemeral": optional(Boolean()),
    "OS-DCF:diskConfig": optional(DISK_CONFIG),
    "accessIPv4": optional(IPV4),
    "accessIPv6": optional(IPV6),
    "personality": optional(_PERSONALITY, until=56),
    "description": optional(DESCRIPTION, since=19),
    "key_name": optional(nullable(NAME), since=54),
    "user_data": optional(nullable(USER_DATA), since=57),
    "trusted_image_certificates": optional(TRUSTED_CERTIFICATES, since=63),
    "hostname": HOSTNAMES,
})
