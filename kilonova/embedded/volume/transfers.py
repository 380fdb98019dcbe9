"""Offers of volumes to other projects: units of work. The key of an offer is shown once; its hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.volume import quotas, schema, snapshots, volume_types, volumes
from kilonova.embedded.volume.errors import InvalidVolume, TransferNotFound
from kilonova.embedded.volume.owned import OwnedRecords
from kilonova.embedded.volume.records import Transfer
from kilonova.embedded.volume.states import VolumeStatus

table = schema.transfers
column = table.c

_records = OwnedRecords(table, Transfer, TransferNotFound)
visible = _records.visible

KEY_BYTES = 12
SALT_BYTES = 8


def create(
    conn: sa.Connection, caller: RequestContext, volume_id: str, name: str | None, now: float, *,
    no_snapshots: bool = False,
) -> tuple[Transfer, str]:
    """Offer a volume. Returns the offer and its key, which nobody is told again.

    Args:
        no_snapshots: it is refused if the volume has snapshots; otherwise they go with it.

    Raises:
        VolumeNotFound. InvalidVolume: it is not available, is encrypted, or migrates.
    """
    volume = volumes.visible(conn, caller, volume_id, lock=True)
    volumes.refuse_migrating(volume)
    if volume.encrypted:
        raise InvalidVolume(volume_id, "is encrypted with a key of its project and cannot be transferred")
    if no_snapshots and snapshots.of_volume(conn, volume_id):
        raise InvalidVolume(volume_id, "has snapshots")
    volumes.begin(conn, volume_id, [VolumeStatus.AVAILABLE], VolumeStatus.AWAITING_TRANSFER, now)
    key, salt = secrets.token_hex(KEY_BYTES), secrets.token_hex(SALT_BYTES)
    made = Transfer(
        id=str(uuid.uuid4()), volume_id=volume_id, project_id=volume.project_id, name=name, salt=salt,
        auth_hash=_hash(salt, key), no_snapshots=no_snapshots, created_at=now,
    )
    _records.insert(conn, made)
    return made, key


def _hash(salt: str, key: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", key.encode(), salt.encode(), 10_000).hex()


def accept(conn: sa.Connection, caller: RequestContext, transfer_id: str, key: str, now: float) -> Transfer:
    """Give the volume to the caller's project, with its snapshots, if it has room for them.

    Raises:
        TransferNotFound. InvalidInput: the key is wrong, or the caller has no project. VolumeOverQuota.
    """
    offer = _records.get(conn, transfer_id)
    if caller.project_id is None:
        raise InvalidInput("A volume can only be given to a project.")
    if not hmac.compare_digest(_hash(offer.salt, key), offer.auth_hash):
        raise InvalidInput(f"Attempt to transfer {transfer_id} with invalid auth key.")
    volume = volumes.get(conn, offer.volume_id, lock=True)
    if volume.status is not VolumeStatus.AWAITING_TRANSFER:
        raise InvalidVolume(volume.id, f"must be awaiting-transfer, but is {volume.status.value}")
    type_name = volume_types.get(conn, volume.type_id).name if volume.type_id else None
    kept = snapshots.of_volume(conn, volume.id)
    more = {"volumes": 1, "snapshots": len(kept), "gigabytes": volume.size + sum(one.size for one in kept)}
    quotas.check(conn, caller.project_id, more, type_name)
    owner = {"project_id": caller.project_id, "user_id": caller.user_id}
    for one in kept:
        snapshots.change(conn, one.id, now, **owner)
    volumes.finish(conn, volume.id, VolumeStatus.AWAITING_TRANSFER, now, **owner)
    _records.delete(conn, transfer_id)
    return offer


def withdraw(conn: sa.Connection, caller: RequestContext, transfer_id: str, now: float) -> None:
    """Take an offer back. Raises TransferNotFound."""
    offer = visible(conn, caller, transfer_id)
    volumes.finish(conn, offer.volume_id, VolumeStatus.AWAITING_TRANSFER, now)
    _records.delete(conn, transfer_id)
