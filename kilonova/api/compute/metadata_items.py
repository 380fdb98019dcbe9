"""One item of metadata by its key, of a server or an image."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.domain.errors import InvalidInput, NotFound

Items = dict[str, str]


def one(call: Call, items: Items) -> Items:
    """The item that the path names. Raises NotFound."""
    return {call.path["id"]: items[_key(call, items)]}


def without(call: Call, items: Items) -> Items:
    """The others. Raises NotFound."""
    key = _key(call, items)
    return {name: value for name, value in items.items() if name != key}


def body(call: Call) -> Items:
    """The item of a request body. Raises InvalidInput: the path names another one."""
    item: Items = call.body["meta"]
    if call.path["id"] not in item:
        raise InvalidInput("Request body and URI mismatch")
    return item


def _key(call: Call, items: Items) -> str:
    key = call.path["id"]
    if key not in items:
        raise NotFound("Metadata item was not found")
    return key
