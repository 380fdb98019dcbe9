"""An accelerator service that outlives the process: its state is a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from cyborg import Refused, StandIn, refuse


class Accelerators(StandIn):
    """Calls it when it is called itself. What is bound waits for `resolve`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(at_once=False)
        self._file = directory / "accelerators.json"
        if self._file.exists():
            self.arqs = msgspec.json.decode(self._file.read_bytes())

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        try:
            _, answer = self.answer(method, path, query or {}, body)
        except Refused as error:
            raise refuse(error) from error
        self._keep()
        return answer

    def resolve(self, server: str, state: str = "Bound") -> list[str]:
        resolved = super().resolve(server, state)
        self._keep()
        return resolved

    def _keep(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_bytes(msgspec.json.encode(self.arqs))
        temporary.replace(self._file)
