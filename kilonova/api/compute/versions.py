"""The version documents. Spec: API-001 to API-005, API-102."""

from __future__ import annotations

from typing import Any

from kilonova.api import microversions
from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.routes import Route
from kilonova.domain.errors import NotFound

_JSON = "application/json"
_ENTRIES: dict[str, dict[str, Any]] = {
    "v2": {
        "id": "v2.0", "status": "DEPRECATED", "version": "", "min_version": "",
        "updated": "2025-07-04T12:00:00Z",
    },
    "v2.1": {
        "id": "v2.1", "status": "CURRENT", "version": microversions.text(microversions.LATEST),
        "min_version": microversions.text(microversions.FIRST), "updated": "2013-07-23T11:33:21Z",
    },
}


def _media_types(version: str) -> list[dict[str, str]]:
    number = version.removeprefix("v")
    return [{"base": _JSON, "type": f"application/vnd.openstack.compute+json;version={number}"}]


class VersionDocuments:
    """Builds the documents; `base` is the URL of the service without a slash at the end."""

    def root(self, base: str) -> tuple[int, Any]:
        entries = [
            {**entry, "links": [{"rel": "self", "href": f"{base}/{version}/"}]}
            for version, entry in _ENTRIES.items()
        ]
        return 200, {"versions": entries}

    def version(self, base: str, version: str) -> tuple[int, Any]:
        links = [
            {"rel": "self", "href": f"{base}/{version}/"},
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/api-ref/compute/"},
        ]
        return 200, {"version": {**_ENTRIES[version], "links": links, "media-types": _media_types(version)}}

    def choices(self, base: str, path: str) -> tuple[int, Any]:
        entries = [
            {
                "id": entry["id"], "status": entry["status"], "media-types": _media_types(version),
                "links": [{"rel": "self", "href": f"{base}/{version}{path}"}],
            }
            for version, entry in _ENTRIES.items()
        ]
        return 300, {"choices": entries}


async def show_version(call: Call) -> Any:
    versions = {entry["id"]: version for version, entry in _ENTRIES.items()}
    version = versions.get(call.path["id"])
    if version is None:
        raise NotFound("The resource could not be found.")
    return VersionDocuments().version(call.links.base, version)[1]


ROUTES = [Route(method="GET", path="/versions/{id}", handler=show_version, answer=answers.VERSION)]
