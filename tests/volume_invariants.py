"""What must hold of volumes in a cloud on the fake driver once nothing is left to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

import msgspec
import sqlalchemy as sa

from kilonova.db.block_devices import block_device_mappings, of_servers
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.embedded.volume import schema
from kilonova.hypervisor.fake import FakeGuest
from kilonova.hypervisor.fake_state import FakeVolume
from kilonova.hypervisor.volumes import FileSource, VolumeSource, guest_volume
from kilonova.services.volumes import Attachment

FAILED = ("error", "error_extending")
"""Statuses of volumes that tell of a failure and not of their servers."""
STATES = {AttachState.RESERVED: ("reserved", "attached"), AttachState.ATTACHED: ("attached",)}
"""How the volume service tells of the attachments of mappings at rest. What a server without a host is given is in use
at once."""

Mappings = Mapping[str, list[BlockDevice]]
"""By server."""


class VolumesSeen(msgspec.Struct):
    """What a volume service has.

    Args:
        statuses: by volume. exports: the attachments that it serves, None if nobody looked.
    """

    statuses: dict[str, str]
    attachments: list[Attachment]
    exports: set[str] | None = None


def embedded(api: sa.Connection, exports: set[str] | None) -> VolumesSeen:
    """What the embedded service has recorded."""
    v, a = schema.volumes.c, schema.attachments.c
    rows = api.execute(sa.select(a.id, a.volume_id, a.instance_id, a.status, a.connection))
    return VolumesSeen(
        statuses={row.id: row.status.value for row in api.execute(sa.select(v.id, v.status))},
        attachments=[
            Attachment(
                id=row.id, volume_id=row.volume_id, instance_uuid=row.instance_id, status=row.status.value,
                connection_info=row.connection,
            )
            for row in rows
        ],
        exports=exports,
    )


def mappings(cell: sa.Connection) -> dict[str, list[BlockDevice]]:
    """All block device mappings."""
    return of_servers(cell, cell.execute(sa.select(block_device_mappings.c.instance_uuid).distinct()).scalars().all())


def wrong_volumes(
    seen: VolumesSeen, mapped: Mappings, alive: Mapping[str, Instance],
    guests: Mapping[str, Mapping[str, FakeGuest]], unsettled: Iterable[VmState] = (VmState.ERROR,),
) -> Iterator[str]:
    """Mappings, attachments, exports and guests tell the same, and no volume is on its way to anything.

    Args:
        guests: by host and server. unsettled: states of servers whose guests may be anything.
    """
    named = {one.attachment_id: (server, one) for server, own in mapped.items() for one in own}
    held = {one.id: one for one in seen.attachments}
    for server in mapped.keys() - alive.keys():
        yield f"deleted server {server} still has {mapped[server]}"
    for one in seen.attachments:
        server, mapping = named.get(one.id, ("", None))
        if mapping is None or (server, mapping.volume_id) != (one.instance_uuid, one.volume_id):
            yield f"attachment {one.id} of volume {one.volume_id} and server {one.instance_uuid} is nobody's"
    for uuid, own in mapped.items():
        failed = uuid in alive and alive[uuid].vm_state is VmState.ERROR
        for mapping in own:
            if failed and mapping.state is AttachState.RESERVED and mapping.attachment_id is None:
                continue  # it could not be built
            yield from _wrong_mapping(uuid, mapping, held.get(mapping.attachment_id or ""))
    users: dict[str, set[str]] = defaultdict(set)
    for one in seen.attachments:
        users[one.volume_id].add(one.status)
    for volume, status in seen.statuses.items():
        wanted = "in-use" if "attached" in users[volume] else "reserved" if users[volume] else "available"
        if status not in (wanted, *FAILED):
            yield f"volume {volume} is {status} and should be {wanted}"
    connected = {one.id for one in seen.attachments if one.connection_info is not None}
    if seen.exports is not None and seen.exports != connected:
        yield f"the exports are {seen.exports}, the attachments with connectors {connected}"
    for host, there in guests.items():
        for uuid, guest in there.items():
            server = alive.get(uuid)
            if server is not None and server.host == host and server.vm_state not in unsettled:
                yield from _wrong_guest(server, guest, mapped.get(uuid, []))


def _wrong_mapping(server: str, mapping: BlockDevice, attachment: Attachment | None) -> Iterator[str]:
    name = f"volume {mapping.volume_id} of server {server} ({mapping.state.value})"
    if mapping.state not in STATES:
        yield f"{name} is on its way"
    elif attachment is None:
        yield f"{name} has no attachment"
    elif attachment.status not in STATES[mapping.state]:
        yield f"{name} has the attachment {attachment}"
    elif (attachment.connection_info is None) is not (mapping.connection_info is None):
        yield f"{name} is connected by {mapping.connection_info}, its attachment by {attachment.connection_info}"


def _wrong_guest(server: Instance, guest: FakeGuest, own: list[BlockDevice]) -> Iterator[str]:
    name = f"server {server.uuid} ({server.vm_state.value})"
    has = {id_: _places(one) for id_, one in guest.volumes.items()}
    wanted = {
        one.volume_id: {_place_of(one)} for one in own
        if one.state is AttachState.ATTACHED and one.connection_info is not None
    }
    if merging := [id_ for id_, one in guest.volumes.items() if one.merge is not None]:
        yield f"{name} has a guest that still merges files of {merging}"
    if guest.defined and has != wanted:
        yield f"{name} has the volumes {wanted}, its guest {has}"


def _place_of(mapping: BlockDevice) -> str | None:
    """Where a guest is to have a volume from: the attachment is the name under which it is served."""
    source = guest_volume(mapping).source
    return source.path if isinstance(source, FileSource) else mapping.attachment_id


def _places(volume: FakeVolume) -> set[str]:
    """Where a guest has a volume from, now and when it is started again."""
    return {_place(one) for one in (volume.running, volume.defined, volume.target) if one is not None}


def _place(source: VolumeSource) -> str:
    return source.path if isinstance(source, FileSource) else source.export
