"""Fetching images into the cache of a host before a guest needs them."""

from __future__ import annotations

from enum import StrEnum

import msgspec
import structlog

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.domain.errors import NotSupported
from kilonova.domain.image import Image
from kilonova.engine.operation import HostStep

log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """What became of an image on a host."""

    CACHED = "cached"
    EXISTING = "existing"
    UNSUPPORTED = "unsupported"
    ERROR = "error"


class CacheImages(msgspec.Struct, frozen=True, kw_only=True):
    images: tuple[Image, ...]


class Cached(msgspec.Struct, frozen=True):
    """By id of image."""

    outcomes: dict[str, Outcome]


async def _cache(host: HostEnvironment, args: CacheImages) -> Cached:
    """One after the other, so that builds find a fetch free. It takes no part in the limit of builds.

    Spec: IMC-08 to IMC-12.
    """
    return Cached({image.id: await _fetch(host, image) for image in args.images})


async def _fetch(host: HostEnvironment, image: Image) -> Outcome:
    try:
        return Outcome.CACHED if await host.driver.cache_image(image) else Outcome.EXISTING
    except NotSupported as error:
        log.warning("images cannot be fetched beforehand", host=host.host, image=image.id, error=str(error))
        return Outcome.UNSUPPORTED
    except Exception as error:
        log.warning("image not fetched beforehand", host=host.host, image=image.id, exc_info=error)
        return Outcome.ERROR


CACHE = HostStep("images.cache", _cache, CacheImages, Cached, interruptible=True)

STEPS = (CACHE,)
