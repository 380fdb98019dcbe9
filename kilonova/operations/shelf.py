"""What the system metadata of a shelved server tell: since when it is shelved, of which image, and where it was."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from kilonova.domain.clock import iso_seconds
from kilonova.domain.instance import Instance
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.server_images import remove_image

SINCE, IMAGE_KEY, HOST = "shelved_at", "shelved_image_id", "shelved_host"
KEYS = (SINCE, IMAGE_KEY, HOST)


class Shelved(msgspec.Struct, frozen=True):
    """The image of a shelved server, "" for none."""

    image_id: str


def label(metadata: Mapping[str, str], *, now: float, image_id: str, host: str) -> dict[str, str]:
    """The system metadata of a server that is shelved now. Spec: SHV-04."""
    return {**metadata, SINCE: iso_seconds(now), IMAGE_KEY: image_id, HOST: host}


def without_label(metadata: Mapping[str, str]) -> dict[str, str]:
    """The same of one that is shelved no more."""
    return {key: value for key, value in metadata.items() if key not in KEYS}


def shelved_since(instance: Instance) -> float | None:
    """Seconds since the epoch; None if nothing tells it, or nothing that can be read. Spec: SHV-14, PER-55."""
    try:
        return datetime.fromisoformat(instance.system_metadata.get(SINCE, "")).timestamp()
    except ValueError:
        return None


async def drop_image(env: Environment, run: Run[Any]) -> None:
    """A step: the image of a server that runs again goes. Spec: PWR-21, SHV-33, SHV-49."""
    image_id = run.output(Shelved).image_id
    if image_id:
        await remove_image(env, run.subject, image_id)
