"""The store of secrets that comes with the product.

Each value is encrypted (AES-GCM) with a key that is derived, for each user, from the key of the installation. The
database alone tells nothing, and neither does the key alone.
"""

from __future__ import annotations

import base64
import os
import secrets

import sqlalchemy as sa
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kilonova.db import instances
from kilonova.db import secrets as rows
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, NotFound
from kilonova.services.secrets import Purpose

KEY_BYTES = 32
NONCE_BYTES = 12


class EmbeddedSecrets:
    """Secrets of the servers of one cell.

    Args:
        database: the cell's. key: of the installation, random bytes.
    """

    def __init__(self, database: Database, key: bytes, clock: Clock) -> None:
        self._database = database
        self._key = key
        self._clock = clock

    async def make(self, instance: str, purpose: Purpose, owner: str) -> None:
        sealed = self._seal(instance, purpose, owner, secrets.token_hex(KEY_BYTES))
        now = self._clock.now()

        def keep(conn: sa.Connection) -> None:
            instances.get(conn, instance, lock=True)
            if rows.find(conn, instance, purpose) is None:
                rows.insert(conn, instance, purpose, owner, sealed, now=now)

        await self._database.write(keep)

    async def value(self, instance: str, purpose: Purpose) -> str:
        """Raises also KilonovaError: it was encrypted with another key."""
        found = await self._database.read(lambda conn: rows.find(conn, instance, purpose))
        if found is None:
            raise NotFound(f"Instance {instance} has no secret for its {purpose}.")
        owner, sealed = found
        stored = base64.b64decode(sealed)
        try:
            opened = self._cipher(owner).decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], _about(instance, purpose))
        except InvalidTag as error:
            raise KilonovaError(
                f"The secret of instance {instance} for its {purpose} cannot be decrypted.",
                hint="is secrets.key in the data directory the one it was made with?",
            ) from error
        return opened.decode()

    def _seal(self, instance: str, purpose: Purpose, owner: str, value: str) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher(owner).encrypt(nonce, value.encode(), _about(instance, purpose))
        return base64.b64encode(nonce + sealed).decode()

    def _cipher(self, owner: str) -> AESGCM:
        derive = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=b"secrets of " + owner.encode())
        return AESGCM(derive.derive(self._key))


def _about(instance: str, purpose: Purpose) -> bytes:
    """What the encryption is bound to, so that no row can be put in the place of another."""
    return f"{instance} {purpose}".encode()
