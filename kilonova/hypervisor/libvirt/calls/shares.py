"""Calls about directories that guests share with the host."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from kilonova.domain.trail import Threads
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.shares import lacks_share


class ShareCalls(Calls):
    """Shares: whether they are there. A guest gets them when it starts."""

    _share_threads: Threads
    """Of their own: a file server that does not answer holds up nothing else."""

    async def absent_shares(self, directories: tuple[str, ...]) -> tuple[str, ...]:
        return await asyncio.get_running_loop().run_in_executor(self._share_threads, _absent, directories)

    async def _need_shares(self, guest: Guest) -> None:
        """Raises TryElsewhere."""
        absent = await self.absent_shares(tuple(share.directory for share in guest.shares)) if guest.shares else ()
        for share in guest.shares:
            if share.directory in absent:
                raise lacks_share(socket.gethostname(), share)


def _absent(directories: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in directories if not Path(one).is_dir())
