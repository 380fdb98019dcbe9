"""What a guest reads when it asks the metadata service for a path."""

from __future__ import annotations

import base64
import secrets

from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata import ec2, openstack


def render(
    metadata: GuestMetadata, path: str, *, random: openstack.Random = secrets.token_bytes
) -> bytes | None:
    """Answer a GET of the metadata service.

    Args:
        path: as in the request, decoded; doubled and trailing slashes do not matter.
        random: gives the bytes of `random_seed`.

    Returns:
        The body, or None where the service answers 404.
    """
    match [part for part in path.split("/") if part]:
        case []:
            return "\n".join([*ec2.VERSIONS, "latest"]).encode()
        case ["openstack"]:
            return "\n".join([*openstack.VERSIONS, "latest"]).encode()
        case ["openstack", version, *rest]:
            return _openstack(metadata, version, rest, random)
        case [version, *rest]:
            return _ec2(metadata, version, rest)
    return None


def is_password(path: str) -> bool:
    """Whether a guest posts its password there."""
    match [part for part in path.split("/") if part]:
        case ["openstack", version, openstack.PASSWORD]:
            version = openstack.LATEST if version == "latest" else version
            return version in openstack.VERSIONS and version >= openstack.SINCE[openstack.PASSWORD]
    return False


def _openstack(
    metadata: GuestMetadata, version: str, rest: list[str], random: openstack.Random
) -> bytes | None:
    version = openstack.LATEST if version == "latest" else version
    if version not in openstack.VERSIONS:
        return None
    names = openstack.documents(metadata, version)
    match rest:
        case []:
            return "\n".join(names).encode()
        case [name] if name in names:
            return openstack.document(metadata, version, name, random)
    return None


def _ec2(metadata: GuestMetadata, version: str, rest: list[str]) -> bytes | None:
    version = ec2.LATEST if version == "latest" else version
    if version not in ec2.VERSIONS:
        return None
    match rest:
        case []:
            return b"meta-data/" if metadata.user_data is None else b"meta-data/\nuser-data"
        case ["user-data"] if metadata.user_data is not None:
            return base64.b64decode(metadata.user_data)
        case ["meta-data", *names]:
            value = ec2.lookup(ec2.meta_data(metadata, version), names)
            return None if value is None else value.encode()
    return None
