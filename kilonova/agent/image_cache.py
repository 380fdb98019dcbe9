"""Keeping the cache of images on a host from growing for ever."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, NotSupported
from kilonova.engine.rounds import Round, Rounds
from kilonova.hypervisor.driver import Driver

log = structlog.get_logger(__name__)


class ImageCacheOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The images that a host keeps."""

    manager_interval: float = 2400.0
    """Seconds between looks at the images that a host keeps; 0 for a minute, negative for never."""
    remove_unused_base_images: bool = True
    """Remove images that no disk of the host uses."""
    remove_unused_original_minimum_age_seconds: float = 86400.0
    """How long an image stays after it was last used or fetched."""


DEFAULT = ImageCacheOptions()


def image_cache_rounds(driver: Driver, clock: Clock, options: ImageCacheOptions) -> Rounds:
    """The regular passes over the cache of a host. Spec: IMC-01, IMC-03."""

    async def age() -> None:
        try:
            removed = await driver.age_cache(minimum_age=options.remove_unused_original_minimum_age_seconds)
        except NotSupported:
            return
        except KilonovaError as error:
            log.warning("cache of images not looked through", error=str(error))
        else:
            if removed:
                log.info("unused images removed", images=removed)

    passes = (Round("cache of images", age, options.manager_interval),) if options.remove_unused_base_images else ()
    return Rounds(clock, passes)
