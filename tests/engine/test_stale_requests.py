"""A request that found its server in one state, and reaches the records when it is in another."""

import pytest
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.domain.errors import InstanceInvalidState
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.start import START, StartServer


@pytest.mark.spec("API-062", "API-070")
@in_cloud()
async def test_the_state_changed_in_between(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    seen = await cloud.located(uuid)
    await cloud.start(uuid)
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    await cloud.rest()
    with pytest.raises(InstanceInvalidState) as refused:
        await cloud.compute.ask(CONTEXT, seen, START, StartServer())
    assert refused.value.status == 409
    assert refused.value.message == f"Cannot 'start' instance {uuid} while it is in vm_state active"
    assert cloud.server(uuid).task_state is None


@pytest.mark.spec("API-062", "API-070")
@in_cloud()
async def test_somebody_was_faster(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    seen = await cloud.located(uuid)
    await cloud.start(uuid)
    with pytest.raises(InstanceInvalidState) as refused:
        await cloud.compute.reboot(CONTEXT, seen, hard=True)
    assert refused.value.status == 409
    assert refused.value.message == f"Cannot 'reboot' instance {uuid} while it is in task_state powering-on"
    assert cloud.server(uuid).task_state is TaskState.POWERING_ON
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
