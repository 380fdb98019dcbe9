"""The config drive: the metadata as a small read-only disk, for guests without a metadata service.

One file system image is readable by everything that looks for one: ISO 9660 with Rock Ridge names (Linux,
BSD) and Joliet names (Windows).
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import secrets
import tempfile
from pathlib import Path, PurePosixPath

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import InjectedFile
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata import ec2, openstack
from kilonova.metadata.document import NO_VENDOR_DATA

LABEL = "config-2"
"""The volume label by which guests find the drive."""


def build_iso(
    metadata: GuestMetadata, path: Path, *, vendor: openstack.VendorDocuments = NO_VENDOR_DATA,
    random: openstack.Random = secrets.token_bytes,
) -> None:
    """Write the drive at `path`, whole or not at all. It may hold a password: only the owner can read it.

    Args:
        vendor: what the operator tells this guest.
        random: gives the bytes of `random_seed`.

    Raises:
        InvalidInput: the content of an injected file is not base64. Spec: BLD-01, BLD-02.
    """
    image = _image(drive_files(metadata, random, vendor))
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def drive_files(
    metadata: GuestMetadata, random: openstack.Random, vendor: openstack.VendorDocuments = NO_VENDOR_DATA
) -> dict[str, bytes]:
    """Path and content of each file of the drive.

    The drive is the one way by which injected files and the administrator's password reach a guest.
    """
    listed = [openstack.ContentFile(f"/content/{i:04d}", file.path) for i, file in enumerate(metadata.files)]
    files = {
        f"openstack{one.content_path}": _content(file)
        for one, file in zip(listed, metadata.files, strict=True)
    }
    for version in (*openstack.VERSIONS, "latest"):
        known = openstack.LATEST if version == "latest" else version
        for name in openstack.documents(metadata, known):
            if name != openstack.PASSWORD:
                files[f"openstack/{version}/{name}"] = openstack.document(metadata, known, name, random, vendor)
        private = msgspec.structs.replace(
            openstack.meta_data(metadata, known, random),
            files=listed or msgspec.UNSET,
            admin_pass=metadata.admin_password or msgspec.UNSET,
        )
        files[f"openstack/{version}/meta_data.json"] = msgspec.json.encode(private)
    for version in (ec2.LATEST, "latest"):
        files[f"ec2/{version}/meta-data.json"] = msgspec.json.encode(ec2.meta_data(metadata))
        if metadata.user_data is not None:
            files[f"ec2/{version}/user-data"] = base64.b64decode(metadata.user_data)
    return files


def _content(file: InjectedFile) -> bytes:
    try:
        return base64.b64decode(file.contents, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"The content of the injected file {file.path} is not base64.") from error


def _image(files: dict[str, bytes]) -> bytes:
    """ISO 9660 allows eight capital letters, so its own names are numbers; guests see the other two kinds."""
    import pycdlib  # here: most servers have no config drive, and it takes 2 MiB

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    try:
        places: dict[PurePosixPath, str] = {PurePosixPath("/"): ""}
        parents = {parent for name in files for parent in PurePosixPath("/", name).parents}
        for number, parent in enumerate(sorted(parents - places.keys())):
            places[parent] = f"{places[parent.parent]}/D{number:04d}"
            iso.add_directory(places[parent], rr_name=parent.name, joliet_path=str(parent))
        for number, (name, content) in enumerate(sorted(files.items())):
            path = PurePosixPath("/", name)
            place = f"{places[path.parent]}/F{number:04d}.;1"
            iso.add_fp(io.BytesIO(content), len(content), place, rr_name=path.name, joliet_path=str(path))
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return image.getvalue()
