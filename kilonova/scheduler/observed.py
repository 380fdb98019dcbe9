"""What a scheduler tells of its work to whoever counts it."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Is told of decisions and claims as they happen."""

    def decided(self, seconds: float, considered: int, candidates: int, refused_by: str) -> None:
        """Hosts were chosen for a request, or none could take it.

        Args:
            seconds: that it took, reading included. considered: hosts that are there. candidates: hosts that could
                take the first server. refused_by: the filter that left none, "" if hosts were chosen.
        """
        ...

    def claimed(self, outcome: str) -> None:
        """The resources of a chosen host were claimed. outcome: name of a `Claim`, in small letters."""
        ...


class Nobody:
    """Counts nothing."""

    def decided(self, seconds: float, considered: int, candidates: int, refused_by: str) -> None:
        return None

    def claimed(self, outcome: str) -> None:
        return None
