"""The files of volumes of simulated guests."""

from __future__ import annotations

from pathlib import PurePosixPath

import msgspec

from kilonova.domain.errors import Conflict, InvalidInput, NotSupported
from kilonova.hypervisor.fake_state import FakeGuest, FakeVolume
from kilonova.hypervisor.fake_volumes import FakeVolumeCalls
from kilonova.hypervisor.volumes import FileMerge, FileSource, MergeState


class FakeVolumeFileCalls(FakeVolumeCalls):
    """Volumes that are files, too: put one above another, and merged."""

    async def put_file_above(self, uuid: str, volume_id: str, overlay: FileSource) -> None:
        await self._call("put_file_above")
        record, found, now = self._file(uuid, volume_id)
        if now == overlay or "put_file_above" in self.hypervisor.faults.lie:
            return
        if found.target is not None or found.merge is not None:
            raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied or merged.")
        self._keep(record, volume_id, msgspec.structs.replace(
            found, running=overlay, defined=overlay, backing=(PurePosixPath(now.path).name, *found.backing),
        ))

    async def start_merge(self, uuid: str, volume_id: str, merge: FileMerge) -> None:
        await self._call("start_merge")
        record, found, _ = self._file(uuid, volume_id)
        found = self._merged(record, volume_id, found)
        if found.merge == merge or _is_done(found, merge) or "start_merge" in self.hypervisor.faults.lie:
            return
        if found.target is not None or found.merge is not None:
            raise Conflict(f"Volume {volume_id} of instance {uuid} is being copied or merged.")
        if any(one is not None and one not in found.backing for one in (merge.file, merge.into)):
            raise InvalidInput(f"Volume {volume_id} of instance {uuid} has no files {merge.file} and {merge.into}.")
        self._keep(record, volume_id, msgspec.structs.replace(found, merge=merge, since=self._clock.now()))

    async def merge_state(self, uuid: str, volume_id: str, merge: FileMerge) -> MergeState:
        await self._call("merge_state")
        record, found = self._held(uuid, volume_id)
        if found.running is None:
            return MergeState.NONE
        found = self._merged(record, volume_id, found)
        if _is_done(found, merge):
            return MergeState.DONE
        return MergeState.RUNNING if found.merge == merge else MergeState.NONE

    async def abort_merge(self, uuid: str, volume_id: str) -> None:
        await self._call("abort_merge")
        record = self._guest(uuid)
        found = record.volumes.get(volume_id)
        if found is not None and found.merge is not None:
            found = self._merged(record, volume_id, found)
            self._keep(record, volume_id, msgspec.structs.replace(found, merge=None))

    def _file(self, uuid: str, volume_id: str) -> tuple[FakeGuest, FakeVolume, FileSource]:
        """A volume of a guest that runs, and the file that the guest writes to."""
        record, found = self._held(uuid, volume_id)
        if found.running is None:
            raise Conflict(f"Instance {uuid} does not run.")
        if not isinstance(found.running, FileSource):
            raise NotSupported(f"Volume {volume_id} of instance {uuid} is no file.")
        return record, found, found.running

    def _merged(self, record: FakeGuest, volume_id: str, found: FakeVolume) -> FakeVolume:
        """As the volume is when the merge is over whose time is over."""
        merge = found.merge
        if merge is None or self._clock.now() - found.since < self.hypervisor.faults.copying:
            return found
        if merge.into is not None:
            left = tuple(one for one in found.backing if one != merge.file)
        else:
            left = found.backing[found.backing.index(merge.file):] if merge.file is not None else ()
        found = msgspec.structs.replace(found, backing=left, merge=None, since=0.0)
        self._keep(record, volume_id, found)
        return found


def _is_done(found: FakeVolume, merge: FileMerge) -> bool:
    if merge.into is not None:
        return merge.file not in found.backing
    return (found.backing[0] if found.backing else None) == merge.file
