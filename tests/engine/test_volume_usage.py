"""What servers do with their volumes is counted and told: at intervals, and when a volume is detached."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from simulation.process import SimClock
from small_cloud import OPTIONS, SmallCloud, in_cloud

from kilonova.db.volume_usage import COUNTERS, volume_usage
from kilonova.domain.errors import KilonovaError, NotSupported
from kilonova.hypervisor.fake import FakeDriver
from kilonova.hypervisor.volumes import VolumeUsage
from kilonova.operations.detach_volume import DETACH_VOLUME, DetachVolume

COUNTED = msgspec.structs.replace(OPTIONS, volume_usage_poll_interval=60.0)
ROUND = 70.0


def use(cloud: SmallCloud, uuid: str, volume: str, *counters: int) -> None:
    """The guest has done that by now: reads, bytes read, writes, bytes written."""
    usage = VolumeUsage(**dict(zip(COUNTERS, counters, strict=True)))
    for hypervisor in cloud.hypervisors.values():
        if uuid in hypervisor.guests:
            FakeDriver(hypervisor, SimClock(cloud.loop)).use_volume(uuid, volume, usage)


def told(cloud: SmallCloud, *, versioned: bool) -> list[dict[str, Any]]:
    """What was told of volumes, without what is about notifications in general."""
    found = [one for one in cloud.ears.once() if one.event_type == "volume.usage" and one.versioned is versioned]
    return [one.payload["nova_object.data"] if versioned else one.payload for one in found]


def stored(cloud: SmallCloud) -> list[Any]:
    return list(cloud.cell(lambda conn: conn.execute(sa.select(volume_usage)).all()))


@pytest.mark.spec("PER-67", "PER-69", "VOL-31", "VOL-32", "VOL-33", "VOL-37")
@in_cloud(told=True, options=COUNTED)
async def test_usage_is_counted_from_the_first_start_to_the_detach(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    use(cloud, uuid, volume, 1, 2, 3, 4)
    await cloud.until(lambda: len(told(cloud, versioned=True)) == 1, within=ROUND)
    (row,) = stored(cloud)
    assert (row.volume_id, row.instance_uuid, row.project_id) == (volume, uuid, cloud.server(uuid).project_id)
    assert (row.read_requests, row.read_bytes, row.write_requests, row.write_bytes) == (1, 2, 3, 4)
    assert told(cloud, versioned=True)[0] | {"last_refreshed": ""} == {
        "volume_id": volume, "instance_uuid": uuid, "project_id": row.project_id, "user_id": row.user_id,
        "availability_zone": row.availability_zone or "", "last_refreshed": "",
        "reads": 1, "read_bytes": 2, "writes": 3, "write_bytes": 4,
    }
    use(cloud, uuid, volume, 0, 0, 1, 1)  # it was started again
    await cloud.until(lambda: len(told(cloud, versioned=False)) == 2, within=ROUND)
    last = told(cloud, versioned=False)[-1]
    assert [last[name] for name in ("reads", "read_bytes", "writes", "write_bytes")] == [1, 2, 4, 5]
    assert (last["tenant_id"], last["instance_id"]) == (row.project_id, uuid)
    use(cloud, uuid, volume, 5, 5, 5, 5)
    await cloud.act(uuid, DETACH_VOLUME, DetachVolume(volume))
    await cloud.rest()
    await cloud.until(lambda: len(told(cloud, versioned=True)) == 3)
    events = [one.event_type for one in cloud.ears.once() if one.versioned]
    assert events.index("instance.volume_detach.start") < len(events) - 1 - events[::-1].index("volume.usage")
    (row,) = stored(cloud)
    assert (row.read_requests, row.total_read_requests, row.total_write_bytes) == (0, 6, 9)


@pytest.mark.spec("VOL-34", "PER-68", "PER-71")
@in_cloud(told=True, options=COUNTED)
async def test_what_cannot_be_counted_holds_up_nothing(cloud: SmallCloud) -> None:
    first, second = await cloud.build(), await cloud.build()
    volumes = [await cloud.attach(first), await cloud.attach(second)]
    cloud.fail("volume_usage", NotSupported("cannot count"))
    await cloud.until(lambda: len(stored(cloud)) == 1, within=ROUND)
    await cloud.rest()
    cloud.fail("volume_usage", KilonovaError("lost"))
    lost = next(pair for pair in zip((first, second), volumes, strict=True) if pair[1] != stored(cloud)[0].volume_id)
    await cloud.act(lost[0], DETACH_VOLUME, DetachVolume(lost[1]))
    await cloud.rest()
    assert cloud.devices(lost[0]) == []
    assert len(stored(cloud)) == 1


@pytest.mark.spec("VOL-30", "PER-66")
@in_cloud()
async def test_nothing_is_read_if_nothing_is_to_be_counted(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    volume = await cloud.attach(uuid)
    await cloud.act(uuid, DETACH_VOLUME, DetachVolume(volume))
    await cloud.rest()
    assert (cloud.calls("volume_usage"), stored(cloud)) == ([], [])


@pytest.mark.spec("PER-70", "PER-72")
@in_cloud(conductors=2, options=COUNTED)
async def test_each_volume_is_counted_once_in_a_round_with_few_queries(cloud: SmallCloud) -> None:
    servers = [await cloud.build() for _ in range(6)]
    for uuid in servers:
        await cloud.attach(uuid)
    queries: list[str] = []
    listen = lambda _c, _cur, statement, *_rest: queries.append(statement)  # noqa: E731
    sa.event.listen(cloud.databases.cell.engine, "before_cursor_execute", listen)
    await cloud.until(lambda: len(stored(cloud)) == 6, within=ROUND)
    sa.event.remove(cloud.databases.cell.engine, "before_cursor_execute", listen)
    assert 0 < sum("FROM block_device_mappings" in one for one in queries) <= 2 * len(cloud.conductors)
