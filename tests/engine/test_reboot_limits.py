"""Reboots that do not end by themselves."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from small_cloud import OPTIONS, SmallCloud, in_cloud

from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, VmState

SLOW = msgspec.structs.replace(OPTIONS, wait_soft_reboot_seconds=800.0)
LIMIT = msgspec.structs.replace(SLOW, reboot_timeout=200.0)


@pytest.mark.spec("PER-26", "PER-30")
@in_cloud(options=LIMIT)
async def test_a_soft_reboot_that_does_not_end_becomes_a_hard_one(cloud: SmallCloud) -> None:
    """What else is written to the server meanwhile does not make the reboot younger."""
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    asked = cloud.loop.time()
    await cloud.reboot(uuid)
    for _ in range(12):
        await asyncio.sleep(10.0)
        await cloud.change(uuid, display_name="other")
    assert cloud.operations(uuid, "hard-reboot") == []
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=300.0)
    assert 200.0 < cloud.loop.time() - asked < 300.0
    server = cloud.server(uuid)
    assert (server.vm_state, server.power_state) == (VmState.ACTIVE, PowerState.RUNNING)
    soft, hard = cloud.operations(uuid)[1:]
    assert (soft.kind, soft.state) == ("soft-reboot", OperationState.CANCELLED)
    assert (hard.kind, hard.state, hard.asker.user_id) == ("hard-reboot", OperationState.SUCCEEDED, "")


@pytest.mark.spec("PER-25")
@in_cloud(options=SLOW)
async def test_without_the_option_a_soft_reboot_takes_its_time(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.disobedient = {uuid}
    await cloud.reboot(uuid)
    await asyncio.sleep(700.0)
    assert [o.kind for o in cloud.operations(uuid)][1:] == ["soft-reboot"]
    await cloud.rest(within=300.0)
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@pytest.mark.spec("PER-28")
@in_cloud()
async def test_a_hard_reboot_that_hangs_has_an_end(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 100_000.0
    await cloud.reboot(uuid, hard=True)
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=3000.0)
    assert cloud.fault(uuid) is not None
    assert cloud.server(uuid).vm_state in (VmState.ACTIVE, VmState.ERROR)
