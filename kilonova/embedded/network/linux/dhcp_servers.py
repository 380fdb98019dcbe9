"""The DHCP servers of all networks of one installation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from kilonova.embedded.network.linux.dhcp import DhcpServer
from kilonova.embedded.network.linux.names import Names
from kilonova.embedded.network.wiring import NetworkPlan, PortPlan

log = structlog.get_logger(__name__)


class DhcpServers:
    """Runs one for each network, and starts it again when it ends.

    Args:
        directory: for the files of all of them.
        on_exit: called when a server is found to have ended although it should run.
    """

    def __init__(self, names: Names, directory: Path, on_exit: Callable[[], None]) -> None:
        self._names = names
        self._directory = directory
        self._on_exit = on_exit
        self._servers: dict[str, DhcpServer] = {}
        self._hosted: dict[str, tuple[NetworkPlan, tuple[PortPlan, ...]]] = {}

    async def serve(self, network: NetworkPlan, ports: tuple[PortPlan, ...]) -> None:
        """Serve a network and exactly these ports of it. Raises Retryable: the server cannot be started."""
        if self._hosted.get(network.id) == (network, ports):
            return
        server = self._servers.get(network.id)
        if server is None:
            server = DhcpServer(self._of(network.segment), self._names.bridge(network.segment),
                                lambda: self._ended(network.id))
            self._servers[network.id] = server
        self._hosted[network.id] = (network, ports)  # taken back if the server ends meanwhile
        try:
            await server.ensure(network, list(ports))
        except BaseException:
            self._hosted.pop(network.id, None)
            raise

    def release_v6(self, network_id: str, addresses: Iterable[str]) -> None:
        """Tell the server of a network, if it has one, that nobody uses these addresses any more."""
        if server := self._servers.get(network_id):
            server.release_v6(addresses)

    async def remove(self, network: NetworkPlan) -> None:
        """Stop the server of a network, and forget what it gave out."""
        server = self._servers.pop(network.id, None)
        self._hosted.pop(network.id, None)
        if server is not None:
            await server.stop()
        shutil.rmtree(self._of(network.segment), ignore_errors=True)

    async def remove_but(self, segments: Iterable[int]) -> None:
        """Stop all servers, whoever started them, but those of the networks of these numbers."""
        kept = {self._of(segment) for segment in segments}
        for path in self._all():
            if path not in kept:
                await DhcpServer(path, "", lambda: None).stop()
                shutil.rmtree(path, ignore_errors=True)

    def pids(self) -> tuple[int, ...]:
        """The processes of those that run."""
        found = (DhcpServer(path, "", lambda: None).pid for path in self._all())
        return tuple(pid for pid in found if pid is not None)

    def unwatch(self) -> None:
        """Leave them running, and wait for their end no more."""
        for server in self._servers.values():
            server.unwatch()

    def _ended(self, network_id: str) -> None:
        log.warning("DHCP server ended and will be started again", network=network_id)
        self._hosted.pop(network_id, None)
        self._on_exit()

    def _of(self, segment: int) -> Path:
        return self._directory / f"dhcp-{segment}"

    def _all(self) -> list[Path]:
        return sorted(self._directory.glob("dhcp-*"))
