"""Files put into a new guest, up to 2.56. Spec: API-057, API-060, API-610."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from kilonova.api.compute.quota_check import UNLIMITED, Limits
from kilonova.domain.errors import OverQuota
from kilonova.domain.instance import InjectedFile


def check_files(limits: Limits, entries: Sequence[dict[str, Any]]) -> None:
    """Raises OverQuota: too many files, too long contents or a too long path."""
    if _over(limits.injected_files, len(entries)):
        raise OverQuota("Personality file limit exceeded")
    for entry in entries:
        if _over(limits.injected_file_content_bytes, len(base64.b64decode(entry["contents"]))):
            most = limits.injected_file_content_bytes
            raise OverQuota(f"Personality file content exceeds maximum {most}")
        if _over(limits.injected_file_path_bytes, len(entry["path"].encode())):
            raise OverQuota(f"Personality file path exceeds maximum {limits.injected_file_path_bytes}")


def _over(limit: int, amount: int) -> bool:
    return limit != UNLIMITED and amount > limit


def injected_files(entries: Sequence[dict[str, Any]]) -> tuple[InjectedFile, ...]:
    """As the build gets them: what decodes here decodes on the host, white space or not. Spec: BLD-04."""
    return tuple(InjectedFile(entry["path"], "".join(entry["contents"].split())) for entry in entries)
