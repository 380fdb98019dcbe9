"""How servers look in answers. Spec: API-401 to API-452, API-460, API-461."""

from __future__ import annotations

from kilonova.api.answers import (
    BOOLEAN,
    INTEGER,
    LINKS,
    MICROSECONDS,
    SECONDS,
    STRING,
    STRING_OR_NULL,
    STRINGS,
    TIME_OR_NULL,
    UUID,
    VALUE,
    Fields,
    mapping,
    page,
    shown,
)
from kilonova.api.schema import Enum, ListOf, Object, OneOf, nullable, optional, required

_STATUSES = Enum(
    "ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD",
    "RESCUE", "RESIZE", "REVERT_RESIZE", "SHELVED", "SHELVED_OFFLOADED", "SHUTOFF", "SOFT_DELETED", "SUSPENDED",
    "UNKNOWN", "VERIFY_RESIZE",
)
_BASIC_ADDRESS = {"version": Enum(4, 6), "addr": STRING}
_BASIC_ADDRESSES = mapping(ListOf(shown(_BASIC_ADDRESS)))
_ADDRESSES = mapping(ListOf(shown({
    **_BASIC_ADDRESS, "OS-EXT-IPS:type": Enum("fixed", "floating"), "OS-EXT-IPS-MAC:mac_addr": STRING,
})))
_IMAGE = OneOf(Enum(""), shown({"id": STRING, "links": LINKS, "properties": required(STRINGS, since=98)}))
_LINKED_FLAVOR = shown({"id": STRING, "links": LINKS})
_EMBEDDED_FLAVOR = shown({
    "vcpus": INTEGER, "ram": INTEGER, "disk": INTEGER, "ephemeral": INTEGER, "swap": INTEGER,
    "original_name": STRING, "extra_specs": optional(STRINGS),
})
_FAULT = shown({"code": INTEGER, "created": SECONDS, "message": STRING, "details": optional(STRING)})

_BASIC: Fields = {
    "id": UUID, "name": STRING, "status": _STATUSES, "tenant_id": STRING, "user_id": STRING, "created": SECONDS,
    "updated": SECONDS, "hostId": STRING, "accessIPv4": STRING, "accessIPv6": STRING, "image": _IMAGE,
    "flavor": (required(_LINKED_FLAVOR, until=46), required(_EMBEDDED_FLAVOR, since=47)),
    "links": LINKS, "metadata": STRINGS, "OS-DCF:diskConfig": Enum("AUTO", "MANUAL"),
    "progress": optional(INTEGER), "fault": optional(_FAULT),
    "locked": required(BOOLEAN, since=9),
    "description": required(STRING_OR_NULL, since=19),
    "tags": required(ListOf(STRING), since=26),
    "trusted_image_certificates": required(nullable(ListOf(STRING)), since=63),
    "locked_reason": required(STRING_OR_NULL, since=73),
}
_GROUPS: Fields = {"server_groups": required(ListOf(UUID), since=71)}
_ATTRIBUTE = "OS-EXT-SRV-ATTR:"
_FULL: Fields = {
    "addresses": _ADDRESSES, "key_name": STRING_OR_NULL, "config_drive": Enum("", "True"),
    "security_groups": optional(ListOf(shown({"name": STRING}))),
    "OS-EXT-AZ:availability_zone": STRING,
    f"{_ATTRIBUTE}host": optional(STRING_OR_NULL),
    f"{_ATTRIBUTE}hypervisor_hostname": optional(STRING_OR_NULL),
    f"{_ATTRIBUTE}instance_name": optional(STRING),
    f"{_ATTRIBUTE}hostname": optional(STRING, since=3, required_since=90),
    f"{_ATTRIBUTE}reservation_id": optional(STRING, since=3),
    f"{_ATTRIBUTE}launch_index": optional(INTEGER, since=3),
    f"{_ATTRIBUTE}kernel_id": optional(STRING, since=3),
    f"{_ATTRIBUTE}ramdisk_id": optional(STRING, since=3),
    f"{_ATTRIBUTE}root_device_name": optional(STRING_OR_NULL, since=3),
    f"{_ATTRIBUTE}user_data": optional(STRING_OR_NULL, since=3),
    "OS-EXT-STS:vm_state": STRING,
    "OS-EXT-STS:task_state": STRING_OR_NULL,
    "OS-EXT-STS:power_state": Enum(0, 1, 3, 4, 6, 7),
    "OS-SRV-USG:launched_at": TIME_OR_NULL,
    "OS-SRV-USG:terminated_at": TIME_OR_NULL,
    "os-extended-volumes:volumes_attached": ListOf(
        shown({"id": UUID, "delete_on_termination": required(BOOLEAN, since=3)})
    ),
    "host_status": optional(Enum("", "DOWN", "MAINTENANCE", "UNKNOWN", "UP"), since=16),
    "pinned_availability_zone": required(STRING_OR_NULL, since=96),
    "scheduler_hints": required(nullable(mapping(VALUE)), since=100),
}
_UNREACHABLE: Fields = {"id": UUID, "status": Enum("UNKNOWN"), "links": LINKS}

REDUCED = shown({**_BASIC, **_GROUPS, "addresses": _BASIC_ADDRESSES})
FULL = shown({**_BASIC, **_FULL, **_GROUPS})
_OUTLINE = shown({
    **_UNREACHABLE, "tenant_id": STRING, "created": SECONDS, "user_id": STRING,
    "image": OneOf(Enum("", "UNKNOWN"), shown({"id": STRING, "links": LINKS})),
    "flavor": OneOf(Enum("UNKNOWN"), _EMBEDDED_FLAVOR), "OS-EXT-AZ:availability_zone": STRING,
    "OS-EXT-STS:power_state": Enum(0), **_GROUPS,
})
SHOW = shown({"server": (required(FULL, until=68), required(OneOf(FULL, _OUTLINE), since=69))})
UPDATE = shown({"server": (required(REDUCED, until=74), required(FULL, since=75))})
LIST = page(
    "servers", OneOf(shown({"id": UUID, "name": STRING, "links": LINKS}), shown(_UNREACHABLE)), "servers_links"
)
DETAIL = page(
    "servers",
    OneOf(shown({**_BASIC, **_FULL}), shown({**_UNREACHABLE, "tenant_id": STRING, "created": SECONDS})),
    "servers_links",
)
CREATE = OneOf(
    shown({"server": shown({
        "id": UUID, "links": LINKS, "OS-DCF:diskConfig": Enum("AUTO", "MANUAL"),
        "security_groups": ListOf(shown({"name": STRING})), "adminPass": optional(STRING),
    })}),
    shown({"reservation_id": STRING}),
)

_MIGRATION = shown({
    "id": INTEGER, "uuid": required(UUID, since=59), "server_uuid": UUID, "status": STRING,
    **dict.fromkeys(("source_compute", "source_node", "dest_compute", "dest_node", "dest_host"), STRING_OR_NULL),
    **{f"{of}_{what}_bytes": nullable(INTEGER) for of in ("memory", "disk")
       for what in ("total", "processed", "remaining")},
    "created_at": MICROSECONDS, "updated_at": TIME_OR_NULL, "user_id": required(STRING_OR_NULL, since=80),
    "project_id": required(STRING_OR_NULL, since=80),
})
MIGRATIONS = shown({"migrations": ListOf(_MIGRATION)})
MIGRATION = shown({"migration": _MIGRATION})
ADDRESSES = shown({"addresses": _BASIC_ADDRESSES})
NETWORK_ADDRESSES = _BASIC_ADDRESSES
METADATA = shown({"metadata": STRINGS})
META = shown({"meta": STRINGS})
TAGS = shown({"tags": ListOf(STRING)})
ADMIN_PASSWORD = shown({"adminPass": optional(STRING)})
"""It is left out where passwords are not told."""
CONSOLE_OUTPUT = shown({"output": STRING})
OWN_DIAGNOSTICS = mapping(VALUE)
_COUNT = nullable(INTEGER)
DIAGNOSTICS = shown({
    "state": STRING, "driver": STRING, "hypervisor": STRING_OR_NULL, "hypervisor_os": STRING_OR_NULL,
    "uptime": _COUNT, "config_drive": BOOLEAN, "num_cpus": INTEGER, "num_nics": INTEGER, "num_disks": INTEGER,
    "memory_details": shown({"maximum": _COUNT, "used": _COUNT}),
    "cpu_details": ListOf(shown({"id": _COUNT, "time": _COUNT, "utilisation": _COUNT})),
    "nic_details": ListOf(shown({
        "mac_address": STRING_OR_NULL,
        **{f"{way}_{what}": _COUNT for way in ("rx", "tx") for what in ("octets", "errors", "drop", "packets", "rate")},
    })),
    "disk_details": ListOf(shown({
        "read_bytes": _COUNT, "read_requests": _COUNT, "write_bytes": _COUNT, "write_requests": _COUNT,
        "errors_count": _COUNT,
    })),
})
GUEST_PASSWORD = shown({"password": STRING})

_ACTION: Fields = {
    "action": STRING, "instance_uuid": UUID, "request_id": STRING, "user_id": STRING_OR_NULL,
    "project_id": STRING_OR_NULL, "start_time": MICROSECONDS, "message": STRING_OR_NULL,
    "updated_at": required(TIME_OR_NULL, since=58),
}
_EVENT = shown({
    "event": STRING, "start_time": TIME_OR_NULL, "finish_time": TIME_OR_NULL, "result": STRING_OR_NULL,
    "traceback": optional(STRING_OR_NULL),
    "hostId": required(STRING, since=62),
    "host": optional(STRING_OR_NULL, since=62),
    "details": optional(STRING_OR_NULL, since=84),
})
ACTIONS: Object = page("instanceActions", shown(_ACTION), "links")
ACTION = shown({"instanceAction": shown({**_ACTION, "events": optional(ListOf(_EVENT), required_since=51)})})
