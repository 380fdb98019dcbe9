"""What an agent tells of its work to whoever counts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Observer(Protocol):
    """Is told of steps as they end, and of guests with each report."""

    def host_step(self, host: str, step: str, outcome: str, seconds: float) -> None:
        """An attempt at a step has ended. outcome: done or failed."""
        ...

    def guests(self, host: str, by_state: Mapping[str, int]) -> None:
        """How many guests the host has, by power state."""
        ...


class Nobody:
    """Counts nothing."""

    def host_step(self, host: str, step: str, outcome: str, seconds: float) -> None:
        return None

    def guests(self, host: str, by_state: Mapping[str, int]) -> None:
        return None
