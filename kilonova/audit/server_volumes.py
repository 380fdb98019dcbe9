"""Comparing the volumes of servers as they are recorded, as the volume service has them, and as guests have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import sqlalchemy as sa

from kilonova.audit.differences import Difference, Kind
from kilonova.audit.volumes import VolumesFound
from kilonova.db import block_devices
from kilonova.db.block_devices import block_device_mappings
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import KilonovaError
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.hypervisor.volumes import HeldVolume, NbdSource, VolumeSource, guest_volume

WITH_VOLUMES = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED, VmState.RESCUED})
"""States of servers whose guests have exactly their volumes."""
ON_ITS_WAY = (AttachState.ATTACHING, AttachState.DETACHING)


class Seen(Protocol):
    """The part of a look that is about them.

    block_devices: of all servers, deleted ones too, by cell and server. held: what guests have, by host and server, of
    hosts that tell.
    """

    @property
    def servers(self) -> dict[str, tuple[str, Instance]]: ...
    @property
    def requests(self) -> frozenset[str]: ...
    @property
    def volumes(self) -> VolumesFound | None: ...
    @property
    def block_devices(self) -> Mapping[tuple[str, str], list[BlockDevice]]: ...
    @property
    def held(self) -> Mapping[str, Mapping[str, tuple[HeldVolume, ...]]]: ...


def all_block_devices(conn: sa.Connection) -> dict[str, list[BlockDevice]]:
    """All that a cell has, by server."""
    return block_devices.of_servers(
        conn, conn.execute(sa.select(block_device_mappings.c.instance_uuid).distinct()).scalars().all()
    )


def compare_server_volumes(look: Seen) -> Iterator[Difference]:
    """All differences between records, attachments and guests. Spec: VOL-29."""
    for (cell, uuid), devices in sorted(look.block_devices.items()):
        _, server = look.servers.get(uuid, (cell, None))
        if server is not None:
            yield from _of_server(look, cell, server, devices)
        elif uuid not in look.requests:
            for device in devices:
                yield Difference(
                    kind=Kind.BLOCK_DEVICE_WITHOUT_SERVER, object=device.uuid, subject=uuid, cell=cell,
                    what=f"volume {device.volume_id} is recorded for server {uuid}, which does not exist",
                )
    yield from _attachments(look)
    own = {server: devices for (_, server), devices in look.block_devices.items()}
    for uuid, (cell, server) in look.servers.items():
        held = look.held.get(server.host or "")
        if held is not None and server.vm_state in WITH_VOLUMES:
            yield from _in_guest(cell, server, own.get(uuid, []), held.get(uuid, ()))


def _of_server(look: Seen, cell: str, server: Instance, devices: list[BlockDevice]) -> Iterator[Difference]:
    for device in devices:
        name = f"volume {device.volume_id} of server {server.uuid}"
        about = {"object": device.uuid, "subject": server.uuid, "host": server.host or "", "cell": cell}
        if device.state in ON_ITS_WAY:
            yield Difference(kind=Kind.BLOCK_DEVICE_FORGOTTEN, **about,
                             what=f"{name} is recorded as {device.state.value}, and nothing works on it")
        elif look.volumes is not None and device.attachment_id not in (None, *look.volumes.attached):
            yield Difference(kind=Kind.ATTACHMENT_MISSING, **about,
                             what=f"{name} has lost its attachment {device.attachment_id}")


def _attachments(look: Seen) -> Iterator[Difference]:
    if look.volumes is None:
        return
    named = {device.attachment_id for devices in look.block_devices.values() for device in devices}
    used = {
        _name(source) for guests in look.held.values() for held in guests.values() for one in held
        for source in (one.running, one.defined) if source is not None
    }
    for attachment, uuid in sorted(look.volumes.attached.items()):
        if uuid in look.servers and attachment not in named and attachment not in used:
            yield Difference(
                kind=Kind.ATTACHMENT_LEFT, object=attachment, subject=uuid,
                what=f"attachment {attachment} is of server {uuid}, which does not know it",
            )


def _in_guest(
    cell: str, server: Instance, devices: list[BlockDevice], held: tuple[HeldVolume, ...]
) -> Iterator[Difference]:
    """By where the guest has them from: after a swap it still sees the name of the volume that it had before."""
    wanted = dict(_sources(devices))
    found = {_name(one.defined or one.running): one for one in held}
    about = {"subject": server.uuid, "host": server.host or "", "cell": cell}
    for name in sorted(found.keys() - wanted.keys()):
        yield Difference(
            kind=Kind.VOLUME_LEFT_IN_GUEST, object=f"{server.uuid}/{found[name].device_name}", **about,
            what=f"the guest of server {server.uuid} has volume {found[name].id} as {found[name].device_name}, "
                 "the server has not",
        )
    for name in sorted(wanted.keys() - found.keys()):
        yield Difference(
            kind=Kind.VOLUME_MISSING_IN_GUEST, object=wanted[name].uuid, **about,
            what=f"server {server.uuid} has volume {wanted[name].volume_id}, its guest has not",
        )


def _sources(devices: list[BlockDevice]) -> Iterator[tuple[str, BlockDevice]]:
    for device in devices:
        if device.state is AttachState.ATTACHED and device.connection_info is not None:
            try:
                yield _name(guest_volume(device).source), device
            except KilonovaError:  # served in a way that no driver here knows
                continue


def _name(source: VolumeSource | None) -> str:
    """What tells one source from another."""
    if isinstance(source, NbdSource):
        return source.export
    return source.path if source is not None else ""
