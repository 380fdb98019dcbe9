"""What an audit finds of the volumes of servers, and what healing does about it."""

from __future__ import annotations

from typing import Any

import pytest
from simulation.process import SimBus, SimClock
from small_cloud import SmallCloud, in_cloud

from kilonova.audit.compare import compare
from kilonova.audit.differences import Difference, Kind
from kilonova.audit.heal import Healer
from kilonova.audit.look import Looker
from kilonova.audit.volumes import VolumesFound
from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState

GONE = "99999999-9999-4999-8999-999999999999"


class Ledger:
    """The volumes of a simulated service."""

    def __init__(self, cloud: SmallCloud) -> None:
        self._volumes = cloud.volumes

    async def volumes_found(self) -> VolumesFound:
        return VolumesFound((), {one.id: one.instance_uuid or "" for one in self._volumes.held.values()})

    async def settle(self, difference: Difference) -> bool:
        raise AssertionError(difference)

    async def end(self, attachment: str) -> None:
        self._volumes.release(attachment)


class Audit:
    """Of one cloud."""

    def __init__(self, cloud: SmallCloud) -> None:
        ledger = Ledger(cloud)
        self._looker = Looker(
            cloud.cells, SimBus(cloud.wire, cloud.processes["conductor0"]), SimClock(cloud.loop), volumes=ledger,
            retention=3600.0,
        )
        self.healer = Healer(
            cloud.cells, self._looker, SimClock(cloud.loop), ports=None, images=None, accelerators=None,
            volumes=ledger, retention=3600.0, wake_api=lambda: None, wake_cell=lambda _name: None,
        )

    async def found(self) -> list[Difference]:
        return compare(await self._looker.look())

    async def heal(self) -> list[bool]:
        """Whether each difference was settled, in the order of their kinds."""
        found = sorted(await self.found(), key=lambda one: list(Kind).index(one.kind))
        return [(await self.healer.heal(one)).done for one in found]


async def record(cloud: SmallCloud, uuid: str, **changes: Any) -> None:
    """Change what is recorded of the only volume of a server behind everybody's back."""
    (device,) = cloud.devices(uuid)
    await cloud.databases.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=cloud.now, was=tuple(AttachState), **changes
    ))


@pytest.mark.spec("VOL-29")
@in_cloud()
async def test_records_attachments_and_guests_are_compared(cloud: SmallCloud) -> None:
    uuid, audit = await cloud.build(), Audit(cloud)
    volume = await cloud.attach(uuid)
    (device,) = cloud.devices(uuid)
    guest = cloud.guest(uuid)
    assert guest is not None
    assert await audit.found() == []
    attached = guest.volumes
    guest.volumes = {}
    assert [(one.kind, one.object) for one in await audit.found()] == [(Kind.VOLUME_MISSING_IN_GUEST, device.uuid)]
    guest.volumes = attached
    await record(cloud, uuid, state=AttachState.DETACHING)
    found = [(one.kind, one.object, one.host) for one in await audit.found()]
    assert found == [
        (Kind.BLOCK_DEVICE_FORGOTTEN, device.uuid, "host0"), (Kind.VOLUME_LEFT_IN_GUEST, f"{uuid}//dev/vdb", "host0"),
    ]
    await record(cloud, uuid, state=AttachState.ATTACHED)
    held, cloud.volumes.held = cloud.volumes.held, {}
    assert [(one.kind, one.object) for one in await audit.found()] == [(Kind.ATTACHMENT_MISSING, device.uuid)]
    cloud.volumes.held = held
    await cloud.databases.cell.write(lambda conn: block_devices.remove(conn, device.uuid))
    assert [one.kind for one in await audit.found()] == [Kind.VOLUME_LEFT_IN_GUEST]  # it may not be cut off
    assert await audit.heal() == [False]
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert [(one.kind, one.object) for one in await audit.found()] == [(Kind.ATTACHMENT_LEFT, device.attachment_id)]
    assert await audit.heal() == [True]
    assert await audit.found() == []
    assert cloud.volumes.find(volume).status == "available"


@in_cloud()
async def test_what_is_left_of_the_volumes_of_a_deleted_server_goes(cloud: SmallCloud) -> None:
    audit, volume = Audit(cloud), cloud.volumes.add()
    attachment = cloud.volumes.attach(volume, GONE, (), None, read_only=False).id
    device = block_devices.BlockDevice(
        uuid=GONE, source_type="volume", destination_type="volume", volume_id=volume, attachment_id=attachment
    )
    await cloud.databases.cell.write(lambda conn: block_devices.insert(conn, GONE, device, now=cloud.now))
    kinds = [Kind.ATTACHMENT_WITHOUT_SERVER, Kind.BLOCK_DEVICE_WITHOUT_SERVER]
    assert [one.kind for one in await audit.found()] == kinds
    (attached, _) = await audit.found()
    assert not (await audit.healer.heal(attached)).done  # as long as a record names it, it is somebody's
    assert await audit.heal() == [True, True]
    assert await audit.found() == []
    assert cloud.volumes.find(volume).status == "available"


@in_cloud()
async def test_healing_leaves_an_attachment_alone_that_the_server_has_got_meanwhile(cloud: SmallCloud) -> None:
    uuid, audit, volume = await cloud.build(), Audit(cloud), cloud.volumes.add()
    cloud.volumes.attach(volume, uuid, (), None, read_only=False)
    (found,) = await audit.found()
    assert found.kind is Kind.ATTACHMENT_LEFT
    await cloud.attach(uuid, volume)
    assert not (await audit.healer.heal(found)).done
    assert await audit.found() == []
