"""What a host step works with."""

from __future__ import annotations

from dataclasses import dataclass

from kilonova.domain.clock import Clock
from kilonova.hypervisor.driver import Driver


@dataclass(frozen=True)
class HostEnvironment:
    """What a host step may use."""

    host: str
    driver: Driver
    clock: Clock
