"""What a host step works with."""

from __future__ import annotations

from dataclasses import dataclass

from kilonova.domain.clock import Clock
from kilonova.hypervisor.driver import Driver
from kilonova.services.image import ImageService


@dataclass(frozen=True)
class HostEnvironment:
    """What a host step may use. images: None on a host that has no way to the image service."""

    host: str
    driver: Driver
    clock: Clock
    images: ImageService | None = None
