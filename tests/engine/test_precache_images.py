"""Images that are fetched to hosts before they are needed, and those that hosts forget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import msgspec
import pytest
from simulation.process import SimClock
from simulation.world import IMAGE
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud
from structlog.testing import capture_logs

from kilonova.agent.image_cache import ImageCacheOptions, image_cache_rounds
from kilonova.agent.steps.images import Cached, Outcome
from kilonova.domain.errors import KilonovaError, NotSupported
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.operations.precache_images import DOWN_TIME, PrecacheImages

AGGREGATE = str(UUID(int=7))
MISSING = str(UUID(int=8))


async def fetch(cloud: SmallCloud, hosts: Sequence[str], images: Sequence[str] = (IMAGE.id,)) -> None:
    (cell,) = cloud.cells.all
    await cloud.compute.cache_images(CONTEXT, cell, AGGREGATE, hosts, images)


def hosts_of(record: OperationRecord) -> tuple[str, ...]:
    return msgspec.json.decode(record.request, type=PrecacheImages).hosts


def outcomes(cloud: SmallCloud) -> dict[str, dict[str, Outcome]]:
    """By host: what the journal says of each image."""
    found = {}
    for record in cloud.operations(AGGREGATE):
        for entry in record.entries:
            if entry.step == "fetch images" and bytes(entry.output) != b"null":
                found[hosts_of(record)[0]] = msgspec.json.decode(entry.output, type=Cached).outcomes
    return found


@pytest.mark.spec("API-230", "IMC-08")
@in_cloud(hosts=2)
async def test_images_are_fetched_to_every_host_and_again_to_none(cloud: SmallCloud) -> None:
    await fetch(cloud, ["host0", "host1"], [IMAGE.id, MISSING])
    await cloud.rest()
    assert outcomes(cloud) == {name: {IMAGE.id: Outcome.CACHED} for name in ("host0", "host1")}
    assert [list(h.images) for h in cloud.hypervisors.values()] == [[IMAGE.id]] * 2
    await fetch(cloud, ["host0"])
    await cloud.rest()
    assert outcomes(cloud)["host0"] == {IMAGE.id: Outcome.EXISTING}
    assert {o.state for o in cloud.operations(AGGREGATE)} == {OperationState.SUCCEEDED}


@pytest.mark.spec("IMC-08", "IMC-09", "IMC-10")
@pytest.mark.parametrize(("error", "outcome"), [
    (NotSupported("no cache"), Outcome.UNSUPPORTED), (KilonovaError("broken"), Outcome.ERROR),
    (RuntimeError("defect"), Outcome.ERROR),
])
def test_an_image_that_cannot_be_fetched_keeps_no_other_away(error: Exception, outcome: Outcome) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        other = msgspec.structs.replace(IMAGE, id=str(UUID(int=9)))
        cloud.images.images[other.id] = other
        cloud.fail("cache_image", error)
        with capture_logs() as logs:
            await fetch(cloud, ["host0"], [other.id, IMAGE.id])
            await cloud.rest()
        assert outcomes(cloud)["host0"] == {other.id: outcome, IMAGE.id: Outcome.CACHED}
        assert [line["image"] for line in logs if line["log_level"] == "warning"] == [other.id]
        assert cloud.operation(AGGREGATE, "precache-images").state is OperationState.SUCCEEDED

    story()


@pytest.mark.spec("IMC-11", "IMC-08")
@in_cloud()
async def test_images_that_do_not_exist_are_errors(cloud: SmallCloud) -> None:
    with capture_logs() as logs:
        await fetch(cloud, ["host0"], [MISSING])
        await cloud.rest()
    assert outcomes(cloud)["host0"] == {}  # the host was given an empty list
    (line,) = [line for line in logs if line["event"] == "images fetched beforehand"]
    assert line["images"] == {MISSING: Outcome.ERROR}


@in_cloud(hosts=3)
async def test_a_host_that_is_down_keeps_the_images_from_no_other(cloud: SmallCloud) -> None:
    cloud.crash("host0")
    await asyncio.sleep(DOWN_TIME + 30.0)
    await fetch(cloud, ["host0", "host1", "host2"])
    await cloud.rest(within=300.0)
    await asyncio.sleep(30.0)
    assert sorted(outcomes(cloud)) == ["host1", "host2"]
    failed = [o for o in cloud.operations(AGGREGATE) if o.state is OperationState.FAILED]
    assert [hosts_of(o)[0] for o in failed] == ["host0"]
    assert failed[0].failure is not None
    assert "down" in failed[0].failure.message


@pytest.mark.spec("IMC-12")
@pytest.mark.parametrize(("lanes", "together"), [(1, 1), (2, 2)])
def test_hosts_fetch_one_after_the_other_or_as_many_as_may(lanes: int, together: int) -> None:
    @in_cloud(hosts=3, options=msgspec.structs.replace(OPTIONS, precache_concurrency=lanes))
    async def story(cloud: SmallCloud) -> None:
        names = sorted(cloud.hypervisors)
        for hypervisor in cloud.hypervisors.values():
            hypervisor.faults.latency = 20.0
        await fetch(cloud, names)
        await cloud.until(lambda: len(outcomes(cloud)) == 3, within=300.0)
        times = sorted(cloud.times("cache_image"))
        assert sum(at < times[0] + 15.0 for at in times) == together

    story()


@pytest.mark.spec("IMC-12")
@in_cloud(max_concurrent_builds=1)
async def test_fetching_beforehand_delays_no_build(cloud: SmallCloud) -> None:
    held = asyncio.Event()

    async def never(_image: object) -> bool:
        await held.wait()
        return True

    cloud.drivers["host0"].cache_image = never  # type: ignore[method-assign]
    await fetch(cloud, ["host0"])
    await asyncio.sleep(5.0)
    await cloud.until(lambda: cloud.operation(AGGREGATE, "precache-images"))
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.guest(uuid) is not None and cloud.server(uuid).launched_at is not None)
    held.set()
    await cloud.rest()


@pytest.mark.parametrize("who", ["conductor0", "host0"])
def test_fetching_is_finished_after_a_crash(who: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        def kill(_process: str) -> None:
            cloud.crash(who)
            cloud.loop.call_later(3.0, lambda: cloud.wire.spawn(cloud.boot(who)))

        cloud.at["fetch images/do/effect"] = kill
        await fetch(cloud, ["host0"])
        await cloud.rest()
        assert not cloud.at
        assert list(outcomes(cloud)["host0"]) == [IMAGE.id]

    story()


# --- forgetting ------------------------------------------------------------------------------------


SOON = ImageCacheOptions(manager_interval=100.0, remove_unused_original_minimum_age_seconds=250.0)


@pytest.mark.spec("IMC-03", "IMC-04")
@in_cloud()
async def test_images_age_when_no_disk_uses_them(cloud: SmallCloud) -> None:
    """A pass that fails is followed by the next."""
    uuid = await cloud.build()
    await fetch(cloud, ["host0"])
    hypervisor, driver = cloud.hypervisors["host0"], cloud.drivers["host0"]
    hypervisor.images["fetched"] = cloud.now
    rounds = image_cache_rounds(driver, SimClock(cloud.loop), SOON)
    rounds.start()
    cloud.fail("age_cache", KilonovaError("cannot be read"))
    with capture_logs() as logs:
        await asyncio.sleep(220.0)
        assert set(hypervisor.images) == {"fetched", IMAGE.id}
        assert "cache of images not looked through" in {line["event"] for line in logs}
        await asyncio.sleep(100.0)
        assert set(hypervisor.images) == {IMAGE.id}
    await cloud.delete(uuid)
    await cloud.rest()
    await asyncio.sleep(400.0)
    assert hypervisor.images == {}
    await rounds.close()


@pytest.mark.spec("IMC-01")
@pytest.mark.parametrize("options", [
    msgspec.structs.replace(SOON, manager_interval=-1.0),
    msgspec.structs.replace(SOON, remove_unused_base_images=False),
])
def test_without_a_pass_nothing_is_forgotten(options: ImageCacheOptions) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host0"].images["fetched"] = cloud.now
        rounds = image_cache_rounds(cloud.drivers["host0"], SimClock(cloud.loop), options)
        rounds.start()
        await asyncio.sleep(10_000.0)
        await rounds.close()
        assert "fetched" in cloud.hypervisors["host0"].images

    story()


@pytest.mark.spec("IMC-01")
@in_cloud()
async def test_a_driver_without_a_cache_is_no_error(cloud: SmallCloud) -> None:
    cloud.always_fail("age_cache", NotSupported("no cache"))
    rounds = image_cache_rounds(cloud.drivers["host0"], SimClock(cloud.loop), SOON)
    rounds.start()
    with capture_logs() as logs:
        await asyncio.sleep(350.0)
    await rounds.close()
    assert len(cloud.times("age_cache")) == 3
    assert logs == []
