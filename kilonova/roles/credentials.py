"""Secrets and client files of an installation, kept at mode 0600."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import msgspec

CLOUD = "kilonova"
"""Name of the cloud in `clouds.yaml`."""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What an installation is known by.

    Args:
        token: 5 letters and digits that mark its devices on the machine.
    """

    id: str
    token: str
    admin_password: str


def write_private(file: Path, content: str) -> None:
    """Write a file that only its owner can read, atomically."""
    temporary = file.with_name(f".{file.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchmod(stream.fileno(), 0o600)
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def installation(directory: Path) -> Installation:
    """The installation in a data directory; made at the first call."""
    file = directory / "installation.json"
    if file.exists():
        return msgspec.json.decode(file.read_bytes(), type=Installation)
    alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
    made = Installation(
        id=secrets.token_hex(16),
        token="".join(secrets.choice(alphabet) for _ in range(5)),
        admin_password=secrets.token_urlsafe(18),
    )
    write_private(file, msgspec.json.encode(made).decode())
    return made


def secrets_key(directory: Path) -> bytes:
    """The key that the secrets of servers are encrypted with; made at the first call. Without it they are lost."""
    file = directory / "secrets.key"
    if not file.exists():
        write_private(file, secrets.token_hex(32))
    return bytes.fromhex(file.read_text())


def client_files(directory: Path, made: Installation, public_url: str) -> tuple[Path, Path]:
    """Write `clouds.yaml` and `openrc` for the administrator; returns their paths."""
    auth_url = f"{public_url}/identity/v3"
    clouds = directory / "clouds.yaml"
    write_private(clouds, f"""clouds:
  {CLOUD}:
    auth:
      auth_url: {auth_url}
      username: admin
      password: {made.admin_password}
      project_name: admin
      user_domain_id: default
      project_domain_id: default
    region_name: RegionOne
    identity_api_version: 3
""")
    openrc = directory / "openrc"
    values = {
        "OS_AUTH_URL": auth_url, "OS_USERNAME": "admin", "OS_PASSWORD": made.admin_password,
        "OS_PROJECT_NAME": "admin", "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default",
        "OS_REGION_NAME": "RegionOne", "OS_IDENTITY_API_VERSION": "3",
    }
    write_private(openrc, "".join(f"export {name}='{value}'\n" for name, value in values.items()))
    return clouds, openrc
