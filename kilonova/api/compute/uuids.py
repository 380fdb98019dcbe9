"""Uuids in paths."""

from __future__ import annotations

import uuid

from kilonova.domain.errors import InvalidInput


def checked_uuid(text: str) -> str:
    """The uuid in its usual form. Raises InvalidInput."""
    try:
        found = str(uuid.UUID(text))
    except ValueError:
        found = ""
    if found.replace("-", "") != text.lower().replace("-", "") or not found:
        raise InvalidInput(f"Invalid uuid {text}")
    return found
