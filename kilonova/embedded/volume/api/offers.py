"""What the service says of itself: versions, zones, extensions, filters; and lists of what it does not offer.

Groups, QoS specifications, clusters and taking over foreign volumes are not offered: the lists that clients read at
any rate are empty, and everything else below those paths is not found. Spec: EMI-15, EMI-16, EMI-18, EMI-19.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.errors import NotFound
from kilonova.embedded.http import json_response, root_url
from kilonova.embedded.volume.api import attachments, backups, messages, operators, snapshots, volumes
from kilonova.embedded.volume.api.call import NEWEST, OLDEST, Access, Call, Handler, Method
from kilonova.embedded.volume.new_volumes import ZONE

PUBLIC = r"GET /(v3/?)?$"
"""Calls without a token, below the place of the service."""
UPDATED = "2023-08-31T00:00:00Z"

EXTENSIONS = {
    "backups": "Backups", "capabilities": "Capabilities", "encryption": "VolumeTypeEncryption",
    "os-admin-actions": "AdminActions", "os-availability-zone": "AvailabilityZones",
    "os-extended-services": "ExtendedServices", "os-extended-snapshot-attributes": "ExtendedSnapshotAttributes",
    "os-hosts": "Hosts", "os-quota-class-sets": "QuotaClasses", "os-quota-sets": "Quotas", "os-services": "Services",
    "os-snapshot-actions": "SnapshotActions", "os-types-extra-specs": "TypesExtraSpecs",
    "os-types-manage": "TypesManage", "os-used-limits": "UsedLimits", "os-vol-host-attr": "VolumeHostAttribute",
    "os-vol-image-meta": "VolumeImageMetadata", "os-vol-mig-status-attr": "VolumeMigStatusAttribute",
    "os-vol-tenant-attr": "VolumeTenantAttribute", "os-volume-actions": "VolumeActions",
    "os-volume-encryption-metadata": "VolumeEncryptionMetadata", "os-volume-transfer": "VolumeTransfer",
    "os-volume-type-access": "VolumeTypeAccess", "OS-SCH-HNT": "SchedulerHints",
    "scheduler-stats": "SchedulerStats",
}

EMPTY = (
    ("/qos-specs", "qos_specs", 0, Access.ADMIN), ("/consistencygroups", "consistencygroups", 0, Access.READER),
    ("/consistencygroups/detail", "consistencygroups", 0, Access.READER),
    ("/cgsnapshots", "cgsnapshots", 0, Access.READER), ("/cgsnapshots/detail", "cgsnapshots", 0, Access.READER),
    ("/clusters", "clusters", 7, Access.ADMIN), ("/clusters/detail", "clusters", 7, Access.ADMIN),
    ("/group_types", "group_types", 11, Access.READER), ("/groups", "groups", 13, Access.READER),
    ("/groups/detail", "groups", 13, Access.READER), ("/group_snapshots", "group_snapshots", 14, Access.READER),
    ("/group_snapshots/detail", "group_snapshots", 14, Access.READER),
)
"""Lists of what is not offered: path, name, version that brought it, who may read it."""


def version_routes() -> list[BaseRoute]:
    """The documents that need no token."""
    return [Route("/", _choices), Route("/v3", _versions), Route("/v3/", _versions)]


def methods() -> list[Method]:
    return [
        Method("GET", "/os-availability-zone", _zones),
        Method("GET", "/extensions", _list_extensions),
        Method("GET", "/extensions/{id}", _show_extension),
        Method("GET", "/resource_filters", _resource_filters, since=33),
        *(Method("GET", path, _nothing(name), access, since) for path, name, since, access in EMPTY),
    ]


async def _choices(request: Request) -> Response:
    return json_response(_version_list(request), 300)


async def _versions(request: Request) -> Response:
    return json_response(_version_list(request))


def _version_list(request: Request) -> dict[str, Any]:
    return {"versions": [{
        "id": "v3.0", "status": "CURRENT", "version": f"3.{NEWEST}", "min_version": OLDEST, "updated": UPDATED,
        "links": [{"rel": "self", "href": f"{root_url(request)}/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    }]}


async def _zones(call: Call) -> Response:
    return json_response({"availabilityZoneInfo": [{"zoneName": ZONE, "zoneState": {"available": True}}]})


def _extension(alias: str) -> dict[str, Any]:
    name = EXTENSIONS[alias]
    return {"alias": alias, "name": name, "description": f"{name} support.", "updated": UPDATED, "links": []}


async def _list_extensions(call: Call) -> Response:
    return json_response({"extensions": [_extension(alias) for alias in EXTENSIONS]})


async def _show_extension(call: Call) -> Response:
    if call.path() not in EXTENSIONS:
        raise NotFound(f"There is no extension {call.path()}.")
    return json_response({"extension": _extension(call.path())})


async def _resource_filters(call: Call) -> Response:
    wanted = call.request.query_params.get("resource")
    kinds = {"volume": volumes.KIND, "snapshot": snapshots.KIND, "backup": backups.KIND, "message": messages.KIND,
             "attachment": attachments.KIND}
    found = [{"resource": name, "filters": [*kind.filters, *(f"{liked}~" for liked in kind.liked)]}
             for name, kind in kinds.items()]
    found.append({"resource": "pool", "filters": operators.POOL_FILTERS})
    return json_response({"resource_filters": [one for one in found if wanted in (None, one["resource"])]})


def _nothing(name: str) -> Handler:
    async def nothing(call: Call) -> Response:
        return json_response({name: []})

    return nothing
