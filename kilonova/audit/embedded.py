"""What the embedded network and image services of one machine have, for the audit."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from kilonova.audit.sources import ImageData, OnMachine
from kilonova.db.database import Database
from kilonova.embedded.image import schema as image_schema
from kilonova.embedded.image.records import WITH_DATA, Status
from kilonova.embedded.network import plans
from kilonova.embedded.network import schema as network_schema
from kilonova.embedded.network.wiring import Wiring, tap_name


class EmbeddedDevices:
    """Compares the wiring of this machine with the records of the network service."""

    def __init__(self, host: str, database: Database, wiring: Wiring) -> None:
        self._host = host
        self._database = database
        self._wiring = wiring

    async def devices(self) -> OnMachine:
        """What was found is asked first: what is recorded by then may come to exist, never the other way round."""
        found = await self._wiring.found()
        ports, networks = network_schema.ports, network_schema.networks

        def read(conn: sa.Connection) -> tuple[list[str], list[int], plans.Addresses, plans.Addresses]:
            return (
                list(conn.execute(sa.select(ports.c.id)).scalars()),
                list(conn.execute(sa.select(networks.c.segment)).scalars()), *plans.router_addresses(conn),
            )

        port_ids, segments, answering, silent = await self._database.read(read)
        return OnMachine(
            host=self._host, bridges=frozenset((*found.bridges, *found.uplinks)), taps=frozenset(found.taps),
            wanted_bridges=frozenset(
                name for segment in segments for name in (self._wiring.bridge(segment), self._wiring.uplink(segment))
            ),
            wanted_taps=frozenset(tap_name(port_id) for port_id in port_ids),
            addresses=frozenset(found.addresses), answering=self._on_bridges(answering),
            silent=self._on_bridges(silent),
        )

    def _on_bridges(self, addresses: plans.Addresses) -> frozenset[tuple[str, str]]:
        """Without those of networks that have no bridge."""
        return frozenset(
            (bridge, address) for segment, address in addresses if (bridge := self._wiring.bridge(segment))
        )


class EmbeddedImageData:
    """Compares the files of the image service with its records.

    Args:
        directory: of the image service.
    """

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._data = directory / "data"

    async def image_data(self) -> ImageData:
        found = frozenset(path.name for path in self._data.iterdir()) if self._data.is_dir() else frozenset()
        t = image_schema.images
        rows = await self._database.read(lambda conn: conn.execute(sa.select(t.c.id, t.c.status)).all())
        return ImageData(
            required=frozenset(id_ for id_, status in rows if status in WITH_DATA),
            allowed=frozenset(id_ for id_, status in rows if status is not Status.QUEUED),
            found=found,
        )

    async def discard(self, image_id: str) -> bool:
        """Data comes after its record, so that data without a record can get none while this looks."""
        data = await self.image_data()
        if image_id in data.allowed or image_id not in data.found:
            return False
        (self._data / image_id).unlink(missing_ok=True)
        return True
