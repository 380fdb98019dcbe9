"""The volumes, snapshots and types that a Compute API in tests knows of."""

from __future__ import annotations

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NotFound, ServiceUnavailable, VolumeNotFound, VolumeSnapshotNotFound
from kilonova.services.volumes import Snapshot, Volume


class KnownVolumes:
    """What the API asks of a volume service. away: there is none."""

    def __init__(self) -> None:
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.types = {"fast"}
        self.away = False

    def add(self, volume: Volume) -> str:
        self.volumes[volume.id] = volume
        return volume.id

    async def volume(self, _context: RequestContext | None, volume_id: str) -> Volume:
        self._check()
        if volume_id not in self.volumes:
            raise VolumeNotFound(volume_id)
        return self.volumes[volume_id]

    async def snapshot(self, _context: RequestContext | None, snapshot_id: str) -> Snapshot:
        self._check()
        if snapshot_id not in self.snapshots:
            raise VolumeSnapshotNotFound(snapshot_id)
        return self.snapshots[snapshot_id]

    async def check_type(self, _context: RequestContext, type_: str | None) -> None:
        self._check()
        if type_ is not None and type_ not in self.types:
            raise NotFound(f"Volume type {type_} could not be found.")

    def _check(self) -> None:
        if self.away:
            raise ServiceUnavailable("There is no volume service.")
