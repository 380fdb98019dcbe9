"""Exchanging all disks of a guest at once, so that the old ones can come back until the new ones are known to be good.

New files are made with a prefix in the guest's directory, because an overlay names its image relative to itself. Old
ones are put into a directory below it, which is removed as a whole. Every function can be repeated after a crash at
any point.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import structlog

from kilonova.hypervisor.libvirt.files import flush

log = structlog.get_logger(__name__)

PREPARED = "prepared-"
OLD = "old"
DROPPED = "dropped"
OF_THE_OLD_GUEST = ("uefi-variables.fd", "console.log")
"""Files that a guest makes for itself; the new one begins without."""


def drop_prepared(directory: Path) -> None:
    """Remove new files, and what is left of old ones that were dropped."""
    for prepared in list(directory.glob(f"{PREPARED}*")):
        prepared.unlink(missing_ok=True)
    _clear_away(directory / DROPPED)


def put_in_place(directory: Path) -> None:
    """Put the new disks in place of the old ones. A disk for which there is no new one stays."""
    old = directory / OLD
    old.mkdir(exist_ok=True)
    for new in list(directory.glob(f"{PREPARED}*")):
        used = directory / new.name.removeprefix(PREPARED)
        if used.exists() and not (old / used.name).exists():
            used.replace(old / used.name)
        new.replace(used)
    for name in OF_THE_OLD_GUEST:
        if (directory / name).exists():
            (directory / name).replace(old / name)
    flush(old)
    flush(directory)


def put_back(directory: Path) -> None:
    """Put old files back where they were and remove the new ones. Nothing to put back is fine."""
    old = directory / OLD
    if old.is_dir():
        for kept in list(old.iterdir()):
            kept.replace(directory / kept.name)
        flush(directory)
        old.rmdir()
    drop_prepared(directory)


def drop_old(directory: Path) -> None:
    """Remove the old files: all of them or, if it fails, none."""
    old = directory / OLD
    if old.is_dir():
        _clear_away(directory / DROPPED)
        old.replace(directory / DROPPED)
    _clear_away(directory / DROPPED)


def _clear_away(dropped: Path) -> None:
    """What cannot be removed now is removed with the next exchange, or with the guest."""
    try:
        shutil.rmtree(dropped)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("old disks cannot be removed", path=str(dropped), error=str(error))
