"""The bus of the matrix."""

from __future__ import annotations

from kilonova.bus.local import LocalBus
from kilonova.domain.errors import Unreachable


class CutBus(LocalBus):
    """A bus on which the hosts can be out of reach."""

    cut = False

    async def request(self, subject: str, payload: bytes, *, timeout: float) -> bytes:
        if self.cut and subject.startswith("kn.host."):
            raise Unreachable(f"Nobody listens on {subject}.")
        return await super().request(subject, payload, timeout=timeout)
