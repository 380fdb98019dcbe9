"""Pages of lists. Spec: API-046 to API-049."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kilonova.api.call import Call
from kilonova.api.query import Param
from kilonova.api.schema import Integer, Text

LIMIT = Param(Integer(0))
MARKER = Param(Text())


def effective_limit(call: Call) -> int:
    """The number of entries a page may have. Spec: API-046."""
    most = call.cloud.options.max_limit
    asked = call.query.last("limit")
    return most if asked is None else min(int(asked), most)


def next_page(call: Call, path: str, markers: Sequence[str], limit: int, key: str) -> dict[str, Any]:
    """The links entry of a page, {} when it is not full.

    Args:
        markers: the marker of each entry on the page. key: name of the entry. Spec: API-049.
    """
    if not markers or len(markers) < limit:
        return {}
    return {key: call.links.following(path, call.query.text, markers[-1])}
