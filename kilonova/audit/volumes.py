"""Comparing the storage pools of the embedded volume service with its records, and settling what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa

from kilonova.audit.differences import Difference, Kind
from kilonova.domain.operation import TERMINAL, OperationState
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.client import VolumeClient
from kilonova.embedded.volume.service import EmbeddedVolumes, recorded_exports
from kilonova.embedded.volume.states import AttachStatus, SnapshotStatus, VolumeStatus
from kilonova.storage.pool import Export, Volume


class VolumesFound(msgspec.Struct, frozen=True):
    """Differences between pools and records, and the servers that attachments name, by attachment."""

    differences: tuple[Difference, ...]
    attached: dict[str, str]


class VolumeLedger(Protocol):
    """The volumes of this machine."""

    async def volumes_found(self) -> VolumesFound: ...

    async def settle(self, difference: Difference) -> bool:
        """Remove what belongs to nothing, or serve what is to be served. False if that is not so any more."""
        ...

    async def end(self, attachment: str) -> None:
        """Delete an attachment; none is fine."""
        ...


class Seen(Protocol):
    """The part of a look that is about them."""

    @property
    def volumes(self) -> VolumesFound | None: ...
    @property
    def servers(self) -> Mapping[str, Any]: ...
    @property
    def requests(self) -> Any: ...


def compare_volumes(look: Seen) -> Iterator[Difference]:
    """Attachments belong to servers, and what is in the pools to records."""
    if look.volumes is None:
        return
    yield from look.volumes.differences
    for attachment, server in sorted(look.volumes.attached.items()):
        if server not in look.servers and server not in look.requests:
            yield Difference(
                kind=Kind.ATTACHMENT_WITHOUT_SERVER, object=attachment, subject=server,
                what=f"attachment {attachment} is of server {server}, which does not exist",
            )


class EmbeddedVolumeLedger:
    """Compares the pools of one volume service with its records."""

    def __init__(self, service: EmbeddedVolumes) -> None:
        self._service = service

    async def volumes_found(self) -> VolumesFound:
        """What was found is asked first: what is recorded by then may come to exist, never the other way round.

        While an operation goes on, the pools may have what is not recorded yet, or not any more.
        """
        found = {}
        for host, pool in self._service.environment.pools.items():
            found[host] = (await pool.volumes(), await pool.exports())
        records = await self._service.database.read(_read)
        differences: list[Difference] = []
        if not records.busy:
            for host, (volumes, exports) in found.items():
                differences += _data(host, volumes, records)
                differences += _exports(host, exports, records)
        return VolumesFound(tuple(differences), records.attached)

    async def settle(self, difference: Difference) -> bool:
        """Raises KilonovaError: the pool cannot."""
        now = await self.volumes_found()
        if difference.identity not in {one.identity for one in now.differences}:
            return False
        pool = self._service.environment.pool(difference.host)
        match difference.kind:
            case Kind.VOLUME_DATA_LEFT:
                for one in await pool.volumes():
                    if one.id == difference.object:
                        for snapshot in one.snapshots:
                            await pool.delete_snapshot(one.id, snapshot.id)
                await pool.delete(difference.object)
            case Kind.VOLUME_SNAPSHOT_LEFT:
                await pool.delete_snapshot(*difference.object.split("/"))
            case Kind.VOLUME_EXPORT_LEFT:
                await pool.remove_export(difference.object, force=True)
            case _:
                exports = await self._service.database.read(recorded_exports)
                for wanted in exports[difference.host]:
                    if wanted.id == difference.object:
                        await pool.add_export(wanted)
        return True


    async def end(self, attachment: str) -> None:
        """Raises KilonovaError: the pool cannot."""
        await VolumeClient(self._service).delete_attachment(attachment)


class _Records(msgspec.Struct, frozen=True):
    """What the pools are to have. data, exports: by pool. sure: names of data that must be there."""

    data: dict[str, dict[str, set[str]]]
    sure: set[str]
    sure_snapshots: set[str]
    exports: dict[str, list[Export]]
    leaving: set[str]
    attached: dict[str, str]
    busy: bool


def _read(conn: sa.Connection) -> _Records:
    v, s, a = schema.volumes.c, schema.snapshots.c, schema.attachments.c
    data: dict[str, dict[str, set[str]]] = {}
    sure, names = set(), {}
    for id_, host, name, status in conn.execute(sa.select(v.id, v.host, v.name_id, v.status)):
        names[id_] = data.setdefault(host or "", {}).setdefault(name, set())
        if status is not VolumeStatus.ERROR_DELETING:
            sure.add(name)
    sure_snapshots = set()
    for id_, volume, status in conn.execute(sa.select(s.id, s.volume_id, s.status)):
        names[volume].add(id_)
        if status is SnapshotStatus.AVAILABLE:
            sure_snapshots.add(id_)
    held = conn.execute(sa.select(a.id, a.instance_id, a.status)).all()
    states = [state for state in OperationState if state not in TERMINAL]
    return _Records(
        data=data, sure=sure, sure_snapshots=sure_snapshots, exports=recorded_exports(conn),
        leaving={id_ for id_, _, status in held if status is AttachStatus.ERROR_DETACHING},
        attached={id_: server for id_, server, _ in held if server is not None},
        busy=bool(schema.journal.select(conn, states=states, limit=1)),
    )


def _data(host: str, found: list[Volume], records: _Records) -> Iterator[Difference]:
    wanted, there = records.data.get(host, {}), {one.id: one for one in found}
    for name in sorted(there.keys() - wanted.keys()):
        yield Difference(kind=Kind.VOLUME_DATA_LEFT, object=name, host=host,
                         what=f"there is data {name} in {host}, but it is no volume's")
    for name in sorted(wanted.keys() - there.keys()):
        if name in records.sure:
            yield Difference(kind=Kind.VOLUME_DATA_MISSING, object=name, host=host,
                             what=f"a volume has lost its data {name} in {host}")
    for name in sorted(there.keys() & wanted.keys()):
        taken = {snapshot.id for snapshot in there[name].snapshots}
        for id_ in sorted(taken - wanted[name]):
            yield Difference(kind=Kind.VOLUME_SNAPSHOT_LEFT, object=f"{name}/{id_}", host=host,
                             what=f"data {name} in {host} have snapshot {id_}, which is not recorded")
        for id_ in sorted((wanted[name] & records.sure_snapshots) - taken):
            yield Difference(kind=Kind.VOLUME_SNAPSHOT_MISSING, object=id_, host=host,
                             what=f"snapshot {id_} of data {name} in {host} is lost")


def _exports(host: str, found: list[Export], records: _Records) -> Iterator[Difference]:
    wanted, there = {one.id for one in records.exports.get(host, [])}, {one.id for one in found}
    for id_ in sorted(there - wanted):
        yield Difference(kind=Kind.VOLUME_EXPORT_LEFT, object=id_, host=host,
                         what=f"{host} serves {id_}, which is no attachment with a connector")
    for id_ in sorted(wanted - there - records.leaving):
        yield Difference(kind=Kind.VOLUME_EXPORT_MISSING, object=id_, host=host,
                         what=f"attachment {id_} is not served by {host}")
