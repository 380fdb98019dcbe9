"""Calls about the files of volumes."""

from __future__ import annotations

from kilonova.hypervisor.libvirt import volume_files
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.volumes import FileMerge, FileSource, MergeState


class VolumeFileCalls(Calls):
    """Files of volumes: put one above another, and merged."""

    async def put_file_above(self, uuid: str, volume_id: str, overlay: FileSource) -> None:
        await self._connection.call(
            lambda connection: volume_files.put_above(connection, uuid, volume_id, overlay), uuid=uuid
        )

    async def start_merge(self, uuid: str, volume_id: str, merge: FileMerge) -> None:
        await self._connection.call(
            lambda connection: volume_files.start_merge(connection, uuid, volume_id, merge), uuid=uuid
        )

    async def merge_state(self, uuid: str, volume_id: str, merge: FileMerge) -> MergeState:
        return await self._connection.call(
            lambda connection: volume_files.merge_state(connection, uuid, volume_id, merge), uuid=uuid
        )

    async def abort_merge(self, uuid: str, volume_id: str) -> None:
        await self._connection.call(
            lambda connection: volume_files.abort_merge(connection, uuid, volume_id), uuid=uuid
        )
