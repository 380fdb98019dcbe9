"""The account that guests run as."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

QEMU_USERS = ("libvirt-qemu", "qemu")
"""Accounts that distributions make for guests, the first that exists is used."""


def guest_account() -> pwd.struct_passwd | None:
    """None: there is none, and guests run as root."""
    for name in QEMU_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def guest_group() -> int | None:
    """Number of the group by which only guests may be given something: that of the account's own name, because other
    users may be in its first one (`kvm`). None if guests run as root."""
    account = guest_account()
    if account is None:
        return None
    try:
        return grp.getgrnam(account.pw_name).gr_gid
    except KeyError:
        return account.pw_gid


def closed_to_guests(path: Path) -> Path | None:
    """The first directory on the way to a path that guests may not pass, None if they can reach it.

    What is not there yet is taken for passable: it will be made so.
    """
    account = guest_account()
    if account is None:
        return None
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    for directory in reversed(path.parents):
        try:
            found = directory.stat()
        except FileNotFoundError:
            return None
        allowed = stat.S_IXOTH
        if found.st_uid == account.pw_uid:
            allowed = stat.S_IXUSR
        elif found.st_gid in groups:
            allowed = stat.S_IXGRP
        if not found.st_mode & allowed:
            return directory
    return None
