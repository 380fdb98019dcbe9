"""Tokens as clients hold them: a small signed and encrypted statement of who authenticated, how, for what.

Nothing is stored for a token, so tokens outlive restarts (Spec: EMI-55). What the bearer may do is looked up
whenever one is checked.
"""

from __future__ import annotations

import base64
import os
import uuid
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from kilonova.domain.errors import KilonovaError, Unauthorized
from kilonova.embedded.identity.records import Target


class Claims(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a token says. Times are seconds since the epoch.

    Args:
        methods: how the user authenticated, in a fixed order.
        target: what the token is scoped to; None if unscoped.
        audit_ids: the token's own id, and that of the first token it was made from.
        epoch: the user's token epoch when it was made.
    """

    user_id: str
    methods: tuple[str, ...]
    target: Target | None
    issued_at: float
    expires_at: float
    audit_ids: tuple[str, ...]
    epoch: int
    application_credential_id: str | None = None


def new_audit_id() -> str:
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()


class TokenCodec:
    """Makes and reads tokens with the keys of a file.

    The file holds one Fernet key per line. The first signs; all are accepted, so that a key is replaced by
    putting a new one above it.

    Args:
        key_file: made, readable by its owner only, if it does not exist.
    """

    def __init__(self, key_file: Path) -> None:
        if not key_file.exists():
            _create_key_file(key_file)
        try:
            self._fernet = MultiFernet([Fernet(line) for line in key_file.read_bytes().split()])
        except ValueError as error:
            raise KilonovaError(
                f"The token key file {key_file} is damaged: {error}",
                hint="remove it to have a new one made; all tokens given out become invalid",
            ) from error
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Claims).decode

    def encode(self, claims: Claims) -> str:
        return self._fernet.encrypt(self._encode(claims)).decode().rstrip("=")

    def decode(self, token: str) -> Claims:
        """Raises Unauthorized for anything that was not made with one of the keys."""
        try:
            secret = token.encode("ascii")
            return self._decode(self._fernet.decrypt(secret + b"=" * (-len(secret) % 4)))
        except (InvalidToken, UnicodeEncodeError, msgspec.DecodeError) as error:
            raise Unauthorized("The token is not valid.") from error


def _create_key_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
