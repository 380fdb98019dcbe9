"""Connect an attachment: serve the volume to whom it names. Delete one: serve it no longer.

An export exists exactly while an attachment with a connector does: it comes after the connector is recorded and goes
before it is forgotten. Spec: EMV-16, EMV-18, EMV-21, EMV-44.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.domain.operation import Failure
from kilonova.embedded.volume import attachments, messages, schema, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.operations.environment import VolumeEnvironment
from kilonova.embedded.volume.operations.whereabouts import READS, Whereabouts, tell_user, whereabouts
from kilonova.embedded.volume.states import AttachStatus, VolumeStatus
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.storage.pool import Address, Export, Served

S, A = VolumeStatus, AttachStatus
CONNECTABLE = (S.RESERVED, S.ATTACHING, S.IN_USE, S.DETACHING)


class ConnectAttachment(msgspec.Struct, frozen=True):
    """connector: as compute describes a host."""

    connector: dict[str, Any]


class DeleteAttachment(msgspec.Struct, frozen=True):
    """forced: a volume in error is well again when nobody has it."""

    forced: bool = False


class Exported(msgspec.Struct, frozen=True):
    """What the connector needs."""

    connection: dict[str, Any]


class Before(msgspec.Struct, frozen=True):
    """The attachment as it was. connected: it has an export already."""

    connected: bool
    volume_id: str
    mode: str
    encrypted: bool


def _begin_connect(tx: Tx, run: Run[ConnectAttachment]) -> None:
    attachment = attachments.get(tx.conn, run.subject)
    volume = volumes.get(tx.conn, attachment.volume_id, lock=True)
    if volume.status not in CONNECTABLE:
        raise InvalidVolume(volume.id, f"cannot be connected while it is {volume.status.value}")
    if (busy := schema.journal.holder(tx.conn, volume.id)) is not None and volume.status is S.RESERVED:
        raise InvalidVolume(volume.id, f"is being worked on: {busy[0].kind}")


def _connect(tx: Tx, run: Run[ConnectAttachment]) -> Before:
    attachment = attachments.get(tx.conn, run.subject)
    volume = volumes.get(tx.conn, attachment.volume_id, lock=True)
    connected = attachment.connector is not None
    attachments.connect(tx.conn, attachment, run.request.connector, tx.now)
    return Before(connected, volume.id, attachment.mode, volume.encrypted)


def _disconnect(tx: Tx, run: Run[ConnectAttachment]) -> None:
    found = attachments.find(tx.conn, run.subject)
    if found is not None and not run.output(Before).connected:
        attachments.disconnect(tx.conn, found, tx.now)


def _look(tx: Tx, run: Run[ConnectAttachment]) -> Whereabouts:
    return whereabouts(volumes.get(tx.conn, run.output(Before).volume_id))


async def _export(environment: VolumeEnvironment, run: Run[ConnectAttachment]) -> Exported:
    there, before = run.output(Whereabouts), run.output(Before)
    pool = environment.pool(there.host)
    served = await pool.add_export(export_of(run.subject, there.name_id, before.mode))
    return Exported(connection_info(run.subject, before, pool.address, served))


async def _unexport(environment: VolumeEnvironment, run: Run[ConnectAttachment]) -> None:
    if not run.output(Before).connected:
        await environment.pool(run.output(Whereabouts).host).remove_export(run.subject, force=True)


def export_of(attachment_id: str, name_id: str, mode: str) -> Export:
    """What a pool serves for an attachment with a connector."""
    return Export(id=attachment_id, volume_id=name_id, writable=mode == "rw")


def connection_info(attachment_id: str, before: Before, address: Address, served: Served) -> dict[str, Any]:
    """What a hypervisor needs to reach a volume, and how it must treat it. Spec: EMV-20, EMV-25, 5.8."""
    where: dict[str, Any] = {"socket": address.socket} if address.socket else {
        "host": address.host, "port": address.port, "hosts": [address.host], "ports": [str(address.port)],
    }
    return {
        "driver_volume_type": "nbd", "export": attachment_id, "name": attachment_id, **where, "tls": address.tls,
        "attachment_id": attachment_id, "volume_id": before.volume_id,
        "access_mode": before.mode, "encrypted": before.encrypted, "qos_specs": None,
        "discard": True, "write_through": served.write_through,
        "cacheable": False, "enforce_multipath": False,
    }


def _connected(tx: Tx, run: Run[ConnectAttachment]) -> None:
    attachments.connected(tx.conn, run.subject, run.output(Exported).connection, tx.now)


def _not_connected(tx: Tx, run: Run[ConnectAttachment], failure: Failure) -> None:
    found = attachments.find(tx.conn, run.subject)
    if found is not None:
        tell_user(tx, run, messages.VOLUME, found.volume_id, failure)


CONNECT = Operation(
    name="connect attachment",
    about="attachment",
    request=ConnectAttachment,
    begins=_begin_connect,
    steps=(
        Record("connect", _connect, undo=_disconnect),
        Record("look", _look, undo=READS),
        Here("export", _export, undo=_unexport),
    ),
    ends=_connected,
    fails=_not_connected,
)


class Held(msgspec.Struct, frozen=True):
    """Where the export of an attachment is, "" if there is none."""

    host: str


def _begin_delete(tx: Tx, run: Run[DeleteAttachment]) -> None:
    attachment = attachments.get(tx.conn, run.subject)
    volumes.get(tx.conn, attachment.volume_id, lock=True)
    if attachment.status is A.ATTACHED:
        attachments.mark(tx.conn, attachment.id, A.DETACHING, tx.now)


def _find(tx: Tx, run: Run[DeleteAttachment]) -> Held:
    attachment = attachments.get(tx.conn, run.subject)
    volume = volumes.get(tx.conn, attachment.volume_id)
    return Held((volume.host or "") if attachment.connector is not None else "")


async def _stop(environment: VolumeEnvironment, run: Run[DeleteAttachment]) -> None:
    """Whoever is still connected is cut off: after this somebody else may write."""
    host = run.output(Held).host
    if host:
        await environment.pool(host).remove_export(run.subject, force=True)


def _deleted(tx: Tx, run: Run[DeleteAttachment]) -> None:
    attachments.delete(tx.conn, attachments.get(tx.conn, run.subject), tx.now, forced=run.request.forced)


def _not_deleted(tx: Tx, run: Run[DeleteAttachment], failure: Failure) -> None:
    attachments.mark(tx.conn, run.subject, A.ERROR_DETACHING, tx.now)
    tell_user(tx, run, messages.VOLUME, attachments.get(tx.conn, run.subject).volume_id, failure)


DELETE_ATTACHMENT = Operation(
    name="delete attachment",
    about="attachment",
    request=DeleteAttachment,
    begins=_begin_delete,
    preempts=("connect attachment",),
    no_return="stop export",
    steps=(
        Record("look", _find, undo=READS),
        Here("stop export", _stop, undo=NoUndo("whoever used it has let go of it")),
    ),
    ends=_deleted,
    fails=_not_deleted,
)
