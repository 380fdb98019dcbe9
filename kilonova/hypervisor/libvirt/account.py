"""The account that guests run as."""

from __future__ import annotations

import grp
import pwd

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
