"""What lies in the directory of an instance beside the disks that its guest has: found for the audit, and removed."""

from __future__ import annotations

from pathlib import Path

from kilonova.hypervisor.guest import BesideDisks
from kilonova.hypervisor.libvirt import replacement

RESCUE, KEPT, SNAPSHOTS = "*.rescue*", "*.kept-*", "snapshot-*.qcow2"


def find(instances: Path) -> list[BesideDisks]:
    """Of every directory that has something of it."""
    found = [_look(directory) for directory in sorted(instances.iterdir()) if directory.is_dir()]
    return [one for one in found if one != BesideDisks(uuid=one.uuid)]


def drop(directory: Path, *, kept: bool) -> None:
    """Remove it, but for what belongs to a rescue. kept: also what a resize has kept. None is fine."""
    replacement.drop_prepared(directory)
    replacement.drop_old(directory)
    for pattern in (SNAPSHOTS, KEPT) if kept else (SNAPSHOTS,):
        for file in directory.glob(pattern):
            file.unlink(missing_ok=True)


def _look(directory: Path) -> BesideDisks:
    aside = (replacement.OLD, replacement.DROPPED)
    return BesideDisks(
        uuid=directory.name, rescue=_has(directory, RESCUE), kept=_has(directory, KEPT),
        put_aside=any((directory / name).exists() for name in aside) or _has(directory, f"{replacement.PREPARED}*"),
        snapshots=_has(directory, SNAPSHOTS),
    )


def _has(directory: Path, pattern: str) -> bool:
    return next(directory.glob(pattern), None) is not None
