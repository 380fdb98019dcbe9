"""ImagePropertiesFilter: architecture, hypervisor and guest mode that an image is made for."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np

from kilonova.scheduler.demand import Demand
from kilonova.scheduler.view import HostView, Mask

SAME_ARCHITECTURE = {"amd64": "x86_64", "x86-64": "x86_64", "i386": "i686", "i586": "i686", "arm64": "aarch64"}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def properties(view: HostView, demand: Demand) -> Mask | None:
    """Hosts whose hypervisor runs what the image says it needs."""
    of_image = demand.spec.image.properties
    wanted = (
        _architecture(of_image.get("hw_architecture")),
        _lower(of_image.get("img_hv_type")),
        _lower(of_image.get("hw_vm_mode")),
    )
    version = of_image.get("img_hv_requested_version")
    if not any(wanted) and not version:
        return None
    mask = view.alive.copy()
    if any(wanted):
        mask &= view.supported.where(_supports(supported, wanted) for supported in view.supported.values)
    if version:
        mask &= np.fromiter(
            (version_allowed(int(number), version) for number in view.hypervisor_version), np.bool_, len(view.alive)
        )
    return mask


def _supports(supported: tuple[tuple[str, str, str], ...], wanted: tuple[str | None, ...]) -> bool:
    return any(
        all(
            want is None or want == have.lower()
            for want, have in zip(wanted, (_architecture(arch) or "", *rest), strict=True)
        )
        for arch, *rest in supported
    )


def version_allowed(number: int, wanted: str) -> bool:
    """Whether a hypervisor version (7002022 for 7.2.22) meets conditions such as `>=6.0, <8.2`."""
    for condition in wanted.split(","):
        text = condition.strip()
        sign = next((sign for sign in _COMPARE if text.startswith(sign)), None)
        parts = text.removeprefix(sign or "").strip().split(".")
        if not 1 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
            return False
        major, minor, micro = (*map(int, parts), *[0] * (3 - len(parts)))
        if not _COMPARE[sign or "=="](number, (major * 1000 + minor) * 1000 + micro):
            return False
    return True


def _architecture(name: str | None) -> str | None:
    return SAME_ARCHITECTURE.get(name.lower(), name.lower()) if name else None


def _lower(name: str | None) -> str | None:
    return name.lower() if name else None
