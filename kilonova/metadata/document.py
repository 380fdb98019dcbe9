"""What a guest reads when it asks the metadata service for a path."""

from __future__ import annotations

import base64
import secrets

from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata import ec2, openstack

NO_VENDOR_DATA = openstack.VendorDocuments()


def render(
    metadata: GuestMetadata, path: str, *, vendor: openstack.VendorDocuments = NO_VENDOR_DATA,
    random: openstack.Random = secrets.token_bytes,
) -> bytes | None:
    """Answer a GET of the metadata service.

    Args:
        path: as in the request, decoded; doubled and trailing slashes do not matter.
        vendor: what the operator tells this guest.
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
            return _openstack(metadata, version, rest, random, vendor)
        case [version, *rest]:
            return _ec2(metadata, version, rest)
    return None


def is_password(path: str) -> bool:
    """Whether a guest posts its password there."""
    return _is(path, openstack.PASSWORD)


def is_dynamic_vendor_data(path: str) -> bool:
    """Whether services of the operator have a part in what a guest reads there."""
    return _is(path, openstack.DYNAMIC_VENDOR_DATA)


def _is(path: str, document: str) -> bool:
    match [part for part in path.split("/") if part]:
        case ["openstack", version, name] if name == document:
            version = openstack.LATEST if version == "latest" else version
            return version in openstack.VERSIONS and version >= openstack.SINCE[document]
    return False


def _openstack(
    metadata: GuestMetadata, version: str, rest: list[str], random: openstack.Random, vendor: openstack.VendorDocuments
) -> bytes | None:
    version = openstack.LATEST if version == "latest" else version
    if version not in openstack.VERSIONS:
        return None
    names = openstack.documents(metadata, version)
    match rest:
        case []:
            return "\n".join(names).encode()
        case [name] if name in names:
            return openstack.document(metadata, version, name, random, vendor)
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
