"""Snapshots of volumes in use that the hypervisor takes for a volume service. Spec: API-263, API-264, EMV-40."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Enum, Object, Text, optional, required
from kilonova.cells.registry import Located
from kilonova.db import block_devices, instances
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import Conflict, InstanceNotFound, InvalidInput, NotFound, VolumeNotAttached
from kilonova.engine.operation import Operation
from kilonova.hypervisor.volumes import FileMerge
from kilonova.operations.delete_volume_snapshot import DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot
from kilonova.operations.take_volume_snapshot import TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot

FILE = r"(?!\.{1,2}$)[^/\x00]+"
"""The name of a file without its directory."""
SNAPSHOT = Object({"snapshot": required(Object({
    "volume_id": required(Text(1, 255)),
    "create_info": required(Object({
        "snapshot_id": required(Text(1, 255)),
        "type": required(Enum("qcow2")),
        "new_file": required(Text(1, 255, pattern=FILE)),
        "id": optional(Text(1, 255)),
    })),
}))})


class DeleteInfo(msgspec.Struct, frozen=True):
    """What a volume service tells when it has a snapshot deleted. The files are missing only if it names none."""

    volume_id: str
    file_to_merge: str | msgspec.UnsetType | None = msgspec.UNSET
    merge_target_file: str | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def merge(self) -> FileMerge | None:
        if self.file_to_merge is msgspec.UNSET or self.merge_target_file is msgspec.UNSET:
            return None
        return FileMerge(file=self.file_to_merge, into=self.merge_target_file)


async def create(call: Call) -> Any:
    """Answers when it is accepted; the volume service hears of the end from the status of its snapshot. Spec: API-263.
    """
    asked = call.body["snapshot"]
    volume, info = asked["volume_id"], asked["create_info"]
    try:
        server = await _server_with(call, volume)
    except NotFound as error:
        raise InvalidInput(error.message) from error
    await _ask(call, server, TAKE_VOLUME_SNAPSHOT, TakeVolumeSnapshot(
        volume_id=volume, snapshot_id=info["snapshot_id"], new_file=info["new_file"],
    ))
    return {"snapshot": {"id": info.get("id"), "volumeId": volume}}


async def delete(call: Call) -> None:
    """The same. Spec: API-264."""
    try:
        told = msgspec.json.decode(call.query.last("delete_info", ""), type=DeleteInfo)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise InvalidInput("delete_info is missing, or no JSON object that names a volume_id.") from error
    server = await _server_with(call, told.volume_id)
    await _ask(call, server, DELETE_VOLUME_SNAPSHOT, DeleteVolumeSnapshot(
        volume_id=told.volume_id, snapshot_id=call.path["id"], merge=told.merge,
    ))


async def _server_with(call: Call, volume: str) -> Located:
    """The one server that has a volume.

    Raises:
        NotFound: none has it. InvalidInput: several may have it, who would not all change to another file.
    """
    found: list[tuple[Located, BlockDevice]] = []
    for cell in call.cloud.cells.all:
        for uuid, device in (await cell.database.read(lambda conn: block_devices.with_volume(conn, volume))).items():
            with contextlib.suppress(InstanceNotFound):  # it was deleted, and lets go of its volumes
                instance = await cell.database.read(lambda conn, uuid=uuid: instances.get(conn, uuid))  # type: ignore[misc]
                found.append((Located(instance, cell), device))
    if not found:
        raise NotFound(f"Volume {volume[:255]} is not attached to an instance.")
    server, device = found[0]
    info = msgspec.json.decode(device.connection_info or "{}", type=dict[str, Any])
    if len(found) > 1 or (info | info.get("data", {})).get("multiattach"):
        raise InvalidInput(f"Volume {volume} can be attached to several servers, which has no assisted snapshots.")
    return server


async def _ask(call: Call, server: Located, operation: Operation, request: msgspec.Struct) -> None:
    """The lock of a server is for its users, not for the volume service."""
    service = msgspec.structs.replace(call.context, is_admin=True)
    with _refused():
        await call.cloud.compute.ask(service, server, operation, request)


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """A server that is in no state for it is the volume service's bad request."""
    try:
        yield
    except (Conflict, VolumeNotAttached, InstanceNotFound) as error:
        raise InvalidInput(error.message, hint=error.hint) from error


ROUTES = [
    Route(method="POST", path="/os-assisted-volume-snapshots", handler=create, body=SNAPSHOT,
          rule=Rule("os-assisted-volume-snapshots:create", Audience.SERVICE)),
    Route(method="DELETE", path="/os-assisted-volume-snapshots/{id}", handler=delete, status=204,
          rule=Rule("os-assisted-volume-snapshots:delete", Audience.SERVICE),
          query=Query({"delete_info": Param(Text())}, strict_since=75)),
]
