"""Passwords and application secrets: hashed and checked with argon2 in threads, never on the event loop."""

from __future__ import annotations

import asyncio
import secrets
from functools import cached_property
from typing import TYPE_CHECKING

from kilonova.domain.trail import Threads

if TYPE_CHECKING:
    from argon2 import PasswordHasher

ITERATIONS = 3
MEMORY_KIB = 12 * 1024
THREADS = 2
LONGEST = 4096
"""Characters of the longest password that is looked at; argon2 would hash any length."""


class Passwords:
    """A bounded set of threads that hash. A check takes about 25 ms and 12 MiB."""

    def __init__(self) -> None:
        self._threads = Threads(THREADS, "password")

    async def hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """True if the password is the stored one.

        Args:
            stored: the hash, or None when there is none to compare with; that takes as long and is False, so
                that the time does not tell which users exist.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._matches, stored, password)

    def close(self) -> None:
        self._threads.shutdown(wait=False)

    @cached_property
    def _hasher(self) -> PasswordHasher:
        # Imported on first use: starting the service should not pay for a library that only logins need.
        from argon2 import PasswordHasher

        return PasswordHasher(ITERATIONS, MEMORY_KIB, parallelism=1)

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash(secrets.token_urlsafe())

    def _hash(self, password: str) -> str:
        return self._hasher.hash(password)

    def _matches(self, stored: str | None, password: str) -> bool:
        from argon2.exceptions import VerificationError

        if len(password) > LONGEST:
            return False
        try:
            return self._hasher.verify(stored or self._nobodys, password) and stored is not None
        except VerificationError:
            return False
