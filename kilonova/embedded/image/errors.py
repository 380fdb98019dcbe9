"""Errors of the image service that the compute service does not know."""

from __future__ import annotations

from kilonova.domain.errors import KilonovaError


class TooLarge(KilonovaError):
    """A limit or the disk does not allow it."""

    status = 413


class UnsupportedMediaType(KilonovaError):
    status = 415


class RangeNotSatisfiable(KilonovaError):
    status = 416
