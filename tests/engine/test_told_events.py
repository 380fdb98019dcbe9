"""Events that another service tells the API reach the operation that waits for them, and nobody else."""

import pytest
import structlog
from small_cloud import SmallCloud, in_cloud

from kilonova.domain.operation import ExternalEvent
from kilonova.domain.states import TaskState, VmState


def plugged(uuid: str, port: str, status: str = "completed") -> ExternalEvent:
    return ExternalEvent(subject=uuid, name="network-vif-plugged", tag=port, status=status)


@pytest.mark.spec("XEV-06")
@in_cloud()
async def test_a_build_goes_on(cloud: SmallCloud) -> None:
    cloud.net.wires = False
    uuid = await cloud.ask(cloud.new())
    await cloud.task(uuid, TaskState.SPAWNING)
    await cloud.until(lambda: cloud.ports(uuid))
    await cloud.compute.tell(await cloud.located(uuid), plugged(uuid, "another-port"))
    (port,) = cloud.ports(uuid)
    await cloud.compute.tell(await cloud.located(uuid), plugged(uuid, port))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE, within=20.0)


@pytest.mark.spec("XEV-06", "EVT-08")
@in_cloud()
async def test_nobody_waits(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    with structlog.testing.capture_logs() as logs:
        await cloud.compute.tell(await cloud.located(uuid), plugged(uuid, "port"))
    (line,) = [entry for entry in logs if entry["event"] == "nobody waits for an event"]
    assert (line["instance"], line["event_key"]) == (uuid, "network-vif-plugged:port")
    assert cloud.events(uuid) == []
