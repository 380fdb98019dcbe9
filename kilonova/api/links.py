"""URLs in answers. Spec: API-009."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec


class Links(msgspec.Struct, frozen=True):
    """Where the caller reached this service.

    Args:
        base: scheme, host and path prefix, without a slash at the end (or the configured prefix).
        version: `v2.1` or `v2`. project: the project id of the request's URL with a slash before it, or "".
        images: the same as base, for links to images.
    """

    base: str
    version: str
    project: str
    images: str

    def own(self, path: str) -> str:
        """The URL of a resource in this version."""
        return f"{self.base}/{self.version}{self.project}{path}"

    def bookmark(self, path: str) -> str:
        """The URL of a resource without the version."""
        return f"{self.base}{self.project}{path}"

    def pair(self, path: str) -> list[dict[str, str]]:
        """The `links` of a resource."""
        return [{"rel": "self", "href": self.own(path)}, {"rel": "bookmark", "href": self.bookmark(path)}]

    def image_bookmark(self, image_id: str) -> str:
        return f"{self.images}{self.project}/images/{image_id}"

    def following(self, path: str, query: str, marker: str) -> list[dict[str, str]]:
        """The link to the next page: the old query, sorted by name, with the new marker. Spec: API-049."""
        pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != "marker"]
        pairs.append(("marker", marker))
        return [{"rel": "next", "href": f"{self.own(path)}?{urlencode(sorted(pairs, key=lambda p: p[0]))}"}]


def prefixed(configured: str, base: str) -> str:
    """The configured link prefix, or where the request came in."""
    if not configured or not urlsplit(configured).scheme:
        return base
    return configured.rstrip("/")
