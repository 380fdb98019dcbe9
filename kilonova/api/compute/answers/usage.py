"""How usage, its audit and external events look in answers. Spec: API-467 to API-469, API-473."""

from __future__ import annotations

from kilonova.api.answers import (
    INTEGER,
    LINKS,
    MICROSECONDS,
    NUMBER,
    STRING,
    TIME_OR_NULL,
    UUID,
    Fields,
    Shown,
    mapping,
    page,
    shown,
)
from kilonova.api.schema import Enum, ListOf, OneOf, nullable, optional

_SERVER = shown({
    "instance_id": UUID, "name": STRING, "tenant_id": STRING, "flavor": STRING, "hours": NUMBER,
    "memory_mb": INTEGER, "vcpus": INTEGER, "local_gb": INTEGER, "started_at": MICROSECONDS,
    "ended_at": TIME_OR_NULL, "state": STRING, "uptime": INTEGER,
})
_TENANT: Fields = {
    "tenant_id": STRING, "start": MICROSECONDS, "stop": MICROSECONDS, "total_hours": NUMBER,
    "total_vcpus_usage": NUMBER, "total_memory_mb_usage": NUMBER, "total_local_gb_usage": NUMBER,
}
TENANTS = page(
    "tenant_usages", shown({**_TENANT, "server_usages": optional(ListOf(_SERVER))}), "tenant_usages_links"
)
TENANT = shown({
    "tenant_usage": OneOf(shown({**_TENANT, "server_usages": ListOf(_SERVER)}), shown({})),
    "tenant_usage_links": optional(LINKS),
})

_SPACED_TIME = Shown(type="string", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}$")
_AUDIT = shown({
    "period_beginning": _SPACED_TIME, "period_ending": _SPACED_TIME, "num_hosts": INTEGER,
    "num_hosts_done": INTEGER, "num_hosts_running": INTEGER, "num_hosts_not_run": INTEGER,
    "hosts_not_run": ListOf(STRING), "total_instances": INTEGER, "total_errors": INTEGER, "overall_status": STRING,
    "log": mapping(shown({"state": STRING, "instances": INTEGER, "errors": INTEGER, "message": STRING})),
})
AUDIT_LOGS = shown({"instance_usage_audit_logs": _AUDIT})
AUDIT_LOG = shown({"instance_usage_audit_log": _AUDIT})

EVENTS = page("events", shown({
    "name": STRING, "server_uuid": UUID, "status": Enum("completed", "failed", "in-progress"),
    "tag": optional(STRING), "code": Enum(200, 400, 404, 422),
}))

TOPOLOGY = shown({
    "nodes": ListOf(shown({
        "vcpu_set": ListOf(INTEGER), "siblings": ListOf(ListOf(INTEGER)), "memory_mb": INTEGER,
        "host_node": optional(INTEGER), "cpu_pinning": optional(mapping(INTEGER)),
    })),
    "pagesize_kb": nullable(INTEGER),
})
