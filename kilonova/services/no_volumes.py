"""The volume service of an installation that has none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, cast

from kilonova.domain.errors import ServiceUnavailable
from kilonova.services.volumes import VolumeService


class NoVolumeService(ServiceUnavailable):
    """There is none."""

    def __init__(self) -> None:
        super().__init__("This cloud has no volume service.", hint="configure a [[volume.pool]]")


class _NoVolumes:
    """Refuses every call."""

    def __getattr__(self, _call: str) -> Callable[..., Awaitable[NoReturn]]:
        async def refuse(*_args: Any, **_more: Any) -> NoReturn:
            raise NoVolumeService

        return refuse


def no_volumes() -> VolumeService:
    """A service all of whose calls raise NoVolumeService."""
    return cast(VolumeService, _NoVolumes())
