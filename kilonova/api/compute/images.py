"""Images and their properties, passed on to the image service: images up to 2.35, properties up to 2.38.

Spec: API-266 to API-275, API-474.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import parse_qsl

from kilonova.api.call import Call
from kilonova.api.compute import metadata_items
from kilonova.api.compute.answers import images as answers
from kilonova.api.compute.field_types import METADATA, METADATA_KEY, METADATA_VALUE
from kilonova.api.compute.server_lookup import is_uuid
from kilonova.api.paging import LIMIT, MARKER, effective_limit, next_page
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import FALSE_WORDS, TRUE_WORDS, MapOf, Object, Text, required
from kilonova.domain.errors import ImageNotFound, NotFound, OverQuota
from kilonova.domain.image import Image

Properties = dict[str, str]

_STATUSES = {
    "active": "ACTIVE", "queued": "SAVING", "saving": "SAVING", "importing": "SAVING", "uploading": "SAVING",
    "deleted": "DELETED", "pending_delete": "DELETED", "killed": "ERROR",
}
_PROGRESS = {"active": 100, "saving": 50, "importing": 50, "uploading": 50, "queued": 25}
_PROPERTY = "property-"
_TEXT = Param(Text())
LIST_QUERY = Query({
    "limit": LIMIT, "marker": MARKER,
    **dict.fromkeys(("name", "status", "changes-since", "server", "type", "minRam", "minDisk"), _TEXT),
}, strict_since=None)


async def index(call: Call) -> Any:
    found = await _page(call)
    return _listing(call, "/images", found, [_brief(call, image) for image in found])


async def detail(call: Call) -> Any:
    found = await _page(call)
    return _listing(call, "/images/detail", found, [_full(call, image) for image in found])


async def _page(call: Call) -> list[Image]:
    """Raises InvalidInput: a filter or the marker makes no sense. Spec: API-047."""
    limit = effective_limit(call)
    if limit == 0:
        return []
    return await call.cloud.images.page(call.context, _filters(call), limit=limit, marker=call.query.last("marker"))


def _filters(call: Call) -> list[tuple[str, str]]:
    """The filters of a request in the words of the image service."""
    query = call.query
    found = [
        (theirs, str(query.last(ours)))
        for ours, theirs in (("name", "name"), ("type", "image_type"), ("minRam", "min_ram"), ("minDisk", "min_disk"))
        if ours in query
    ]
    if "status" in query:
        wanted = query.last("status").upper()
        named = [theirs for theirs, ours in _STATUSES.items() if ours == wanted]
        found.append(("status", f"in:{','.join(named)}" if named else "none"))
    if "changes-since" in query:
        found.append(("updated_at", f"gte:{query.last('changes-since')}"))
    if "server" in query:
        found.append(("instance_uuid", query.last("server").rstrip("/").rpartition("/")[2]))
    found += [
        (name.removeprefix(_PROPERTY), value)
        for name, value in parse_qsl(query.text, keep_blank_values=True)
        if name.startswith(_PROPERTY)
    ]
    return found


def _listing(call: Call, path: str, found: list[Image], entries: list[dict[str, Any]]) -> dict[str, Any]:
    markers = [image.id for image in found]
    return {"images": entries, **next_page(call, path, markers, effective_limit(call), "images_links")}


def _brief(call: Call, image: Image) -> dict[str, Any]:
    path = f"/images/{image.id}"
    alternate = {
        "rel": "alternate", "type": "application/vnd.openstack.image", "href": f"{call.links.images}{path}",
    }
    return {"id": image.id, "name": image.name, "links": [*call.links.pair(path), alternate]}


def _full(call: Call, image: Image) -> dict[str, Any]:
    shown = {
        **_brief(call, image),
        "status": _STATUSES.get(image.status, "UNKNOWN"),
        "progress": _PROGRESS.get(image.status, 0),
        "minRam": image.min_ram,
        "minDisk": image.min_disk,
        "metadata": image.properties,
        "created": image.created_at,
        "updated": image.updated_at,
        "OS-EXT-IMG-SIZE:size": image.size,
    }
    server = image.properties.get("instance_uuid", "")
    if is_uuid(server):
        shown["server"] = {"id": server, "links": call.links.pair(f"/servers/{server}")}
    automatic = image.properties.get("auto_disk_config", "").strip()
    if automatic in (*TRUE_WORDS, *FALSE_WORDS):
        shown["OS-DCF:diskConfig"] = "AUTO" if automatic in TRUE_WORDS else "MANUAL"
    return shown


async def show(call: Call) -> Any:
    return {"image": _full(call, await _find(call, "id"))}


async def delete(call: Call) -> None:
    try:
        await call.cloud.images.remove(call.context, call.path["id"])
    except ImageNotFound as error:
        _missing(error)


async def _find(call: Call, name: str) -> Image:
    try:
        return await call.cloud.images.show(call.context, call.path[name])
    except ImageNotFound as error:
        _missing(error)


def _missing(error: ImageNotFound) -> NoReturn:
    raise NotFound("Image not found.") from error


# --- properties ---------------------------------------------------------------------------------------------


async def metadata(call: Call) -> Any:
    return {"metadata": (await _find(call, "image_id")).properties}


async def one(call: Call) -> Any:
    return {"meta": metadata_items.one(call, (await _find(call, "image_id")).properties)}


async def merge(call: Call) -> Any:
    return {"metadata": await _change(call, lambda current: current | call.body["metadata"])}


async def replace(call: Call) -> Any:
    return {"metadata": await _change(call, lambda current: call.body["metadata"])}


async def set_one(call: Call) -> Any:
    meta = metadata_items.body(call)
    await _change(call, lambda current: current | meta)
    return {"meta": meta}


async def delete_one(call: Call) -> None:
    await _change(call, lambda current: metadata_items.without(call, current))


async def _change(call: Call, new: Callable[[Properties], Properties]) -> Properties:
    """Raises NotFound; Forbidden: the image is not the caller's; OverQuota. Spec: API-060."""
    image = await _find(call, "image_id")
    wanted = new(image.properties)
    limits = await call.cloud.quotas.limits(call.context.project_id or "", call.context.user_id)
    if limits.metadata_items >= 0 and len(wanted) > max(limits.metadata_items, len(image.properties)):
        raise OverQuota("Image metadata limit exceeded")
    try:
        return (await call.cloud.images.set_properties(call.context, image.id, wanted)).properties
    except ImageNotFound as error:
        _missing(error)


ALL = Object({"metadata": required(METADATA)})
ONE = Object({"meta": required(MapOf(METADATA_KEY, METADATA_VALUE, fewest=1, most=1))})
_IMAGES, _METADATA = 35, 38
"""Last microversions."""
_PATH = "/images/{image_id}/metadata"
ROUTES = [
    Route(method="GET", path="/images", handler=index, query=LIST_QUERY, until=_IMAGES, answer=answers.IMAGES),
    Route(method="GET", path="/images/detail", handler=detail, query=LIST_QUERY, until=_IMAGES,
          answer=answers.IMAGES_DETAIL),
    Route(method="GET", path="/images/{id}", handler=show, until=_IMAGES, answer=answers.IMAGE),
    Route(method="DELETE", path="/images/{id}", handler=delete, until=_IMAGES, status=204),
    Route(method="GET", path=_PATH, handler=metadata, until=_METADATA, answer=answers.METADATA),
    Route(method="POST", path=_PATH, handler=merge, body=ALL, until=_METADATA, answer=answers.METADATA),
    Route(method="PUT", path=_PATH, handler=replace, body=ALL, until=_METADATA, answer=answers.METADATA),
    Route(method="GET", path=f"{_PATH}/{{id}}", handler=one, until=_METADATA, answer=answers.META),
    Route(method="PUT", path=f"{_PATH}/{{id}}", handler=set_one, body=ONE, until=_METADATA, answer=answers.META),
    Route(method="DELETE", path=f"{_PATH}/{{id}}", handler=delete_one, until=_METADATA, status=204),
]
