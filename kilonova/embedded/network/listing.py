"""Lists: filters, fields, sorting and paging, the same for every resource. Spec: EMI-07 to EMI-09, EMI-12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import QueryParams
from starlette.requests import Request

from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import root_url

_CONTROLS = {"fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir"}
_IN_ANY_CASE = {"agent_type"}
"""Neutron has "L3 agent", and Tempest asks it for "L3 Agent"."""
_TAG_FILTERS = ("tags", "tags-any", "not-tags", "not-tags-any")


def page(request: Request, plural: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to a list call: those items that pass the filters, sorted, one page of them."""
    query = request.query_params
    found = [item for item in items if _passes(item, query)]
    _sort(found, query)
    found, links = _cut(found, request, plural)
    fields = query.getlist("fields")
    answer: dict[str, Any] = {plural: [pick(item, fields) for item in found]}
    if links:
        answer[f"{plural}_links"] = links
    return answer


def pick(item: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The item with only these keys; with all of them if none is named."""
    return {key: item[key] for key in fields if key in item} if fields else item


def _passes(item: dict[str, Any], query: QueryParams) -> bool:
    for key in set(query) - _CONTROLS:
        wanted = query.getlist(key)
        if key == "fixed_ips":
            if not _matches_fixed_ips(item, wanted):
                return False
        elif key in _TAG_FILTERS:
            if not _matches_tags(item, key, wanted):
                return False
        elif key in _IN_ANY_CASE and key in item:
            if item[key].casefold() not in (value.casefold() for value in wanted):
                return False
        elif key in item and not any(_equal(item[key], value) for value in wanted):
            return False
    return True


def _equal(value: Any, text: str) -> bool:
    if isinstance(value, bool):
        return text.lower() in (("true", "1") if value else ("false", "0"))
    if isinstance(value, list):
        return text in value
    if value is None:
        return text == ""
    return str(value) == text


def _matches_fixed_ips(item: dict[str, Any], wanted: list[str]) -> bool:
    """Any of the conditions of one kind, all kinds, on one address. Spec: EMN-25."""
    kinds: dict[str, list[str]] = {}
    for condition in wanted:
        for part in condition.split(","):
            kind, _, value = part.partition("=")
            kinds.setdefault(kind, []).append(value)
    if unknown := set(kinds) - {"ip_address", "subnet_id", "ip_address_substr"}:
        raise InvalidInput(f"'{min(unknown)}' is not a filter for fixed_ips.")
    return any(
        all(
            any(value in address["ip_address"] if kind == "ip_address_substr" else value == address[kind]
                for value in values)
            for kind, values in kinds.items()
        )
        for address in item.get("fixed_ips", ())
    )


def _matches_tags(item: dict[str, Any], kind: str, wanted: list[str]) -> bool:
    tags = set(item.get("tags", ()))
    asked = {tag for value in wanted for tag in value.split(",")}
    if kind == "tags":
        return asked <= tags
    if kind == "tags-any":
        return bool(asked & tags)
    return not asked <= tags if kind == "not-tags" else not asked & tags


def _sort(items: list[dict[str, Any]], query: QueryParams) -> None:
    keys, directions = query.getlist("sort_key"), query.getlist("sort_dir")
    for index in reversed(range(len(keys))):
        direction = directions[index] if index < len(directions) else "asc"
        if direction not in ("asc", "desc"):
            raise InvalidInput(f"Invalid sort direction '{direction}'.")
        if items and (keys[index] not in items[0] or isinstance(items[0][keys[index]], list)):
            raise InvalidInput(f"'{keys[index]}' is not a valid attribute to sort by.")
        items.sort(key=lambda item: str(item[keys[index]] or ""), reverse=direction == "desc")


def _cut(items: list[dict[str, Any]], request: Request,
         plural: str) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    query = request.query_params
    text, marker = query.get("limit"), query.get("marker")
    if text is not None and not (text.isascii() and text.isdigit()):
        raise InvalidInput(f"limit must be an integer of 0 or more, not '{text}'.")
    limit = int(text) if text else 0
    back = query.get("page_reverse", "").lower() in ("true", "1")
    if back:
        items = items[::-1]
    if marker is not None:
        position = next((index for index, item in enumerate(items) if item["id"] == marker), None)
        if position is None:
            raise NotFound(f"The marker {marker} could not be found.")
        items = items[position + 1:]
    cut, more = (items[:limit], len(items) > limit) if limit else (items, False)
    if back:
        cut = cut[::-1]
    if not limit or not cut:
        return cut, []
    links = []
    if more or back:
        links.append({"rel": "next", "href": _link(request, plural, cut[-1]["id"], back=False)})
    if (more and back) or (marker is not None and not back):
        links.append({"rel": "previous", "href": _link(request, plural, cut[0]["id"], back=True)})
    return cut, links


def _link(request: Request, plural: str, marker: str, *, back: bool) -> str:
    kept = [(key, value) for key, value in request.query_params.multi_items() if key not in ("marker", "page_reverse")]
    kept += [("marker", marker)] + ([("page_reverse", "True")] if back else [])
    return f"{root_url(request)}/v2.0/{plural}?{urlencode(kept)}"
