"""Counting, at intervals, what all servers of a cell do with their volumes. Spec: PER-66 to PER-72."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
import structlog

from kilonova.agent.reports import VolumeUsageQuery
from kilonova.bus.protocol import Bus
from kilonova.db import block_devices, instances
from kilonova.db.volume_usage import refreshed_since
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import Asker
from kilonova.hypervisor.volumes import VolumeUsage
from kilonova.operations.environment import Environment
from kilonova.operations.host_query import ask_host
from kilonova.operations.volume_usage import count_and_tell

log = structlog.get_logger(__name__)

AsGuestsSee = dict[str, dict[str, VolumeUsage]]
"""By server and volume."""


class VolumeUsageRounds:
    """The rounds over the hosts of a cell. Of several conductors that do this the first one counts."""

    def __init__(self, environment: Environment, bus: Bus) -> None:
        self._database = environment.database
        self._clock = environment.clock
        self._interval = environment.options.volume_usage_poll_interval
        self._bus = bus

    async def count(self) -> None:
        """One round. A host, server or volume that fails holds up no other; each volume is a transaction of its own.

        Spec: PER-67, PER-68, PER-70, PER-71, PER-72.
        """
        done = await self._database.read(lambda conn: refreshed_since(conn, self._clock.now() - self._interval / 2))
        for host in await self._database.read(instances.hosts_in_use):
            attached = await self._database.read(partial(_attached, host=host))
            if not attached:
                continue
            try:
                found = (await ask_host(self._bus, host, VolumeUsageQuery())).volume_usage
            except KilonovaError as error:
                log.info("host did not say how volumes are used", host=host, error=error.message)
                continue
            for server, volumes in found.items():
                for volume, usage in volumes.items():
                    if (server, volume) in attached - done:
                        await self._count(host, server, volume, usage)

    async def _count(self, host: str, server: str, volume: str, usage: VolumeUsage) -> None:
        now = self._clock.now()
        try:
            await self._database.write(
                lambda conn: count_and_tell(conn, server, volume, usage, host=host, now=now, asker=Asker())
            )
        except Exception as error:  # noqa: BLE001 - the next volume is counted
            log.warning("usage of a volume not counted", instance=server, volume=volume, error=str(error))


def _attached(conn: sa.Connection, host: str) -> set[tuple[str, str]]:
    """Servers of a host, with each of their volumes."""
    servers = [server.uuid for server in instances.on_host(conn, host)]
    return {
        (server, device.volume_id) for server, devices in block_devices.of_servers(conn, servers).items()
        for device in devices if device.volume_id is not None
    }
