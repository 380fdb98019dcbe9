"""The files of a guest's volume, for snapshots that the volume service cannot take itself while a guest writes.

The hypervisor is asked which file the guest writes to, before and after: a step says that nothing was changed only if
the guest still writes to the old one.
"""

from __future__ import annotations

from functools import partial

import msgspec

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.watching import watch
from kilonova.domain.errors import Conflict, KilonovaError, PastReturn, Unfinished
from kilonova.engine.operation import HostStep
from kilonova.hypervisor.volumes import FileMerge, FileSource, HeldVolume, MergeState
from kilonova.shapes.quiesce import Quiesce


class OverlayArgs(msgspec.Struct, frozen=True):
    """A volume of a guest, the file that it is written to, and the one that is to be put above that."""

    uuid: str
    volume_id: str
    file: FileSource
    overlay: FileSource


class MergeArgs(msgspec.Struct, frozen=True):
    """A volume of a guest, and what is to be merged of its files."""

    uuid: str
    volume_id: str
    merge: FileMerge


async def _check(host: HostEnvironment, args: OverlayArgs) -> None:
    """A snapshot of another file than the one that the guest writes to would be none. Spec: SNP-35."""
    held = await _held(host, args)
    running = held.running if held is not None else None
    if running is None:
        raise Conflict(f"The guest of instance {args.uuid} does not run with volume {args.volume_id}.")
    if running not in (args.file, args.overlay):
        raise KilonovaError(
            f"The guest of instance {args.uuid} has volume {args.volume_id} from elsewhere than its record says.",
            hint="reboot the server hard",
        )


async def _put_above(host: HostEnvironment, args: OverlayArgs) -> None:
    """While the file systems of the guest are held still, if they can be. Spec: SNP-33, SNP-34."""
    await host.driver.freeze(args.uuid, quiesce=Quiesce.TRY)
    try:
        await host.driver.put_file_above(args.uuid, args.volume_id, args.overlay)
    finally:
        await host.driver.thaw(args.uuid)


async def _stay_below(host: HostEnvironment, args: OverlayArgs) -> None:
    """Raises PastReturn: the guest writes to the new file, and what it wrote there must not be lost. Spec: SNP-37."""
    await host.driver.thaw(args.uuid)
    held = await _held(host, args)
    if held is not None and args.overlay in (held.running, held.defined):
        raise PastReturn(f"The guest of instance {args.uuid} writes to the new file of volume {args.volume_id}.")


async def _held(host: HostEnvironment, args: OverlayArgs) -> HeldVolume | None:
    """The volume as it is found in the guest; None if it is not."""
    found = (await host.driver.held_volumes()).get(args.uuid, ())
    return next((one for one in found if one.id == args.volume_id), None)


async def _start_merge(host: HostEnvironment, args: MergeArgs) -> None:
    """Spec: SNP-33, SNP-34."""
    await host.driver.start_merge(args.uuid, args.volume_id, args.merge)


async def _await_merge(host: HostEnvironment, args: MergeArgs) -> None:
    """Watch the merge. Raises Unfinished: it goes on."""
    state = await watch(
        host, partial(host.driver.merge_state, args.uuid, args.volume_id, args.merge),
        lambda state: state is MergeState.RUNNING,
    )
    if state is MergeState.NONE:
        raise KilonovaError(
            f"The files of volume {args.volume_id} were not merged to the end.",
            hint="the guest was switched off, or the storage failed; delete the snapshot again",
        )
    if state is MergeState.RUNNING:
        raise Unfinished(f"The files of volume {args.volume_id} are being merged.")


async def _abort_merge(host: HostEnvironment, args: MergeArgs) -> None:
    await host.driver.abort_merge(args.uuid, args.volume_id)


CHECK_FILE = HostStep("volume_file.check", _check, OverlayArgs)
PUT_ABOVE = HostStep("volume_file.put_above", _put_above, OverlayArgs)
STAY_BELOW = HostStep("volume_file.stay_below", _stay_below, OverlayArgs)
START_MERGE = HostStep("volume_file.start_merge", _start_merge, MergeArgs)
AWAIT_MERGE = HostStep("volume_file.await_merge", _await_merge, MergeArgs)
ABORT_MERGE = HostStep("volume_file.abort_merge", _abort_merge, MergeArgs)

STEPS = (CHECK_FILE, PUT_ABOVE, STAY_BELOW, START_MERGE, AWAIT_MERGE, ABORT_MERGE)
