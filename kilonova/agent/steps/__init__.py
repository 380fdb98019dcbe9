"""What a host can be told to do with a guest, a file for each kind of work.

Each step is idempotent; the driver's calls are.
"""

from __future__ import annotations

from kilonova.agent.steps import (
    freeze,
    images,
    injections,
    interfaces,
    pause,
    power,
    rebuild,
    rescue,
    resize,
    shares,
    shelve,
    snapshot,
    suspend,
    volume_copy,
    volume_files,
    volumes,
)
from kilonova.engine.operation import HostStep

_MODULES = (
    freeze, images, injections, interfaces, pause, power, rebuild, rescue, resize, shares, shelve, snapshot, suspend,
    volume_copy, volume_files, volumes,
)
ALL: dict[str, HostStep] = {step.name: step for module in _MODULES for step in module.STEPS}
"""What this release's agents can run. A step stays here as long as a journal may name it."""
