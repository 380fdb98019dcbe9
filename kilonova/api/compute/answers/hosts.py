"""How aggregates, zones, services, hypervisors and migrations look. Spec: API-454 to API-456, API-464, API-470."""

from __future__ import annotations

from kilonova.api.answers import (
    BOOLEAN,
    INTEGER,
    LINKS,
    MICROSECONDS,
    STRING,
    STRING_OR_NULL,
    STRINGS,
    TIME_OR_NULL,
    UUID,
    Fields,
    Shown,
    mapping,
    page,
    shown,
)
from kilonova.api.schema import Enum, ListOf, Null, OneOf, nullable, optional, required

_NEW_AGGREGATE: Fields = {
    "id": INTEGER, "name": STRING, "availability_zone": STRING_OR_NULL, "created_at": MICROSECONDS,
    "updated_at": TIME_OR_NULL, "deleted_at": Null(), "deleted": Enum(False), "uuid": required(UUID, since=41),
}
_AGGREGATE = shown({**_NEW_AGGREGATE, "hosts": ListOf(STRING), "metadata": STRINGS})
AGGREGATES = page("aggregates", _AGGREGATE)
AGGREGATE = shown({"aggregate": _AGGREGATE})
NEW_AGGREGATE = shown({"aggregate": shown(_NEW_AGGREGATE)})

_ZONE: Fields = {"zoneName": STRING, "zoneState": shown({"available": BOOLEAN})}
_AGENTS = mapping(mapping(shown({"available": BOOLEAN, "active": BOOLEAN, "updated_at": TIME_OR_NULL})))
ZONES = page("availabilityZoneInfo", shown({**_ZONE, "hosts": Null()}))
ZONES_DETAIL = page("availabilityZoneInfo", shown({**_ZONE, "hosts": nullable(_AGENTS)}))

_ID = (required(INTEGER, until=52), required(UUID, since=53))
_SERVICE = shown({
    "id": _ID, "binary": STRING, "host": STRING, "zone": STRING, "status": Enum("enabled", "disabled"),
    "state": Enum("up", "down"), "updated_at": TIME_OR_NULL, "disabled_reason": STRING_OR_NULL,
    "forced_down": required(BOOLEAN, since=11),
})
_UNREACHABLE = shown({"binary": STRING, "host": STRING, "status": Enum("UNKNOWN")})
SERVICES = page("services", OneOf(_SERVICE, _UNREACHABLE))
SERVICE = shown({"service": _SERVICE})
CHANGED_SERVICE = shown({"service": shown({
    "host": STRING, "binary": STRING, "status": optional(Enum("enabled", "disabled")),
    "disabled_reason": optional(STRING), "forced_down": optional(BOOLEAN, since=11),
})})

OS_HOSTS = page("hosts", shown({"host_name": STRING, "service": STRING, "zone": STRING}))
OS_HOST = shown({"host": ListOf(shown({"resource": shown({
    "host": STRING, "project": STRING, "cpu": INTEGER, "memory_mb": INTEGER, "disk_gb": INTEGER,
})}))})
CHANGED_OS_HOST = shown({"host": STRING, "status": Enum("enabled", "disabled")})

MIGRATIONS = page("migrations", shown({
    "id": INTEGER, "uuid": required(UUID, since=59), "instance_uuid": UUID, "status": STRING,
    "migration_type": required(STRING, since=23), "links": optional(LINKS, since=23),
    **dict.fromkeys(("source_compute", "source_node", "dest_compute", "dest_node", "dest_host"), STRING_OR_NULL),
    "old_instance_type_id": INTEGER, "new_instance_type_id": INTEGER, "created_at": MICROSECONDS,
    "updated_at": TIME_OR_NULL, "user_id": required(STRING_OR_NULL, since=80),
    "project_id": required(STRING_OR_NULL, since=80),
}), "migrations_links")

_SERVERS = ListOf(shown({"name": STRING, "uuid": UUID}))
_BRIEF: Fields = {
    "id": _ID, "hypervisor_hostname": STRING, "state": Enum("up", "down"), "status": Enum("enabled", "disabled"),
}
_FIGURES = (
    "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used", "free_disk_gb",
    "running_vms", "current_workload",
)
_FULL: Fields = {
    **_BRIEF,
    "hypervisor_type": STRING, "hypervisor_version": INTEGER, "host_ip": STRING_OR_NULL,
    "service": shown({"id": _ID, "host": STRING, "disabled_reason": STRING_OR_NULL}),
    "uptime": required(STRING_OR_NULL, since=88),
    "servers": optional(_SERVERS, since=53),
    **{name: required(INTEGER, until=87) for name in _FIGURES},
    "disk_available_least": required(nullable(INTEGER), until=87),
    "cpu_info": (required(STRING, until=27), required(Shown(type="object"), since=28, until=87)),
}
HYPERVISORS = page("hypervisors", shown({**_BRIEF, "servers": optional(_SERVERS)}), "hypervisors_links")
HYPERVISORS_DETAIL = page("hypervisors", shown(_FULL), "hypervisors_links")
HYPERVISOR = shown({"hypervisor": shown(_FULL)})
HYPERVISOR_UPTIME = shown({"hypervisor": shown({**_BRIEF, "uptime": STRING})})
HYPERVISOR_STATISTICS = shown({
    "hypervisor_statistics": shown(dict.fromkeys(("count", "disk_available_least", *_FIGURES), INTEGER))
})
