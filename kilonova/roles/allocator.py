"""How the C library keeps the memory of a process that serves for long."""

from __future__ import annotations

import ctypes

LARGE = 1 << 20
"""Bytes of a block that is given back to the system as soon as it is free."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def give_back_large_blocks() -> None:
    """Do not keep large blocks for later.

    The C library keeps blocks of a size that was once freed, up to 32 MiB. The 12 MiB in which a password is checked
    would stay for good, once for each thread that has checked one. C libraries without mallopt(3) keep nothing.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, LARGE)
