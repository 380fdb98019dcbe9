"""The host name of a guest, made from the name of its server. Spec: API-610 (hostname)."""

from __future__ import annotations

import re

LONGEST = 63


def hostname_from(name: str, uuid: str) -> str:
    """A valid host name: lower case, blanks, underscores and dots as hyphens, the rest dropped.

    Args:
        uuid: of the server; names it when nothing is left of the name.
    """
    hyphens = re.sub(r"[\s_.]", "-", name)
    kept = re.sub(r"[^a-zA-Z0-9-]+", "", hyphens.encode("ascii", "ignore").decode()).lower()
    return kept.strip("-")[:LONGEST].strip("-") or f"server-{uuid}"
