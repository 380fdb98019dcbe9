"""Who may connect to the message bus between hosts, and as what."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

from kilonova.bus.subjects import REPLIES, host_token
from kilonova.domain.errors import KilonovaError


class CredentialsUnusable(KilonovaError):
    """The file with the credentials cannot be read."""


CONTROL = "control"
"""The user that all processes of the control plane connect as."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """One user of the bus: `CONTROL`, or the agent of a host (see `host_user`)."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r})"

    @property
    def inbox(self) -> str:
        """Root of the subjects on which this user, and no other, may hear replies."""
        return f"{REPLIES}.{self.user}"


def host_user(host: str) -> str:
    """The user that a host's agent connects as."""
    return f"host.{host_token(host)}"


def new_password() -> str:
    """256 bits that cannot be guessed."""
    return secrets.token_hex(32)


def save(path: Path, secret: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def store(path: Path, credentials: Credentials) -> None:
    """Keep credentials in a file of mode 0600."""
    save(path, msgspec.json.encode(credentials))


def load(path: Path) -> Credentials:
    """Read what `store` wrote. Raises CredentialsUnusable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Credentials)
    except (OSError, msgspec.DecodeError) as error:
        raise CredentialsUnusable(
            f"The credentials for the message bus cannot be read from {path}.",
            hint="copy the file that was made when the host was added",
        ) from error
